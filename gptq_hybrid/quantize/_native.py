"""What GPTAQ keeps in memory besides: the unquantized model's inputs of every linear of a layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gptq_hybrid.checkpoint import Checkpoint, TensorLayout, layout_for
from gptq_hybrid.checkpoint.quantization import dynamic_rule
from gptq_hybrid.common.errors import HybridError
from gptq_hybrid.common.memory import free_memory
from gptq_hybrid.recipes.sizes import hidden_state_bytes, kept_bytes
from gptq_hybrid.upstream.speedups import room_on_gpu

# --samples and --max-length bound the tokens from above; most documents are shorter. What a quarter of the
# bound does not fit into is too small for certain; the tokens drawn decide the rest.
_CLEARLY = 4


def native_width(layout: TensorLayout, settings: Mapping[str, Any]) -> int:
    """Inputs of the quantized linears of the widest layer together; one that two share counts twice."""
    widths: dict[str, int] = {}
    for linear in layout.quantized:
        if dynamic_rule(settings, linear.name) is not False:
            number = linear.name.removeprefix(layout.layers_prefix).split(".")[1]
            widths[number] = widths.get(number, 0) + linear.in_features
    return max(widths.values(), default=0)


def native_bytes(layout: TensorLayout, settings: Mapping[str, Any], tokens: int) -> int:
    """Bytes of those inputs in BF16, for ``tokens`` calibration tokens; 0 for a recipe without ``gptaq``."""
    return 2 * tokens * native_width(layout, settings) if settings.get("gptaq") else 0


def gpu_room(settings: Mapping[str, Any]) -> int | None:
    """Bytes of the GPU that the recipe leaves them on; None where they stay in main memory."""
    import torch

    if (settings.get("gptaq") or {}).get("device", "cpu") == "cpu" or not torch.cuda.is_available():
        return None
    # gptqmodel's `auto` is the second GPU, where there is one.
    return int(torch.cuda.get_device_properties(min(1, torch.cuda.device_count() - 1)).total_memory)


def refuse_native(needed: int, *, bound: bool, room: int | None = None, beside: int = 0) -> None:
    """Raise if ``needed`` bytes do not fit.

    ``bound``: they are what the run can need at most, and only a quarter of them must fit. ``room``: bytes
    there are; None for the main memory that is free. ``beside``: bytes that hidden states, and what else is kept
    of a layer, take of it.

    Raises:
        HybridError: they do not; the message names what to change.
    """
    available = free_memory() if room is None else room
    total = needed + beside
    if (total // _CLEARLY if bound else total) <= available:
        return
    where = "main memory is free" if room is None else "GPU memory is there"
    # Both grow with the tokens.
    times = -(-total // max(available, 1))
    hidden = f" and {beside / 2**30:.1f} GiB of hidden states and the like" if beside else ""
    raise HybridError(
        f"GPTAQ keeps {'at most ' if bound else ''}{needed / 2**30:.1f} GiB of the unquantized model's inputs"
        f"{hidden}, and {available / 2**30:.1f} GiB of {where}",
        remedy=f"Give {times} times fewer tokens with --samples or --max-length, "
        "or take a recipe without `gptaq`, such as static-mse."
        + ("" if room is None else ' `device = "cpu"` keeps them in main memory.'),
    )


def refuse_run(
    checkpoint: Checkpoint, settings: Mapping[str, Any], tokens: int, *, bound: bool, hidden_on_cpu: bool
) -> int:
    """Raise if what GPTAQ keeps of ``tokens`` calibration tokens (at most so many, if ``bound``) does not fit.

    ``hidden_on_cpu``: hidden states are to stay in main memory, as they do without a GPU.

    Returns:
        Bytes of the inputs it keeps; 0 for a recipe without ``gptaq``.

    Raises:
        HybridError: they do not fit.
    """
    needed = native_bytes(layout_for(checkpoint.config), settings, tokens)
    if needed:
        import torch

        room, beside = gpu_room(settings), 0
        layout = layout_for(checkpoint.config)
        if room is None and (hidden_on_cpu or not torch.cuda.is_available()):
            beside = hidden_state_bytes(int(checkpoint.text_config["hidden_size"]), 1, tokens)
        kept = kept_bytes(layout, tokens)
        on_gpu = torch.cuda.is_available() and kept <= room_on_gpu(
            torch.cuda.get_device_properties(0).total_memory
        )
        if room is None and not on_gpu:
            beside += kept
        refuse_native(needed, bound=bound, room=room, beside=beside)
    return needed
