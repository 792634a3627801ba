"""Running rules over a checkpoint."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from gptq_hybrid.checkpoint import Checkpoint, TensorLayout, layout_for
from gptq_hybrid.checkpoint.files import open_files
from gptq_hybrid.checkpoint.headers import TensorInfo
from gptq_hybrid.common.errors import CheckpointError, TransferError, UnsupportedArchitectureError

from ._report import Report
from .contributed import check_rules
from .findings import Finding, Inspection, Severity
from .rules.g_idx import permuted_tensors
from .vllm_releases import VllmRelease, installed_vllm, plugin_installed

# Whatever decides whether a head drafts: the head itself, and the files that every load depends on.
MTP_SCOPES = frozenset({"files", "mtp"})
# A broken checkpoint can break the same rule a thousand times; people read the first few.
MOST_OF_A_RULE = 20


def check(
    path: str | Path,
    *,
    mtp: bool = True,
    vllm: str | VllmRelease | None = None,
    plugin: bool | None = None,
    follow_links: bool = False,
    timeout: float = 30.0,
) -> Report:
    """Say whether a checkpoint will serve, from headers, small JSON files and samples of values.

    Args:
        path: a folder, a hub id (``OWNER/NAME`` or ``OWNER/NAME@REVISION``), or the URL of a folder on a
            server that answers range requests.
        mtp: whether it is to draft with its MTP head.
        vllm: the release to serve it with; the installed one by default, if there is one.
        plugin: whether it runs with this distribution's plugin. By default the installed release does if the
            plugin is installed beside it, and one that was named does not.
        follow_links: whether to read files through symbolic links that lead out of the folder.
        timeout: seconds that one network request may take.

    Returns:
        A report; :attr:`Report.verdict` is ``"unreadable"`` where there was nothing to check, in which case
        its only finding says why.

    Raises:
        HybridError: ``vllm`` is not a version.
    """
    release = VllmRelease(vllm) if isinstance(vllm, str) else vllm or installed_vllm()
    if plugin is None:
        plugin = vllm is None and release is not None and plugin_installed()
    try:
        checkpoint = Checkpoint.read(open_files(path, follow_links=follow_links, timeout=timeout))
        return inspect(checkpoint, mtp=mtp, vllm=release, plugin=plugin)
    except CheckpointError as error:
        return Report.unreadable(str(path), error, release)


def inspect(
    checkpoint: Checkpoint, *, mtp: bool = True, vllm: VllmRelease | None = None, plugin: bool = False
) -> Report:
    """:func:`check` of an open checkpoint; ``vllm=None`` means no particular release.

    Raises:
        TransferError: the server it lies on stopped answering.
    """
    try:
        without = frozenset() if mtp else frozenset({"mtp"})
        findings = run_rules(checkpoint, without=without, mtp=mtp, vllm=vllm, plugin=plugin)
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
) -> list[Finding]:
    """Findings of every rule of ``scopes`` (of all, for None) but ``without``, errors first.

    A rule that itself fails is reported as the error ``rule-failed``: what it should have looked at is
    unknown, so the checkpoint is not called good.

    Raises:
        UnsupportedArchitectureError: no family recognises the checkpoint.
        TransferError: the server it lies on stopped answering.
    """
    see = _inspection(checkpoint, mtp=mtp, vllm=vllm, plugin=plugin)
    if isinstance(see, Finding):
        return [see]
    return _run(see, scopes=scopes, without=without)


def _inspection(
    checkpoint: Checkpoint, *, mtp: bool = True, vllm: VllmRelease | None, plugin: bool
) -> Inspection | Finding:
    """What rules get to see, or why they cannot be run."""
    try:
        layout = layout_for(checkpoint.config)
    except CheckpointError as error:
        return _config_layout(error)
    except UnsupportedArchitectureError:
        raise
    except Exception as error:  # noqa: BLE001 - families are plugins, and configs hold anything
        return _failed("the layout", error)
    named = _as_named(checkpoint, layout)
    expected = None if named is layout else layout.layers_prefix
    return Inspection(checkpoint, named, mtp=mtp, vllm=vllm, plugin=plugin, expected_prefix=expected)


def _run(
    see: Inspection, *, scopes: Collection[str] | None = None, without: Collection[str] = ()
) -> list[Finding]:
    found: list[Finding] = []
    for rule in check_rules():
        if rule.scope in without or (scopes is not None and rule.scope not in scopes):
            continue
        try:
            found += _shortened(list(rule.findings(see)))
        except TransferError:
            raise
        except CheckpointError as error:
            remedy = error.remedy or "Fetch the file again."
            found.append(Finding(rule.id, Severity.ERROR, error.message, remedy, file=error.path.name))
        except Exception as error:  # noqa: BLE001 - rules are plugins, and meet files that nobody foresaw
            found.append(_failed(f"the rule {rule.id}", error))
    return sorted(found, key=lambda finding: finding.severity is not Severity.ERROR)


def _shortened(found: list[Finding]) -> list[Finding]:
    if len(found) <= MOST_OF_A_RULE:
        return found
    kept, more = found[: MOST_OF_A_RULE - 1], found[MOST_OF_A_RULE - 1 :]
    worst = next((f for f in more if f.severity is Severity.ERROR), more[0])
    message = f"and {len(more)} more of the kind, such as: {worst.message}"
    return [*kept, Finding(worst.rule, worst.severity, message, worst.remedy, worst.tensor, worst.file)]


def _failed(what: str, error: Exception) -> Finding:
    message = f"{what} failed on this checkpoint: {type(error).__name__}: {error}"
    return Finding("rule-failed", Severity.ERROR, message, "Report this, with the checkpoint's config.json.")


def _config_layout(error: CheckpointError) -> Finding:
    return Finding(
        "config-dimensions",
        Severity.ERROR,
        error.message,
        "Take config.json from the original checkpoint, and add the quantization_config to it.",
        file="config.json",
    )


def _as_named(checkpoint: Checkpoint, layout: TensorLayout) -> TensorLayout:
    """The layout, under the other of the two prefixes in use where the tensors are named so."""
    root = layout.layers_prefix.removesuffix("layers")
    other = "model." if root == "model.language_model." else "model.language_model."
    ours, theirs = f"{root}layers.", f"{other}layers."
    names = checkpoint.loaded
    if any(name.startswith(ours) for name in names) or not any(name.startswith(theirs) for name in names):
        return layout
    return layout.renamed(root, other)


def check_mtp(checkpoint: Checkpoint, *, vllm: VllmRelease | None = None) -> list[Finding]:
    """What keeps this checkpoint from drafting with its MTP head; empty when nothing does."""
    return run_rules(checkpoint, scopes=MTP_SCOPES, vllm=vllm)


@dataclass(frozen=True, slots=True)
class ActOrder:
    """What the ``g_idx`` of a checkpoint say.

    Attributes:
        findings: what keeps it from being served, or what serving it costs; errors first.
        permuted: the ``g_idx`` that are not in natural order, by module.
    """

    findings: tuple[Finding, ...]
    permuted: Mapping[str, TensorInfo]


def check_act_order(
    checkpoint: Checkpoint, *, vllm: VllmRelease | None = None, plugin: bool = False
) -> ActOrder:
    """Look at every ``g_idx`` (9 MiB at 27B), and at what the config says of act order.

    Raises:
        UnsupportedArchitectureError: no family recognises the checkpoint.
    """
    see = _inspection(checkpoint, vllm=vllm, plugin=plugin)
    if isinstance(see, Finding):
        return ActOrder((see,), {})
    findings = _run(see, scopes={"act-order"})
    return ActOrder(tuple(findings), permuted_tensors(see))


def check_quantized(checkpoint: Checkpoint) -> list[Finding]:
    """What is wrong with the body of a checkpoint, MTP head and serving aside; empty when nothing is."""
    return run_rules(checkpoint, scopes={"files", "index", "quantized", "act-order"})
