"""What start-up says of drafts."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from .head import DraftHead

_MIB = 1 << 20
_NAMES = {"bf16": "the checkpoint's own weights", "fp8": "FP8", "w4": "W4", "w8": "W8"}


class DraftReport:
    """Knows what the linears of the MTP head took before they were quantized."""

    def __init__(self) -> None:
        self._dense_bytes: dict[int, int] = {}

    def linear(self, layer: torch.nn.Module) -> None:
        """One more that is to be quantized, dense yet."""
        self._dense_bytes[id(layer)] = layer.weight.numel() * layer.weight.element_size()

    def left(self, layer: torch.nn.Module) -> int:
        """One that stays dense after all; how many are quantized without it."""
        del self._dense_bytes[id(layer)]
        return len(self._dense_bytes)

    def line(self, form: str, model: torch.nn.Module, head: DraftHead | None) -> str:
        """One line: weights of the linears before and now, and of the head."""
        parts = []
        if self._dense_bytes:
            before = sum(self._dense_bytes.values())
            now = sum(_packed_bytes(module) for module in model.modules() if _is_ours(module))
            parts.append(f"{len(self._dense_bytes)} MTP linears {before / _MIB:.0f} -> {now / _MIB:.0f} MiB")
        if head is None:
            parts.append("the model's output head")
        else:
            rows = head.vocabulary if head.ids is None else len(head.ids)
            of = "all" if head.ids is None else "the likeliest"
            parts.append(
                f"an output head of {head.bytes / _MIB:.0f} MiB for {of} {rows:,} of {head.vocabulary:,} tokens"
            )
        return f"vllm-qwen36-plugin: drafts from {_NAMES[form]}: {', '.join(parts)}"


def _is_ours(module: torch.nn.Module) -> bool:
    return type(getattr(module, "quant_method", None)).__module__.startswith(__package__)


def _packed_bytes(module: torch.nn.Module) -> int:
    held = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    return sum(tensor.numel() * tensor.element_size() for tensor in held)
