"""One save, from gptqmodel's files to a checked checkpoint under its final name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gptq_hybrid.checkpoint import (
    INDEX_NAME,
    Checkpoint,
    layout_for,
    read_json_object,
    write_index,
    write_mtp,
)
from gptq_hybrid.common.atomic import building_directory, write_json_atomic
from gptq_hybrid.common.errors import HybridError
from gptq_hybrid.doctor import Severity, run_rules
from gptq_hybrid.doctor.mtp_head import find_mtp_in
from gptq_hybrid.losses import LOG_NAME, ModuleRecord, extend_log
from gptq_hybrid.recipes import Packaging, refuse_impossible

from ._configs import copy_companions, refuse_machine_paths, write_configs
from ._packed import packs_anything, repackage_shards, write_packed_mtp
from ._verdict import Limits, QuantizationFailedError, Verdict, judge


@dataclass(frozen=True)
class CheckpointSpec:
    """What to write.

    Attributes:
        source: the original.
        keep_mtp: whether its MTP head is kept.
        records: what quantizing came to, by full module name.
        limits: past which nothing is written.
        extra_json: further files by name, such as ``calibration.json``.
        packaging: bits of the two heads, and whether the vision tower stays.
    """

    source: Checkpoint
    keep_mtp: bool = True
    records: Mapping[str, ModuleRecord] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)
    extra_json: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    packaging: Packaging = field(default_factory=Packaging)


def write_checkpoint(
    spec: CheckpointSpec, target: str | Path, save_shards: Callable[[Path], None]
) -> Verdict:
    """Write a checkpoint to ``target``, all of it or nothing.

    Args:
        spec: what to write.
        target: folder to create.
        save_shards: called with an empty folder beside ``target``, where it leaves gptqmodel's files.

    Raises:
        QuantizationFailedError: too many modules failed.
        FileExistsError: ``target`` holds files.
        HybridError: the MTP head is not in the source, or the result fails the checks that serving relies on.
    """
    target = Path(target)
    verdict = judge(spec.records.values(), spec.limits)
    if not verdict.ok:
        raise QuantizationFailedError(
            "The quantization failed: " + "; ".join(verdict.failures),
            remedy="Use more, or more varied, calibration data.",
        )
    source, packaging = spec.source, spec.packaging
    head = find_mtp_in(source) if spec.keep_mtp else []
    with building_directory(target) as folder:
        save_shards(folder)
        (folder / INDEX_NAME).unlink(missing_ok=True)
        group_size = int(read_json_object(folder / "quantize_config.json")["group_size"])
        refuse_impossible(layout_for(source.config), packaging, group_size, keep_mtp=spec.keep_mtp)
        if packs_anything(layout_for(source.config), packaging):
            repackage_shards(folder, source, packaging, group_size)
        if head and packaging.mtp_bits < 16:
            write_packed_mtp(folder, source, head, packaging.mtp_bits, group_size)
        elif head:
            write_mtp(folder, source.path, head)
        write_index(folder)
        write_configs(source.path, folder, keep_mtp=spec.keep_mtp, packaging=packaging)
        copy_companions(source.path, folder)
        extend_log(folder / LOG_NAME, list(spec.records.values()))
        for name, content in spec.extra_json.items():
            write_json_atomic(folder / name, dict(content))
        refuse_faults(folder, keep_mtp=spec.keep_mtp)
        refuse_machine_paths(folder, [source.path, target, folder])
    return verdict


def refuse_faults(folder: str | Path, *, keep_mtp: bool) -> None:
    """Refuse a checkpoint that fails the checks that serving relies on.

    Raises:
        HybridError: it does; the message has the first five errors.
    """
    # What serving needs beside the weights comes from the source, and is checked there before the run.
    without = {"serving"} if keep_mtp else {"serving", "mtp"}
    findings = run_rules(Checkpoint.open(folder), without=without, mtp=keep_mtp)
    errors = [finding for finding in findings if finding.severity is Severity.ERROR]
    if errors:
        raise HybridError(
            "The checkpoint that was about to be written is faulty: "
            + "; ".join(f"[{finding.rule}] {finding.message}" for finding in errors[:5])
        )
