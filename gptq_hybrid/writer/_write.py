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
from gptq_hybrid.doctor import Severity, find_mtp, run_rules
from gptq_hybrid.recipes.packaging import Packaging, refuse_impossible
from gptq_hybrid.upstream import ModuleRecord

from ._configs import copy_companions, refuse_machine_paths, write_configs
from ._packed import packs_anything, repackage_shards, write_packed_mtp
from ._quant_log import extend_quant_log
from ._verdict import Limits, judge


@dataclass(frozen=True)
class CheckpointPlan:
    """What to write: the original it came from, whether its head is kept, and what quantizing noted.

    ``packaging``: bits of the two heads, and whether the vision tower stays.

    ``extra_json``: further files by name, such as ``calibration.json``.
    """

    source: Path
    keep_mtp: bool = True
    records: Mapping[str, ModuleRecord] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)
    extra_json: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    packaging: Packaging = field(default_factory=Packaging)


def write_checkpoint(plan: CheckpointPlan, target: Path, save_shards: Callable[[Path], None]) -> None:
    """Write a checkpoint to ``target``, all of it or nothing.

    ``save_shards`` is called with an empty folder beside ``target`` and leaves
    gptqmodel's files there.

    Raises:
        FileExistsError: ``target`` holds files.
        HybridError: too many modules failed, the head is not in the source, or
            the result does not pass the checks that serving relies on.
    """
    verdict = judge(plan.records.values(), plan.limits)
    if not verdict.ok:
        raise HybridError(
            "The quantization failed: " + "; ".join(verdict.failures),
            remedy="Use more, or more varied, calibration data.",
        )
    layout = layout_for(read_json_object(plan.source / "config.json"))
    mtp = find_mtp(plan.source) if plan.keep_mtp else []
    with building_directory(target) as folder:
        save_shards(folder)
        (folder / INDEX_NAME).unlink(missing_ok=True)
        group_size = int(read_json_object(folder / "quantize_config.json")["group_size"])
        refuse_impossible(layout, plan.packaging, group_size, keep_mtp=plan.keep_mtp)
        if packs_anything(layout, plan.packaging):
            repackage_shards(folder, plan.source, plan.packaging, group_size)
        if mtp and plan.packaging.mtp_bits < 16:
            write_packed_mtp(folder, plan.source, mtp, plan.packaging.mtp_bits, group_size)
        elif mtp:
            write_mtp(folder, plan.source, mtp)
        write_index(folder)
        write_configs(plan.source, folder, keep_mtp=plan.keep_mtp, packaging=plan.packaging)
        copy_companions(plan.source, folder)
        extend_quant_log(folder / "quant_log.csv", plan.records)
        for name, content in plan.extra_json.items():
            write_json_atomic(folder / name, dict(content))
        _refuse_faults(folder, keep_mtp=plan.keep_mtp)
        refuse_machine_paths(folder, [plan.source, target, folder])


def _refuse_faults(folder: Path, *, keep_mtp: bool) -> None:
    # What serving needs beside the weights is the source's business: preflight has asked for it.
    without = {"serving"} if keep_mtp else {"serving", "mtp"}
    found = run_rules(Checkpoint.open(folder), without=without, mtp=keep_mtp)
    findings = [finding for finding in found if finding.severity is Severity.ERROR]
    if findings:
        raise HybridError(
            "The checkpoint that was about to be written is faulty: "
            + "; ".join(f"[{finding.rule}] {finding.message}" for finding in findings[:5])
        )
