"""The line that start-up logs about drafts."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from .head import DraftHead
    from .settings import Precision

_MIB = 1 << 20
NAMES: dict[Precision, str] = {
    "bf16": "the checkpoint's own weights",
    "fp8": "FP8",
    "w4": "W4",
    "w8": "W8",
}


class DraftReport:
    """Remembers what the linears of the MTP head took before they were quantized."""

    def __init__(self) -> None:
        self._dense_bytes: dict[int, int] = {}
        self._remark = ""

    def add(self, layer: torch.nn.Module) -> None:
        """Note a linear that is to be quantized and is still dense."""
        self._dense_bytes[id(layer)] = layer.weight.numel() * layer.weight.element_size()

    def remove(self, layer: torch.nn.Module) -> int:
        """Forget a linear that stays dense after all; return how many are left."""
        del self._dense_bytes[id(layer)]
        return len(self._dense_bytes)

    def freed(self, model: torch.nn.Module) -> int:
        """Bytes that the linears take less than before they were quantized."""
        return sum(self._dense_bytes.values()) - self._taken(model)

    def remark(self, text: str) -> None:
        """Say this of the head, in the line; the latest remark counts."""
        self._remark = text

    @staticmethod
    def _taken(model: torch.nn.Module) -> int:
        return sum(_stored_bytes(module) for module in model.modules() if _quantized_here(module))

    def line(
        self, precision: Precision, model: torch.nn.Module, head: DraftHead | None, gpus: int = 1
    ) -> str:
        """Say in one line what the linears took and take now, and what the draft head takes, a GPU."""
        parts = []
        if self._dense_bytes:
            before = sum(self._dense_bytes.values())
            now = self._taken(model)
            parts.append(f"{len(self._dense_bytes)} MTP linears {before / _MIB:.0f} -> {now / _MIB:.0f} MiB")
        if head is None:
            parts.append("the model's output head")
        else:
            tokens = head.vocabulary if head.ids is None else len(head.ids)
            which = "all" if head.ids is None else "the likeliest"
            share = f"{which} {tokens:,} of {head.vocabulary:,} tokens"
            form = "" if head.precision == precision else f" in {NAMES[head.precision]}"
            parts.append(f"an output head{form} of {head.bytes / _MIB:.0f} MiB for {share}")
        if self._remark:
            parts[-1] += f" ({self._remark})"
        each = f" (on each of {gpus} GPUs)" if gpus > 1 else ""
        return f"vllm-qwen36-plugin: drafts from {NAMES[precision]}: {', '.join(parts)}{each}"


def _quantized_here(module: torch.nn.Module) -> bool:
    return type(getattr(module, "quant_method", None)).__module__.startswith(__package__)


def _stored_bytes(module: torch.nn.Module) -> int:
    tensors = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
