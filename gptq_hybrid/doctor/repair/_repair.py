"""One repair: what is wrong, what to do about it, and what is left."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from gptq_hybrid.checkpoint import INDEX_NAME, MTP_FILE, Checkpoint, layout_for
from gptq_hybrid.checkpoint.files import LocalFiles, open_files
from gptq_hybrid.common.errors import HybridError
from gptq_hybrid.doctor._check import check_mtp, run_rules
from gptq_hybrid.doctor.findings import Finding
from gptq_hybrid.doctor.vllm_releases import installed_vllm, plugin_installed

from ._apply import Progress, apply_as_copy, apply_in_place
from ._config import plan_config
from ._head import plan_graft, plan_merge, plan_split
from ._index import plan_index
from ._plan import Plan

# Findings about a head that only another one cures; the rest is a matter of index and config.
_LOST = frozenset({"mtp-missing", "mtp-shape", "mtp-dtype", "mtp-values", "mtp-fused"})


@dataclass(frozen=True)
class Repair:
    """What was done, or with a dry run would be, one sentence each; and what is wrong afterwards.

    Attributes:
        done: sentences; empty where there was nothing to repair.
        left: findings on the checkpoint that results (with a dry run: on the one that is).
        path: where the result is: the checkpoint itself, or the copy.
        backups: names of files that hold what was replaced.
    """

    done: tuple[str, ...]
    left: tuple[Finding, ...]
    path: Path
    backups: tuple[str, ...] = field(default=())


def repair(
    path: str | Path,
    *,
    mtp_from: str | Path | None = None,
    out: str | Path | None = None,
    dry_run: bool = False,
    split_mtp: bool = False,
    merge_mtp: bool = False,
    progress: Progress | None = None,
) -> Repair:
    """Repair what can be repaired without judgement.

    In place, small JSON files are replaced (each kept as ``NAME.bak``) and ``mtp.safetensors`` is added or
    replaced; a main shard is only ever written anew into a copy.

    Args:
        path: the checkpoint's folder.
        mtp_from: a checkpoint of the same model to take a lost head from: folder, hub id or URL.
        out: folder for a repaired copy; the checkpoint itself then stays untouched.
        dry_run: say what would be done, and write nothing.
        split_mtp: move a head from the main shards into ``mtp.safetensors``; needs ``out``.
        merge_mtp: move the head from ``mtp.safetensors`` into the last main shard; needs ``out``.
        progress: called with bytes written so far and in all.

    Raises:
        CheckpointError: ``path`` or ``mtp_from`` cannot be read.
        HybridError: the donor's head does not fit; a main shard would have to change and ``out`` is missing;
            ``out`` holds files; the disk is full, or something cannot be written.
    """
    if split_mtp and merge_mtp:
        raise HybridError("--split-mtp and --merge-mtp contradict each other", remedy="Choose one.")
    if (split_mtp or merge_mtp) and out is None:
        raise HybridError(
            "splitting and merging write a shard anew, which is never done in place",
            remedy="Name a folder for the result: add --out DIR.",
        )
    checkpoint = Checkpoint.open(path)
    plan = _plan(checkpoint, mtp_from, copy=out is not None, split=split_mtp, merge=merge_mtp)
    result = checkpoint.path
    backups: tuple[str, ...] = ()
    if plan.sentences and not dry_run:
        try:
            if out is None:
                backups = apply_in_place(plan, checkpoint, progress)
            else:
                result = Path(out)
                apply_as_copy(plan, checkpoint, result, progress)
        except OSError as error:
            raise HybridError(
                f"{error.filename or out or path}: cannot be written: {error.strerror or error}",
                remedy="Nothing is lost; run the same command again once it can be.",
            ) from error
    return Repair(tuple(plan.sentences), tuple(_findings(Checkpoint.open(result))), result, backups)


def _findings(checkpoint: Checkpoint) -> list[Finding]:
    # A checkpoint made without a head is whole without one.
    return run_rules(checkpoint, vllm=installed_vllm(), plugin=plugin_installed())


def _plan(
    checkpoint: Checkpoint, mtp_from: str | Path | None, *, copy: bool, split: bool, merge: bool
) -> Plan:
    plan = Plan()
    layout = layout_for(checkpoint.config)
    rules = {finding.rule for finding in _findings(checkpoint)}
    lost = rules & _LOST or _head_is_alien(checkpoint, rules) or _unindexed_head_is_lost(checkpoint, rules)
    if mtp_from is not None and lost:
        if merge:
            raise HybridError(
                f"{checkpoint.path}: a grafted head lies in {MTP_FILE}, and merging it is a second step",
                remedy="Leave out --merge-mtp, and run qwen36 repair with it on the result.",
            )
        plan_graft(plan, checkpoint, layout, Checkpoint.read(open_files(mtp_from)), copy=copy)
    elif split:
        plan_split(plan, checkpoint)
    elif merge:
        plan_merge(plan, checkpoint)
    plan_config(plan, checkpoint, layout, rules)
    plan_index(plan, checkpoint, layout)
    return plan


class _WithoutIndex(LocalFiles):
    """A folder as it is loaded when there is no index: every file is opened."""

    def names(self) -> tuple[str, ...] | None:
        return tuple(name for name in super().names() or () if name != INDEX_NAME)


def _unindexed_head_is_lost(checkpoint: Checkpoint, rules: set[str]) -> bool:
    """Whether a head that only the index hides would turn out faulty once it is named there."""
    if "mtp-unindexed" not in rules:
        return False
    found = check_mtp(Checkpoint(_WithoutIndex(checkpoint.path), checkpoint.config))
    return any(finding.rule in _LOST for finding in found)


def _head_is_alien(checkpoint: Checkpoint, rules: set[str]) -> bool:
    """Whether the head is stored in a form that the checkpoint's format cannot load."""
    from gptq_hybrid.checkpoint import formats

    known = formats.format_of(checkpoint.quantization_config)
    if "mtp-quantization" not in rules or known is None:
        return False
    heads = [spec.name.removesuffix(".weight") for spec in layout_for(checkpoint.config).mtp]
    found = [formats.stored(checkpoint.loaded, module) for module in heads]
    return any(form is not None and form.quantized and form.form not in known.forms for form in found)
