"""One repair: what is wrong, what to change, and what is left."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from gptq_hybrid.checkpoint import INDEX_NAME, MTP_FILE, Checkpoint, formats, layout_for
from gptq_hybrid.checkpoint.files import LocalFiles, open_files
from gptq_hybrid.common.atomic import locked
from gptq_hybrid.common.errors import HybridError
from gptq_hybrid.doctor._check import check_mtp, run_rules
from gptq_hybrid.doctor.findings import Finding
from gptq_hybrid.doctor.head_place import head_elsewhere
from gptq_hybrid.doctor.vllm_releases import installed_vllm, plugin_installed

from ._apply import Progress, apply_as_copy, apply_in_place
from ._changes import Changes
from ._config import correct_config
from ._head import bring_head, graft_head, merge_head, split_head
from ._index import correct_index
from ._planned import PlannedFiles

# Findings about a head that only another head cures; the others are a matter of index and config.
_LOST = frozenset({"mtp-missing", "mtp-shape", "mtp-dtype", "mtp-values", "mtp-fused"})


@dataclass(frozen=True)
class Repair:
    """What was done (in a dry run: would be done), and what is wrong afterwards.

    Attributes:
        done: a sentence for each change; empty if there was nothing to repair.
        left: findings on the resulting checkpoint; in a dry run, on the one that would result.
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

    A repair in place replaces small JSON files (each kept as ``NAME.bak``) and adds or replaces
    ``mtp.safetensors``. A main shard is only ever written anew into a copy.

    Args:
        path: the checkpoint's folder.
        mtp_from: a checkpoint of the same model to take a lost head from: folder, hub id or URL.
        out: folder for a repaired copy; the checkpoint itself then stays untouched.
        dry_run: work out what would be done, and write nothing.
        split_mtp: move a head from the main shards into ``mtp.safetensors``; needs ``out``.
        merge_mtp: move the head from ``mtp.safetensors`` into the last main shard; needs ``out``.
        progress: called with the bytes written so far and in all.

    Raises:
        CheckpointError: ``path`` or ``mtp_from`` cannot be read.
        HybridError: the donor's head does not fit; a main shard would have to change and ``out`` is missing;
            ``out`` holds files; the disk is full; or a file cannot be written.
    """
    if split_mtp and merge_mtp:
        raise HybridError("--split-mtp and --merge-mtp contradict each other", remedy="Choose one.")
    if (split_mtp or merge_mtp) and out is None:
        raise HybridError(
            "splitting and merging write a shard anew, which is never done in place",
            remedy="Name a folder for the result: add --out DIR.",
        )
    checkpoint = Checkpoint.open(path)
    if out is not None or dry_run:
        return _repair(checkpoint, mtp_from, out, dry_run, split_mtp, merge_mtp, progress)
    with locked(checkpoint.path) as free:
        if not free:
            raise HybridError(
                f"{checkpoint.path}: another qwen36 repair is at work on it", remedy="Wait until it is done."
            )
        # Opened anew: what was read before the lock may have been repaired meanwhile.
        return _repair(Checkpoint.open(path), mtp_from, out, dry_run, split_mtp, merge_mtp, progress)


def _repair(
    checkpoint: Checkpoint,
    mtp_from: str | Path | None,
    out: str | Path | None,
    dry_run: bool,
    split_mtp: bool,
    merge_mtp: bool,
    progress: Progress | None,
) -> Repair:
    changes = _changes(checkpoint, mtp_from, copy=out is not None, split=split_mtp, merge=merge_mtp)
    result = checkpoint.path
    backups: tuple[str, ...] = ()
    if changes.sentences and not dry_run:
        try:
            if out is None:
                backups = apply_in_place(changes, checkpoint, progress)
            else:
                result = Path(out)
                apply_as_copy(changes, checkpoint, result, progress)
        except OSError as error:
            raise HybridError(
                f"{error.filename or out or checkpoint.path}: cannot be written: {error.strerror or error}",
                remedy="Nothing is lost. Make it writable, and run the same command again.",
            ) from error
    if dry_run and changes.sentences:
        after = Checkpoint.read(PlannedFiles(checkpoint.path, changes, copy=out is not None))
    else:
        after = Checkpoint.open(result)
    return Repair(tuple(changes.sentences), tuple(_findings(after)), result, backups)


def _findings(checkpoint: Checkpoint) -> list[Finding]:
    return run_rules(checkpoint, vllm=installed_vllm(), plugin=plugin_installed())


def _changes(
    checkpoint: Checkpoint, mtp_from: str | Path | None, *, copy: bool, split: bool, merge: bool
) -> Changes:
    """Work out the changes; nothing is written."""
    changes = Changes()
    layout = layout_for(checkpoint.config)
    rules = {finding.rule for finding in _findings(checkpoint)}
    lost = rules & _LOST or _head_is_alien(checkpoint, rules) or _unindexed_head_is_lost(checkpoint, rules)
    elsewhere = head_elsewhere(checkpoint, layout)
    if elsewhere is not None:
        bring_head(changes, checkpoint, elsewhere, copy=copy)
    elif mtp_from is not None and lost:
        if merge:
            raise HybridError(
                f"{checkpoint.path}: a grafted head goes into {MTP_FILE}, and merging it is a second step",
                remedy="Leave out --merge-mtp, and run qwen36 repair with it on the result.",
            )
        graft_head(changes, checkpoint, layout, Checkpoint.read(open_files(mtp_from)), copy=copy)
    elif split:
        split_head(changes, checkpoint)
    elif merge:
        merge_head(changes, checkpoint)
    correct_config(changes, checkpoint, layout, rules)
    correct_index(changes, checkpoint, layout)
    return changes


class _WithoutIndex(LocalFiles):
    """A folder as a loader sees it without the index: it opens every file."""

    def names(self) -> tuple[str, ...] | None:
        return tuple(name for name in super().names() or () if name != INDEX_NAME)


def _unindexed_head_is_lost(checkpoint: Checkpoint, rules: set[str]) -> bool:
    """Whether a head that only the index hides would turn out faulty once the index names it."""
    if "mtp-unindexed" not in rules:
        return False
    findings = check_mtp(Checkpoint(_WithoutIndex(checkpoint.path), checkpoint.config))
    return any(finding.rule in _LOST for finding in findings)


def _head_is_alien(checkpoint: Checkpoint, rules: set[str]) -> bool:
    """Whether the head is stored in a form that the checkpoint's format cannot load."""
    declared = formats.declared_format(checkpoint.quantization_config)
    if "mtp-quantization" not in rules or declared is None:
        return False
    modules = [spec.name.removesuffix(".weight") for spec in layout_for(checkpoint.config).mtp]
    forms = [formats.stored(checkpoint.loaded, module) for module in modules]
    return any(
        stored is not None and stored.quantized and stored.form not in declared.forms for stored in forms
    )
