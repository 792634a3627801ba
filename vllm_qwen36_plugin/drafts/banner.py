"""What start-up says of drafts."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from .head import DraftHead

_MIB = 1 << 20
_NAMES = {"bf16": "the checkpoint's own weights", "fp8": "FP8", "w4": "W4", "w8": "W8"}


class DraftReport:
    """Counts what the linears of the MTP head took before they were quantized."""

    def __init__(self) -> None:
        self.linears = 0
        self._dense_bytes = 0
        self._dense_values = 0

    def linear(self, weight: torch.Tensor) -> None:
        """One more that is to be quantized, dense yet."""
        self.linears += 1
        self._dense_bytes += weight.numel() * weight.element_size()
        self._dense_values += weight.numel()

    def line(self, form: str, model: torch.nn.Module, head: DraftHead | None) -> str:
        """One line: weights of the linears before and now, and of the head."""
        parts = []
        if self.linears:
            now = sum(_packed_bytes(module) for module in model.modules() if _is_ours(module))
            parts.append(f"{self.linears} MTP linears {self._dense_bytes / _MIB:.0f} -> {now / _MIB:.0f} MiB")
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
