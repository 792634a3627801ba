"""Plan a quantization run: work out and check all that can be known before an hour is spent."""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

from gptq_hybrid.calibration import refuse_bad_calibration
from gptq_hybrid.checkpoint import Checkpoint, TensorInfo, TensorLayout, layout_for
from gptq_hybrid.common.errors import HybridError
from gptq_hybrid.common.machine import may_have_gpu
from gptq_hybrid.common.memory import free_memory
from gptq_hybrid.common.outputs import refuse_unwritable_folder
from gptq_hybrid.common.units import size_text
from gptq_hybrid.common.versions import find_version
from gptq_hybrid.doctor import Severity, run_rules
from gptq_hybrid.doctor.mtp_head import find_mtp_in
from gptq_hybrid.recipes import Packaging, TuneSizes, refuse_impossible
from gptq_hybrid.recipes.sizes import (
    dense_state_bytes,
    hidden_state_bytes,
    layer_count,
    native_bytes,
    packed_modules_bytes,
    projection_input_bytes,
    quantized_bytes,
    size_changes,
    working_bytes,
)
from gptq_hybrid.upstream import installed_version, refuse_batches
from gptq_hybrid.upstream.speedups import room_on_gpu

from ._tuning_plan import tuning_facts, tuning_warnings
from .request import QuantizeRequest
from .state import StateDecision, decide_state, folder_bytes, state_folder

Facts = list[tuple[str, str]]

_GIB = 1 << 30
# gptqmodel's largest shard, by default.
_SHARD = 4 * _GIB
# Of main memory whatever the calibration: libraries, a layer's weights, and those that are being packed. 4.7 GiB
# were seen on a slice of the 27B with nothing else in main memory (bench/quantize/run.json).
_PROCESS = 6 * _GIB
# The same on a CPU, where nothing is loaded ahead: 1.23 GiB were seen at most for the demo's model of 15 MiB.
_CPU_PROCESS = int(1.2 * _GIB)
# The share of a GPU that a run may plan with; the rest is for kernels, the CUDA context and fragmentation.
_USABLE = 0.9
# --samples and --max-length bound the tokens from above; most documents are shorter. If not even a quarter of the
# bound fits, the memory is certainly too small; otherwise the tokens that are drawn decide.
_CERTAIN = 4


@dataclass(frozen=True, slots=True)
class RunSizes:
    """What a run needs, in bytes: estimates from the layout.

    Attributes:
        tokens: calibration tokens, at most.
        layers: layers with modules to quantize.
        output: all safetensors files of the target.
        peak: those of them that lie on disk at once while the target is written.
        packed: the quantized modules in them.
        dense: other tensors that gptqmodel holds loaded, and writes into every state.
        working: one layer's weights and the solver's matrices.
        hidden: inputs and outputs of a layer over the calibration.
        projection: inputs of a mixer's output projection over the calibration.
        native: inputs of the unquantized model that GPTAQ keeps over the calibration; 0 without GPTAQ.
        tune: what tuning needs besides; None for a recipe without ``[tune]``.
    """

    tokens: int
    layers: int
    output: int
    peak: int
    packed: int
    dense: int
    working: int
    hidden: int
    projection: int
    native: int
    tune: TuneSizes | None = None

    @property
    def tuning_disk(self) -> int:
        """Bytes beside the target: the checkpoint before tuning, the original's states, and the tuning's own."""
        # Of both kinds of state a second one while the first is replaced.
        if self.tune is None:
            return 0
        own = 2 * self.tune.states + 2 * self.tune.trained
        if self.tune.aligned:
            # A second packed checkpoint; the state of its making goes before tuning begins.
            own = self.output + max(own, self.tune.aligned_state)
        return self.output + own

    @classmethod
    def estimate(cls, checkpoint: Checkpoint, layout: TensorLayout, request: QuantizeRequest) -> RunSizes:
        """Estimate the sizes for as many tokens as ``request`` may draw."""
        settings, packaging, tokens = request.recipe.settings, request.recipe.packaging, request.most_tokens
        output = quantized_bytes(layout, settings, packaging, keep_mtp=request.keep_mtp)
        # gptqmodel's shards, before the writer packs the output head or leaves the tower out.
        shards = quantized_bytes(
            layout, settings, Packaging(mtp_bits=packaging.mtp_bits), keep_mtp=request.keep_mtp
        )
        native = native_bytes(layout, settings, tokens)
        return cls(
            tokens=tokens,
            layers=layer_count(layout),
            output=output,
            # One shard lies there twice while it is rewritten.
            peak=output if shards == output else shards + min(shards, _SHARD),
            packed=packed_modules_bytes(layout, settings),
            dense=dense_state_bytes(layout, settings),
            working=working_bytes(layout, gptaq=native > 0),
            hidden=hidden_state_bytes(int(checkpoint.text_config["hidden_size"]), tokens),
            projection=projection_input_bytes(layout, tokens),
            native=native,
            tune=None
            if request.recipe.tune is None
            else TuneSizes.estimate(
                layout,
                request.recipe.tune,
                hidden=int(checkpoint.text_config["hidden_size"]),
                group_size=request.group_size,
                max_length=request.max_length,
            ),
        )

    def with_tokens(self, tokens: int) -> RunSizes:
        """Return the sizes for another number of calibration tokens."""

        def scaled(size: int) -> int:
            return size // self.tokens * tokens

        return replace(
            self,
            tokens=tokens,
            hidden=scaled(self.hidden),
            projection=scaled(self.projection),
            native=scaled(self.native),
        )


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Where a run keeps what it needs.

    Attributes:
        gpu: name of the GPU; None without one.
        gpu_bytes: its memory; 0 without one.
        native_gpu_bytes: memory of the GPU that the recipe keeps GPTAQ's inputs on; None where main memory has
            them.
        hidden_on_cpu: hidden states stay in main memory, as they would not fit the GPU beside a layer's working
            set.
    """

    gpu: str | None
    gpu_bytes: int
    native_gpu_bytes: int | None
    hidden_on_cpu: bool

    @classmethod
    def of_this_machine(cls, request: QuantizeRequest, sizes: RunSizes) -> MemoryPlan:
        """Look at the GPUs, and decide what stays in main memory."""
        if not may_have_gpu():
            return cls(None, 0, None, hidden_on_cpu=False)
        import torch

        if not torch.cuda.is_available():
            return cls(None, 0, None, hidden_on_cpu=False)
        total = int(torch.cuda.get_device_properties(0).total_memory)
        native_gpu_bytes = None
        if (request.recipe.settings.get("gptaq") or {}).get("device", "cpu") != "cpu":
            # gptqmodel's `auto` is the second GPU, where there is one.
            number = min(1, torch.cuda.device_count() - 1)
            native_gpu_bytes = int(torch.cuda.get_device_properties(number).total_memory)
        on_gpu = sizes.hidden + sizes.working + (sizes.native if native_gpu_bytes else 0)
        return cls(torch.cuda.get_device_name(0), total, native_gpu_bytes, on_gpu > int(total * _USABLE))

    def keeps_on_gpu(self, projection: int) -> bool:
        """Whether inputs of a mixer's output projection, of so many bytes, stay on the GPU."""
        return self.gpu is not None and projection <= room_on_gpu(self.gpu_bytes)

    def run_memory(self, sizes: RunSizes) -> int:
        """Bytes of main memory that the run takes, without those for writing a state."""
        if self.gpu is None:
            return _CPU_PROCESS + sizes.hidden + sizes.projection + sizes.working
        hidden = sizes.hidden if self.hidden_on_cpu else 0
        projection = 0 if self.keeps_on_gpu(sizes.projection) else sizes.projection
        return _PROCESS + sizes.dense + hidden + projection

    def tuning_memory(self, sizes: RunSizes) -> int:
        """Bytes of main memory that tuning takes, after the run; 0 without it."""
        if sizes.tune is None:
            return 0
        # Estimated in BF16; on a CPU hidden states are float32.
        width = 1 if self.gpu else 2
        steps = (sizes.tune.states + sizes.tune.inputs) * width + sizes.tune.trained
        # The original's states are there twice while the final norm is applied.
        return (_PROCESS if self.gpu else _CPU_PROCESS) + max(
            steps, 2 * width * sizes.tune.states, width * sizes.tune.aligned
        )


@dataclass(frozen=True)
class RunPlan:
    """A run that was checked and can begin.

    Attributes:
        request: what was asked for.
        checkpoint: the source, open.
        layout: its tensors.
        mtp_head: where its MTP head lies; empty where none is kept.
        sizes: of what the run needs, for as many tokens as it may draw.
        memory: where the run keeps it.
        state: whether it keeps a state, and what it continues from.
        facts: (what, value) pairs for the screen.
        warnings: sentences for the screen.
    """

    request: QuantizeRequest
    checkpoint: Checkpoint
    layout: TensorLayout
    mtp_head: tuple[TensorInfo, ...]
    sizes: RunSizes
    memory: MemoryPlan
    state: StateDecision
    facts: tuple[tuple[str, str], ...]
    warnings: tuple[str, ...]

    def refuse_tokens(self, tokens: int) -> None:
        """Refuse so many calibration tokens, now that they are drawn, if GPTAQ cannot keep their inputs.

        Raises:
            HybridError: they do not fit.
        """
        _refuse_native(self.sizes.with_tokens(tokens), self.memory, bound=False)


def plan_run(request: QuantizeRequest) -> RunPlan:
    """Check source, target, disk, memory and versions; read headers, write nothing.

    Raises:
        HybridError: something would fail the run; the remedy says what to do about it.
    """
    gptqmodel = installed_version()
    refuse_existing(request.target)
    refuse_unwritable_folder(
        "DST", request.target.absolute().parent if request.target.exists() else request.target
    )
    checkpoint = Checkpoint.open(request.source)
    layout = layout_for(checkpoint.config)
    _refuse_quantized(checkpoint)
    _refuse_faulty(checkpoint, layout)
    head = tuple(find_mtp_in(checkpoint)) if request.keep_mtp else ()
    settings, packaging = request.recipe.settings, request.recipe.packaging
    refuse_bad_calibration(request.calibration, request.exclude)
    refuse_impossible(layout, packaging, request.group_size, keep_mtp=request.keep_mtp)
    sizes = RunSizes.estimate(checkpoint, layout, request)
    memory = MemoryPlan.of_this_machine(request, sizes)
    state = decide_state(
        request,
        inputs=sizes.hidden // 2,
        packed=sizes.packed,
        dense=sizes.dense,
        hidden_on_cpu=memory.hidden_on_cpu,
        run_memory=memory.run_memory(sizes),
    )
    disk = _check_disk(request.target, sizes.peak, state, sizes.tuning_disk)
    if settings.get("gptaq"):
        refuse_batches(request.batch_size)
    _refuse_native(sizes, memory, bound=True)

    facts = [
        ("source", f"{request.source} ({layout.family}, {len(layout.quantized)} modules to quantize)"),
        ("MTP head", _describe_head(head)),
        ("output", f"{size_text(sizes.output)} (estimate), recipe {request.recipe.name}"),
    ]
    for what, change in size_changes(layout, settings, packaging, keep_mtp=request.keep_mtp):
        facts.append(("", f"{what}: {size_text(abs(change))} {'less' if change < 0 else 'more'}"))
    facts += [
        *disk,
        ("state", state.describe(request, sizes.layers)),
        *_memory_facts(sizes, memory),
        *tuning_facts(request.recipe.tune, sizes.tune, memory.tuning_memory(sizes), memory.gpu),
        (
            "versions",
            ", ".join(f"{n} {find_version(n) or 'not installed'}" for n in ("torch", "transformers")),
        ),
        ("", f"gptqmodel {gptqmodel}, {os.cpu_count()} cores"),
    ]
    return RunPlan(
        request=request,
        checkpoint=checkpoint,
        layout=layout,
        mtp_head=head,
        sizes=sizes,
        memory=memory,
        state=state,
        facts=tuple(facts),
        warnings=tuple(_warnings(request, layout, sizes, memory)),
    )


def refuse_existing(target: Path) -> None:
    """Refuse a target that holds something already.

    Raises:
        HybridError: it does.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        state = state_folder(target)
        raise HybridError(
            f"{target} exists already",
            remedy="Choose another target, or remove it first."
            + (f" {state} is left over from the run that made it; it can go." if state.exists() else ""),
        )


def _refuse_quantized(checkpoint: Checkpoint) -> None:
    if checkpoint.quantization_config is not None or (checkpoint.path / "quantize_config.json").exists():
        raise HybridError(
            f"{checkpoint.path} is quantized already",
            remedy="Give the BF16 original as the source.",
        )


def _refuse_faulty(checkpoint: Checkpoint, layout: TensorLayout) -> None:
    """Refuse a source that already fails ``qwen36 check``; the MTP head is checked separately."""
    findings = run_rules(checkpoint, without={"mtp"}, mtp=False)
    errors = [finding for finding in findings if finding.severity is Severity.ERROR]
    if errors:
        more = f" (and {len(errors) - 1} more: qwen36 check {checkpoint.path})" if len(errors) > 1 else ""
        raise HybridError(f"{checkpoint.path}: {errors[0].message}{more}", remedy=errors[0].remedy)
    uneven = [linear for linear in layout.quantized if linear.in_features % 128]
    if uneven:
        raise HybridError(
            f"{uneven[0].name} has {uneven[0].in_features} inputs, which groups of 128 do not divide",
            remedy="vLLM's W4A16 kernels need in-features in multiples of 128.",
        )


def _temporary() -> Path:
    try:
        return Path(tempfile.gettempdir())
    except FileNotFoundError as error:
        raise HybridError(
            f"there is no folder for temporary files: {error}",
            remedy="Name one that can be written with TMPDIR.",
        ) from error


def _check_disk(target: Path, needed: int, state: StateDecision, tuning: int) -> Facts:
    """Check the room for the checkpoint beside the target, and for the modules that gptqmodel offloads.

    It offloads them to the temporary folder; in a run that keeps a state, to the state. Tuning takes ``tuning``
    bytes besides, in the state too, or beside the target.
    """
    parent = target.absolute().parent
    while not parent.exists():
        parent = parent.parent
    temporary = _temporary()
    for folder in (parent, temporary):
        # Asked of the system, which knows of mounts that are read-only; root may write anywhere else.
        if not os.access(folder, os.W_OK | os.X_OK):
            raise HybridError(
                f"{folder} cannot be written",
                remedy="Choose another target, or another temporary folder with TMPDIR.",
            )
    if state.size is not None:
        # What an earlier run wrote of it takes no more room.
        own = (0 if state.tuning else state.disk) + tuning
        folders = [("target", parent, needed + max(0, own - folder_bytes(state_folder(target))))]
    elif parent.stat().st_dev == temporary.stat().st_dev:
        both = needed * 2 + tuning
        folders = [("target", parent, both), ("temporary", temporary, both)]
    else:
        folders = [("target", parent, needed + tuning), ("temporary", temporary, needed)]
    facts = []
    for label, folder, size in folders:
        free = shutil.disk_usage(folder).free
        if free < size:
            without = f" --no-resume needs {size_text(state.disk)} less there." if state.size else ""
            raise HybridError(
                f"the {label} folder {folder} has {size_text(free)} free; about {size_text(size)} are needed",
                remedy="Free space, choose another target, or set TMPDIR to a larger disk." + without,
            )
        facts.append((f"disk, {label}", f"{size_text(free)} free of about {size_text(size)} needed"))
    return facts


def _refuse_native(sizes: RunSizes, memory: MemoryPlan, *, bound: bool) -> None:
    """Refuse a run whose inputs of the unquantized model, which GPTAQ keeps, do not fit.

    Args:
        sizes: of the run.
        memory: where it keeps them.
        bound: ``sizes`` are the most that the run can need, and only a quarter of them must fit.
    """
    if not sizes.native:
        return
    others = 0
    if memory.native_gpu_bytes is None:
        # They share main memory with these.
        if memory.gpu is None or memory.hidden_on_cpu:
            others += sizes.hidden
        if not memory.keeps_on_gpu(sizes.projection):
            others += sizes.projection
    available = free_memory() if memory.native_gpu_bytes is None else memory.native_gpu_bytes
    total = sizes.native + others
    if (total // _CERTAIN if bound else total) <= available:
        return
    where = "main memory is free" if memory.native_gpu_bytes is None else "GPU memory is there"
    # Both grow with the tokens.
    times = -(-total // max(available, 1))
    hidden = f" and {others / _GIB:.1f} GiB of hidden states and the like" if others else ""
    raise HybridError(
        f"GPTAQ keeps {'at most ' if bound else ''}{sizes.native / _GIB:.1f} GiB of the unquantized model's inputs"
        f"{hidden}, and {available / _GIB:.1f} GiB of {where}",
        remedy=f"Give {times} times fewer tokens with --samples or --max-length, "
        "or take a recipe without `gptaq`, such as static-mse."
        + ("" if memory.native_gpu_bytes is None else ' `device = "cpu"` keeps them in main memory.'),
    )


def _describe_head(head: tuple[TensorInfo, ...]) -> str:
    if not head:
        return "left out (--no-mtp)"
    files = ", ".join(sorted({info.file for info in head}))
    return f"{len(head)} tensors, {size_text(sum(info.nbytes for info in head))}, in {files}"


def _memory_facts(sizes: RunSizes, memory: MemoryPlan) -> Facts:
    run_memory, facts = memory.run_memory(sizes), []
    if memory.gpu is None:
        facts.append(("memory", f"CPU only; about {size_text(run_memory)} of RAM (estimate)"))
    else:
        on_gpu = sizes.working + (0 if memory.hidden_on_cpu else sizes.hidden)
        on_gpu += sizes.projection if memory.keeps_on_gpu(sizes.projection) else 0
        total = f"{size_text(memory.gpu_bytes)} on {memory.gpu}"
        facts.append(("memory", f"about {size_text(on_gpu)} of {total} (estimate)"))
        if memory.hidden_on_cpu:
            facts.append(
                ("", f"calibration activations, about {size_text(sizes.hidden)}, stay in main memory")
            )
        free = size_text(free_memory())
        facts.append(("main memory", f"about {size_text(run_memory)} (estimate) of {free} free"))
    if sizes.native:
        on_cpu = memory.native_gpu_bytes is None
        available = free_memory() if memory.native_gpu_bytes is None else memory.native_gpu_bytes
        facts.append(
            (
                "",
                f"GPTAQ: at most {size_text(sizes.native)} of {'main' if on_cpu else 'GPU'} memory for inputs of "
                f"the unquantized model ({size_text(available)} there)",
            )
        )
    return facts


def _warnings(
    request: QuantizeRequest, layout: TensorLayout, sizes: RunSizes, memory: MemoryPlan
) -> list[str]:
    settings, warnings = request.recipe.settings, []
    if request.recipe.packaging.text_only and layout.vision:
        warnings.append(
            "the vision tower is left out: this checkpoint will serve text alone, with the flags that "
            "`qwen36 check` prints"
        )
    if settings.get("desc_act") and not settings.get("static_groups"):
        warnings.append(
            "act order: stock vLLM 0.30 and later refuse the result; vllm-qwen36-plugin serves it, "
            "permuting the input of its layers. The recipes static-mse and static need no such step"
        )
    warnings += tuning_warnings(sizes.tune, memory.tuning_memory(sizes), memory.gpu, memory.gpu_bytes)
    if memory.gpu is not None:
        if sizes.working > int(memory.gpu_bytes * _USABLE):
            warnings.append(
                f"one layer's working set is about {size_text(sizes.working)}; {memory.gpu} has "
                f"{size_text(memory.gpu_bytes)}"
            )
        run_memory, free = memory.run_memory(sizes), free_memory()
        if run_memory > free:
            warnings.append(
                f"the run takes about {size_text(run_memory)} of main memory, and {size_text(free)} are free: use "
                "fewer --samples, or it will swap or be killed"
            )
    if find_spec("fla") is None:
        warnings.append(
            "flash-linear-attention is not installed: Gated-DeltaNet layers run in plain torch, far slower"
        )
    return warnings
