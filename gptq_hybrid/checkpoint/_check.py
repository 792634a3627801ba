"""Running rules."""

from __future__ import annotations

from ._checkpoint import Checkpoint
from .findings import Finding, Severity
from .plugins import check_rules, layout_for


def run_rules(checkpoint: Checkpoint, *, scope: str) -> list[Finding]:
    """Findings of every rule of ``scope``, errors first.

    Raises:
        UnsupportedArchitectureError: no family recognises the checkpoint.
        CheckpointError: its config lacks a dimension.
    """
    layout = layout_for(checkpoint.config)
    found = [f for rule in check_rules() if rule.scope == scope for f in rule.run(checkpoint, layout)]
    return sorted(found, key=lambda finding: finding.severity is not Severity.ERROR)


def check_mtp(checkpoint: Checkpoint) -> list[Finding]:
    """What keeps this checkpoint from drafting with its MTP head; empty when nothing does."""
    return run_rules(checkpoint, scope="mtp")


def check_quantized(checkpoint: Checkpoint) -> list[Finding]:
    """What is wrong with the quantized modules of a GPTQ checkpoint; empty when nothing is."""
    return run_rules(checkpoint, scope="quantized")
