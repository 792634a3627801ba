"""Everything that can be known to fail before an hour is spent."""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from gptq_hybrid.checkpoint import Checkpoint, TensorLayout, layout_for
from gptq_hybrid.common.errors import HybridError
from gptq_hybrid.common.memory import free_memory
from gptq_hybrid.doctor import Severity, find_mtp, run_rules
from gptq_hybrid.quantize.state import ResumePlan, folder_bytes, plan_resume, state_folder
from gptq_hybrid.recipes.packaging import Packaging, refuse_impossible
from gptq_hybrid.recipes.sizes import (
    choices,
    dense_state_bytes,
    hidden_state_bytes,
    kept_bytes,
    layer_count,
    packed_modules_bytes,
    quantized_bytes,
    working_bytes,
)
from gptq_hybrid.upstream import refuse_batches
from gptq_hybrid.upstream.gptqmodel import installed_version
from gptq_hybrid.upstream.speedups import room_on_gpu

from ._native import gpu_room, native_bytes, refuse_run

if TYPE_CHECKING:
    from ._run import QuantizeRequest

_GIB = 1 << 30
# gptqmodel's largest, by default.
_SHARD = 4 * _GIB
# Of main memory whatever the calibration: libraries, a layer's weights, and those that are being packed. 4.7 GiB
# were seen on a slice of the 27B with nothing else in main memory (bench/quantize/run.json).
_PROCESS = 6 * _GIB
# Keep this share of a device free for kernels, the CUDA context and fragmentation.
_HEADROOM = 0.9


@dataclass(frozen=True, slots=True)
class Preflight:
    """What was found. ``facts`` are (what, value) pairs for the screen.

    ``calibration_on_cpu``: the calibration's hidden states would not fit the GPU
    beside a layer's working set, so they are to stay in main memory.
    ``resume``: what the run does about its state.
    """

    facts: tuple[tuple[str, str], ...]
    warnings: tuple[str, ...]
    calibration_on_cpu: bool
    resume: ResumePlan


def preflight(request: QuantizeRequest) -> Preflight:
    """Check source, target, disk, memory and versions; read headers, write nothing.

    Raises:
        HybridError: something that would fail the run, with what to do about it.
    """
    gptqmodel = installed_version()
    _refuse_existing(request.target)
    checkpoint = Checkpoint.open(request.source)
    layout = layout_for(checkpoint.config)
    _refuse_quantized(checkpoint)
    _refuse_faulty(checkpoint, layout)
    facts = [("source", f"{request.source} ({layout.family}, {len(layout.quantized)} modules to quantize)")]
    if request.keep_mtp:
        head = find_mtp(request.source)
        files = ", ".join(sorted({info.file for info in head}))
        facts.append(("MTP head", f"{len(head)} tensors, {_size(sum(i.nbytes for i in head))}, in {files}"))
    else:
        facts.append(("MTP head", "left out, as asked"))
    settings, packaging = request.recipe.settings, request.recipe.packaging
    refuse_impossible(layout, packaging, request.group_size, keep_mtp=request.keep_mtp)
    output = quantized_bytes(layout, settings, packaging, keep_mtp=request.keep_mtp)
    facts.append(("output", f"{_size(output)} (estimate), recipe {request.recipe.name}"))
    for what, change in choices(layout, settings, packaging, keep_mtp=request.keep_mtp):
        facts.append(("", f"{what}: {_size(abs(change))} {'less' if change < 0 else 'more'}"))
    warnings: list[str] = []
    if packaging.text_only and layout.vision:
        warnings.append(
            "the vision tower is left out: this checkpoint will serve text alone, with the flags that "
            "`qwen36 check` prints"
        )
    if settings.get("desc_act") and not settings.get("static_groups"):
        warnings.append(
            "act order: stock vLLM 0.30 and later refuse the result; vllm-qwen36-plugin serves it on one GPU, "
            "permuting the input of its layers. The recipes static-mse and static need no such step"
        )
    memory, on_cpu, in_main = _check_memory(checkpoint, layout, request, warnings)
    hidden = hidden_state_bytes(
        int(checkpoint.text_config["hidden_size"]), request.samples, request.max_length
    )
    resume = plan_resume(
        request,
        inputs=hidden // 2,
        packed=packed_modules_bytes(layout, settings),
        dense=dense_state_bytes(layout, settings),
        hidden_on_cpu=on_cpu,
        beside=in_main,
    )
    facts += _check_disk(request.target, _peak_on_disk(layout, request, output), resume)
    facts.append(("state", resume.said(request, layer_count(layout))))
    facts += [*memory, *_check_native(checkpoint, request, hidden_on_cpu=on_cpu)]
    facts.append(("versions", ", ".join(f"{name} {_version(name)}" for name in ("torch", "transformers"))))
    facts.append(("", f"gptqmodel {gptqmodel}, {os.cpu_count()} cores"))
    if find_spec("fla") is None:
        warnings.append(
            "flash-linear-attention is not installed: Gated-DeltaNet layers run in plain torch, far slower"
        )
    return Preflight(tuple(facts), tuple(warnings), on_cpu, resume)


def _refuse_existing(target: Path) -> None:
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        left = state_folder(target)
        raise HybridError(
            f"{target} exists already",
            remedy="Choose another target, or remove it first."
            + (f" {left} is what is left of the run that made it; it can go." if left.exists() else ""),
        )


def _refuse_quantized(checkpoint: Checkpoint) -> None:
    if checkpoint.quantization_config is not None or (checkpoint.path / "quantize_config.json").exists():
        raise HybridError(
            f"{checkpoint.path} is quantized already",
            remedy="Give the BF16 original as the source.",
        )


def _refuse_faulty(checkpoint: Checkpoint, layout: TensorLayout) -> None:
    """What `qwen36 check` calls an error would be one of the result too; the head has a check of its own."""
    errors = [f for f in run_rules(checkpoint, without={"mtp"}, mtp=False) if f.severity is Severity.ERROR]
    if errors:
        more = f" (and {len(errors) - 1} more: qwen36 check {checkpoint.path})" if len(errors) > 1 else ""
        raise HybridError(f"{checkpoint.path}: {errors[0].message}{more}", remedy=errors[0].remedy)
    uneven = [linear for linear in layout.quantized if linear.in_features % 128]
    if uneven:
        raise HybridError(
            f"{uneven[0].name} has {uneven[0].in_features} inputs, which groups of 128 do not divide",
            remedy="vLLM's W4A16 kernels need in-features in multiples of 128.",
        )


def _peak_on_disk(layout: TensorLayout, request: QuantizeRequest, output: int) -> int:
    """Bytes that lie in the target at once: gptqmodel's shards, and one of them while it is written anew."""
    settings, packaging = request.recipe.settings, request.recipe.packaging
    shards = quantized_bytes(
        layout, settings, Packaging(mtp_bits=packaging.mtp_bits), keep_mtp=request.keep_mtp
    )
    return output if shards == output else shards + min(shards, _SHARD)


def _check_disk(target: Path, output: int, resume: ResumePlan) -> list[tuple[str, str]]:
    """Room for the checkpoint beside the target, and for the modules that gptqmodel offloads.

    It offloads them to the temporary folder; a run that keeps a state, to the state.
    """
    here = target.absolute().parent
    while not here.exists():
        here = here.parent
    temporary = Path(tempfile.gettempdir())
    if resume.size is not None:
        # What an earlier run wrote of it takes no more room.
        wanted = [("target", here, output + max(0, resume.disk - folder_bytes(state_folder(target))))]
    elif here.stat().st_dev == temporary.stat().st_dev:
        wanted = [("target", here, output * 2), ("temporary", temporary, output * 2)]
    else:
        wanted = [("target", here, output), ("temporary", temporary, output)]
    facts = []
    for label, folder, needed in wanted:
        free = shutil.disk_usage(folder).free
        if free < needed:
            without = f" --no-resume needs {_size(resume.disk)} less there." if resume.size else ""
            raise HybridError(
                f"the {label} folder {folder} has {_size(free)} free; about {_size(needed)} are needed",
                remedy="Free space, choose another target, or set TMPDIR to a larger disk." + without,
            )
        facts.append((f"disk, {label}", f"{_size(free)} free of about {_size(needed)} needed"))
    return facts


def _check_memory(
    checkpoint: Checkpoint, layout: TensorLayout, request: QuantizeRequest, warnings: list[str]
) -> tuple[list[tuple[str, str]], bool, int]:
    """What is said of memory; whether hidden states stay in main memory; bytes of that which the run takes."""
    import torch

    hidden = hidden_state_bytes(
        int(checkpoint.text_config["hidden_size"]), request.samples, request.max_length
    )
    native = native_bytes(layout, request.recipe.settings, request.samples * request.max_length)
    working = working_bytes(layout, gptaq=native > 0)
    kept = kept_bytes(layout, request.samples * request.max_length)
    process = _PROCESS + dense_state_bytes(layout, request.recipe.settings)
    if not torch.cuda.is_available():
        needed = hidden + kept + working
        return [("memory", f"CPU only; about {_size(needed)} of RAM (estimate)")], False, needed
    name, total = torch.cuda.get_device_name(0), torch.cuda.get_device_properties(0).total_memory
    room = int(total * _HEADROOM)
    on_cpu = hidden + working + (native if gpu_room(request.recipe.settings) else 0) > room
    if working > room:
        warnings.append(f"one layer's working set is about {_size(working)}; {name} has {_size(total)}")
    kept_on_gpu = kept <= room_on_gpu(total)
    on_gpu = working + (0 if on_cpu else hidden) + (kept if kept_on_gpu else 0)
    facts = [("memory", f"about {_size(on_gpu)} of {_size(total)} on {name} (estimate)")]
    if on_cpu:
        facts.append(("", f"calibration activations, about {_size(hidden)}, stay in main memory"))
    in_main = process + (hidden if on_cpu else 0) + (0 if kept_on_gpu else kept)
    facts.append(("main memory", f"about {_size(in_main)} (estimate) of {_size(free_memory())} free"))
    if in_main > free_memory():
        warnings.append(
            f"the run takes about {_size(in_main)} of main memory, and {_size(free_memory())} are free: use fewer "
            "--samples, or it will swap or be killed"
        )
    return facts, on_cpu, in_main


def _check_native(
    checkpoint: Checkpoint, request: QuantizeRequest, *, hidden_on_cpu: bool
) -> list[tuple[str, str]]:
    settings = request.recipe.settings
    if settings.get("gptaq"):
        refuse_batches(request.batch_size)
    tokens = request.samples * request.max_length
    needed = refuse_run(checkpoint, settings, tokens, bound=True, hidden_on_cpu=hidden_on_cpu)
    if not needed:
        return []
    room = gpu_room(settings)
    where = "main memory" if room is None else "GPU memory"
    free = free_memory() if room is None else room
    said = (
        f"GPTAQ: at most {_size(needed)} of {where} for inputs of the unquantized model ({_size(free)} there)"
    )
    return [("", said)]


def _size(count: int) -> str:
    return f"{count / _GIB:.1f} GiB" if count >= _GIB else f"{count / (1 << 20):.1f} MiB"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
