"""Run rules over a checkpoint.

Private because ``gptq_hybrid.doctor.check`` is the function.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptq_hybrid.checkpoint import Checkpoint, TensorInfo, family_for
from gptq_hybrid.checkpoint.files import Files, open_files
from gptq_hybrid.checkpoint.patterns import bounded_matching, refuse_oversized
from gptq_hybrid.common.errors import (
    BoundsError,
    CheckpointError,
    TransferError,
    UnsupportedArchitectureError,
)
from gptq_hybrid.hooks import contributions

from .deep import DeepReading, Progress, read_deeply
from .findings import Finding, Inspection, Rule, Severity
from .report import Report
from .rules.g_idx import permuted_tensors
from .vllm_releases import UNTIES_SINCE, VllmRelease, installed_vllm, plugin_installed

# What decides whether a head drafts: the head itself, and the files that every load depends on.
MTP_SCOPES = frozenset({"files", "mtp"})
# A broken checkpoint can break the same rule a thousand times; people read the first few.
MOST_OF_A_RULE = 20
# The rule of a finding that says what was not read for its size, and so may be in order.
NOT_READ = "not-read"
# Seconds for all requests of one check. Over a line of 1 Mbit/s a 27B takes 20 s.
DEADLINE = 60.0


def check_rules() -> list[Rule]:
    """Return every rule, built in or of a plugin, in the order in which they run."""
    return contributions("qwen36_check_rules")


def check(
    path: str | Path,
    *,
    mtp: bool = True,
    vllm: str | VllmRelease | None = None,
    plugin: bool | None = None,
    follow_links: bool = False,
    timeout: float = 30.0,
    deadline: float = DEADLINE,
    deep: bool = False,
    on_progress: Progress | None = None,
) -> Report:
    """Say whether a checkpoint will serve, from headers, small JSON files and samples of values.

    Args:
        path: a folder, a hub id (``OWNER/NAME`` or ``OWNER/NAME@REVISION``), or the URL of a folder on a server
            that answers range requests.
        mtp: whether it is to draft with its MTP head.
        vllm: the release to serve it with; the installed one by default, if there is one.
        plugin: whether vLLM runs with this distribution's plugin. By default True for the installed release if the
            plugin is installed beside it, and False for a release that was named.
        follow_links: whether to read files through symbolic links that lead out of the folder.
        timeout: seconds that one network request may take.
        deadline: seconds that all requests to a server may take together; a deep check has no such limit.
        deep: read every byte instead of samples, and compare files with the SHA-256 that the hub has of them.
        on_progress: called with bytes done and bytes in all by a deep check.

    Returns:
        A report. Where there was nothing to check, its :attr:`Report.verdict` is ``"unreadable"`` and its only
        finding says why.

    Raises:
        HybridError: ``vllm`` is not a version.
    """
    release = VllmRelease(vllm) if isinstance(vllm, str) else vllm or installed_vllm()
    if plugin is None:
        plugin = vllm is None and release is not None and plugin_installed()
    try:
        files = open_files(
            path, follow_links=follow_links, timeout=timeout, deadline=None if deep else deadline
        )
        if not any(name == "config.json" for name in files.names() or ("config.json",)):
            _refuse_gguf(files)
        checkpoint = Checkpoint.read(files)
        read = read_deeply(checkpoint, on_progress) if deep else None
        return inspect(checkpoint, mtp=mtp, vllm=release, plugin=plugin, deep=read)
    except CheckpointError as error:
        return Report.unreadable(str(path), error, release)


def _refuse_gguf(files: Files) -> None:
    name = next((name for name in files.names() or () if name.endswith(".gguf")), None)
    if name is not None:
        raise CheckpointError(
            files.location,
            f"holds {name}, a checkpoint of llama.cpp (GGUF), and no config.json",
            remedy="Serve it with llama.cpp, or fetch the original or a quantization for vLLM.",
        )


def inspect(
    checkpoint: Checkpoint,
    *,
    mtp: bool = True,
    vllm: VllmRelease | None = None,
    plugin: bool = False,
    deep: DeepReading | None = None,
) -> Report:
    """:func:`check` an open checkpoint; ``vllm=None`` means no particular release.

    Raises:
        TransferError: the server it lies on stopped answering.
    """
    try:
        without = frozenset() if mtp else frozenset({"mtp"})
        findings = run_rules(checkpoint, without=without, mtp=mtp, vllm=vllm, plugin=plugin, deep=deep)
    except UnsupportedArchitectureError as error:
        return Report.unreadable(checkpoint.location, error, vllm)
    return Report.of(checkpoint, findings, mtp=mtp, vllm=vllm, plugin=plugin)


def run_rules(
    checkpoint: Checkpoint,
    *,
    scopes: Collection[str] | None = None,
    without: Collection[str] = (),
    mtp: bool = True,
    vllm: VllmRelease | None = None,
    plugin: bool = False,
    deep: DeepReading | None = None,
) -> list[Finding]:
    """Return the findings of every rule in ``scopes`` (None: in all) but not in ``without``, errors first.

    A rule that raises is reported as the error ``rule-failed``: what it should have looked at is unknown, so the
    checkpoint is not called good.

    Raises:
        UnsupportedArchitectureError: no family recognises the checkpoint.
        TransferError: the server it lies on stopped answering.
    """
    inspection = _inspection(checkpoint, mtp=mtp, vllm=vllm, plugin=plugin, deep=deep)
    if isinstance(inspection, Finding):
        return [inspection]
    return _run(inspection, scopes=scopes, without=without)


def check_mtp(checkpoint: Checkpoint, *, vllm: VllmRelease | None = None) -> list[Finding]:
    """Return what keeps this checkpoint from drafting with its MTP head; nothing for a good one."""
    return run_rules(checkpoint, scopes=MTP_SCOPES, vllm=vllm)


def check_quantized(checkpoint: Checkpoint) -> list[Finding]:
    """Return what is wrong with the body of a checkpoint, apart from its MTP head and from serving it."""
    return run_rules(checkpoint, scopes={"files", "index", "quantized", "act-order"})


@dataclass(frozen=True, slots=True)
class ActOrder:
    """What the ``g_idx`` of a checkpoint mean for serving it.

    Attributes:
        findings: what keeps it from being served, or what serving it costs; errors first.
        permuted: the ``g_idx`` that are not in natural order, by module.
    """

    findings: tuple[Finding, ...]
    permuted: Mapping[str, TensorInfo]


def check_act_order(
    checkpoint: Checkpoint, *, vllm: VllmRelease | None = None, plugin: bool = False
) -> ActOrder:
    """Look at every ``g_idx`` (9 MiB at 27B), and at what the config says about act order.

    Raises:
        UnsupportedArchitectureError: no family recognises the checkpoint.
    """
    inspection = _inspection(checkpoint, vllm=vllm, plugin=plugin)
    if isinstance(inspection, Finding):
        return ActOrder((inspection,), {})
    findings = _run(inspection, scopes={"act-order"})
    return ActOrder(tuple(findings), permuted_tensors(inspection))


def _inspection(
    checkpoint: Checkpoint,
    *,
    mtp: bool = True,
    vllm: VllmRelease | None,
    plugin: bool = False,
    deep: DeepReading | None = None,
) -> Inspection | Finding:
    """What the rules look at, or the finding that keeps them from running."""
    try:
        refuse_oversized(checkpoint.quantization_config)
        family = family_for(checkpoint.config)
        layout = family.layout(checkpoint.config if mtp else _without_mtp(checkpoint.config))
    except CheckpointError as error:
        return Finding(
            NOT_READ if isinstance(error, BoundsError) else "config-dimensions",
            Severity.ERROR,
            error.message,
            "Take config.json from the original checkpoint, and add the quantization_config to it.",
            file="config.json",
        )
    except UnsupportedArchitectureError:
        raise
    except Exception as error:  # noqa: BLE001 - families are plugins, and configs hold anything
        return _failed("the layout", error)
    if _unties(checkpoint, vllm):
        layout = layout.with_output_head()
    named = layout.as_named_in(checkpoint.loaded)
    expected_prefix = None if named is layout else layout.layers_prefix
    return Inspection(
        checkpoint,
        family,
        named,
        mtp=mtp,
        vllm=vllm,
        plugin=plugin,
        expected_prefix=expected_prefix,
        deep=deep,
    )


def _without_mtp(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The config without a count of MTP layers that nobody will read, if it is none."""
    text = config.get("text_config")
    owner = text if isinstance(text, Mapping) else config
    count = owner.get("mtp_num_hidden_layers")
    if count is None or (isinstance(count, int) and count >= 0):
        return config
    changed = {**owner, "mtp_num_hidden_layers": 0}
    return {**config, "text_config": changed} if owner is text else changed


def _unties(checkpoint: Checkpoint, vllm: VllmRelease | None) -> bool:
    """Whether vLLM loads the stored output head of a config that ties it to the embedding."""
    stored = any(name.startswith("lm_head.") for name in checkpoint.loaded)
    newer = vllm is None or vllm.at_least(UNTIES_SINCE)
    return stored and newer and bool(checkpoint.config.get("tie_word_embeddings", False))


def _run(
    inspection: Inspection, *, scopes: Collection[str] | None = None, without: Collection[str] = ()
) -> list[Finding]:
    with bounded_matching():
        return _run_each(inspection, scopes=scopes, without=without)


def _run_each(
    inspection: Inspection, *, scopes: Collection[str] | None, without: Collection[str]
) -> list[Finding]:
    findings: list[Finding] = []
    refused: set[str] = set()
    for rule in check_rules():
        if rule.scope in without or (scopes is not None and rule.scope not in scopes):
            continue
        try:
            findings += _shortened(list(rule.findings(inspection)))
        except TransferError:
            raise
        except CheckpointError as error:
            if error.message in refused:
                continue  # several rules look at the same file
            refused.add(error.message)
            remedy = error.remedy or "Fetch the file again."
            id = NOT_READ if isinstance(error, BoundsError) else rule.id
            findings.append(Finding(id, Severity.ERROR, error.message, remedy, file=error.path.name))
        except Exception as error:  # noqa: BLE001 - rules are plugins, and meet files that nobody foresaw
            findings.append(_failed(f"the rule {rule.id}", error))
    return sorted(findings, key=lambda finding: finding.severity is not Severity.ERROR)


def _shortened(findings: list[Finding]) -> list[Finding]:
    """The first findings of a rule, and one that counts the rest with the severity of its worst."""
    if len(findings) <= MOST_OF_A_RULE:
        return findings
    first, rest = findings[: MOST_OF_A_RULE - 1], findings[MOST_OF_A_RULE - 1 :]
    worst = next((f for f in rest if f.severity is Severity.ERROR), rest[0])
    message = f"and {len(rest)} more of the kind, such as: {worst.message}"
    return [*first, Finding(worst.rule, worst.severity, message, worst.remedy, worst.tensor, worst.file)]


def _failed(what: str, error: Exception) -> Finding:
    message = f"{what} failed on this checkpoint: {type(error).__name__}: {error}"
    return Finding("rule-failed", Severity.ERROR, message, "Report this, with the checkpoint's config.json.")
