"""A GPU that is none: what asks one is answered here, and noted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from vllm_qwen36_plugin.prefill import scratch
from vllm_qwen36_plugin.prefill.activations import reference_groups, values_of
from vllm_qwen36_plugin.prefill.eight_bit_words import Order
from vllm_qwen36_plugin.prefill.eight_bit_words import reference as rearrange
from vllm_qwen36_plugin.prefill.humming_8bit import KINDS
from vllm_qwen36_plugin.prefill.layouts import HUMMING_4, HUMMING_FLAT_4, marlin_scale_places
from vllm_qwen36_plugin.prefill.measure import FEW_TOKENS
from vllm_qwen36_plugin.prefill.profile import Card, Starts
from vllm_qwen36_plugin.prefill.shape import Shape

NAME = "NVIDIA Test GPU"
# Times that cross: exact from 512 tokens on, a8 and fp8 from 256.
MICROSECONDS = {
    "stock": lambda tokens: float(tokens),
    "exact": lambda tokens: 450.0,
    "a8": lambda tokens: 210.0,
    "fp8": lambda tokens: 200.0,
    "humming": lambda tokens: 0.9 * tokens if tokens <= 32 else 1.1 * tokens,
}


@dataclass(frozen=True)
class Shipped:
    """A profile that ships, for this card or another."""

    value: Starts
    device_names: tuple[str, ...] = ("Test GPU",)
    source: str = "derived: for a test"

    def starts(self, shape: Shape) -> Starts:
        return self.value


@dataclass
class FakeGpu:
    """``measured``: shape, numbers of tokens and routes of each measurement. ``broken``: what measuring raises."""

    driver: str = "1"
    shipped: list[Shipped] = field(default_factory=list)
    measured: list[tuple[Shape, list[int], list[str]]] = field(default_factory=list)
    broken: Exception | None = None
    fp8: bool = True
    gemms: tuple[str, ...] = ("vllm",)
    off: tuple[str, ...] = ()

    def card(self, device: torch.device, scratch_mib: int) -> Card:
        return Card(NAME, self.driver, {"torch": "1"}, scratch_mib)

    def time_routes(
        self,
        linear: Any,
        tensors: Sequence[torch.Tensor],
        fp8_scales: torch.Tensor | None,
        counts: Iterable[int],
        routes: Sequence[str],
        *_: Any,
        **__: Any,
    ) -> dict[str, dict[int, float]]:
        counts = list(counts)
        self.measured.append((linear.shape, counts, list(routes)))
        if self.broken is not None:
            raise self.broken
        few = FEW_TOKENS if linear.humming is not None else ()
        base = ("stock",) if linear.humming is None else ("stock", "humming")
        times = {name: {tokens: MICROSECONDS[name](tokens) for tokens in (*few, *counts)} for name in base}
        return times | {name: {tokens: MICROSECONDS[name](tokens) for tokens in counts} for name in routes}

    def quantize_tokens(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """As `dynamic_per_token_scaled_fp8_quant`."""
        scales = (x.float().abs().amax(dim=1, keepdim=True) / 448).clamp(min=1e-9)
        return (x.float() / scales).to(torch.float8_e4m3fn), scales

    def multiply(
        self,
        out: torch.Tensor,
        tokens: torch.Tensor,
        columns: torch.Tensor,
        row_scales: torch.Tensor,
        column_scales: torch.Tensor,
        gemm: str = "vllm",
    ) -> None:
        """As either GEMM, or off by a third if a test says so."""
        product = (tokens.float() @ columns.float()) * row_scales * column_scales.reshape(1, -1)
        out.copy_((product * (4 / 3 if gemm in self.off else 1)).to(out.dtype))


class EightBit:
    """Humming's kernel for activations of 8 bits, on the CPU; ``wrong`` is what a test makes of its result."""

    missing: ClassVar[dict[str, Exception]] = {}
    other_words: ClassVar[set[str]] = set()
    wrong: ClassVar[Callable[[torch.Tensor], torch.Tensor]] = staticmethod(lambda out: out)

    def __init__(self, shape: Shape, name: str, device: torch.device) -> None:
        if name in self.missing:
            raise self.missing[name]
        self.shape, self.name, self.kind = shape, name, KINDS[name]
        self.order: Order = "flat" if self.kind.dtype == "int8" else "signs"
        self.rows: list[int] = []

    def same_words(self, *_: torch.Tensor) -> bool:
        return self.name not in self.other_words

    def __call__(
        self, x: torch.Tensor, words: torch.Tensor, scales: torch.Tensor, out: torch.Tensor | None = None
    ) -> torch.Tensor:
        k, n = self.shape.k, self.shape.n
        self.rows.append(len(x))
        held = scratch.words(x.device, k, n)
        rearrange(words, held, 0, n, self.order)
        codes = (HUMMING_FLAT_4 if self.order == "flat" else HUMMING_4).codes(held, k, n)
        codes = codes ^ 8 if self.order == "flat" else torch.where(codes < 8, codes + 8, 15 - codes)
        in_order = scales[:, marlin_scale_places(n, grouped=len(scales) > 1)].float()
        dense = (codes - 8).float() * in_order.repeat_interleave(k // len(scales), dim=0)
        result = self.wrong(values_of(*reference_groups(x, self.kind.stored)) @ dense).to(x.dtype)
        return result if out is None else out.copy_(result)
