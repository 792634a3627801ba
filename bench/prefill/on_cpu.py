"""The plugin's prefill on a CPU, to try `engine.py` out: what needs CUDA or Triton is replaced, and nothing else.

The kernel, the op, its table, the self-test, the tiles and the ways are the plugin's own; unpacking and the FP8
product are PyTorch's, and starts are made up, since nothing is measured. Times from here say nothing.
"""

from __future__ import annotations

from typing import Any

import torch

from vllm_qwen36_plugin.packed import as_gptq, dequantize_words

# Both within the lengths that --tiny serves.
_EXACT, _FP8 = 32, 80


def install() -> None:
    """Offer the plugin's kernel on CPUs, over one that keeps weights packed as GPTQ has them."""
    from vllm.model_executor.kernels.linear.mixed_precision.MPLinearKernel import MPLinearKernel

    import vllm_qwen36_plugin.cpu_int4.models  # noqa: F401 - offers its kernel, which ours must come before
    from vllm_qwen36_plugin.compat import scaled_mm
    from vllm_qwen36_plugin.compat.linear_kernels import offer_first
    from vllm_qwen36_plugin.prefill import kernel, paths, prepare
    from vllm_qwen36_plugin.prefill.profile import Starts

    class PackedOnCpu(MPLinearKernel):  # type: ignore[misc]
        """Unpacks in every call."""

        @classmethod
        def get_min_capability(cls) -> int:
            return -1

        @classmethod
        def can_implement(cls, c: Any) -> tuple[bool, str | None]:
            return c.weight_type in kernel._BITS, None

        def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
            words, scales = as_gptq(getattr(layer, self.w_q_name), getattr(layer, self.w_s_name))
            for name, value in ((self.w_q_name, words), (self.w_s_name, scales)):
                setattr(layer, name, torch.nn.Parameter(value.contiguous(), requires_grad=False))

        def apply_weights(
            self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None
        ) -> torch.Tensor:
            words, scales = getattr(layer, self.w_q_name), getattr(layer, self.w_s_name)
            dense = dequantize_words(words, scales, kernel._BITS[self.config.weight_type])
            return torch.nn.functional.linear(x, dense, bias)

    # Machete's scales lie in natural order, as here.
    kernel._LAYOUTS[PackedOnCpu.__name__] = "machete"
    offer_first("CPU", PackedOnCpu)
    offer_first("CPU", kernel.RowDispatchKernel)
    paths.expand = _expand  # type: ignore[attr-defined]
    paths.quantize_rows = _quantize_rows  # type: ignore[attr-defined]
    scaled_mm.multiply = _multiply
    scaled_mm.works = lambda device, dtype, gemm: gemm == "vllm"  # type: ignore[assignment]
    scaled_mm.writes_strided = lambda device, dtype, gemm: True  # type: ignore[assignment]
    prepare._fp8_possible = lambda device: True
    prepare.Preparation._starts = lambda *_: Starts(_EXACT, _FP8)  # type: ignore[method-assign]


def _expand(
    words: torch.Tensor,
    scales: torch.Tensor,
    out: torch.Tensor,
    first: int,
    *,
    layout: str,
    bits: int,
    group_size: int,
    inverse: torch.Tensor | None = None,
) -> None:
    """As `vllm_qwen36_plugin.prefill.expand.expand`, from GPTQ's own order."""
    part = slice(first, first + out.shape[0])
    if inverse is None:
        out.copy_(dequantize_words(words[:, part], scales[:, part], bits))
    else:
        out.copy_(dequantize_words(words[:, part], scales[:, part].float() * inverse[part], bits))


def _quantize_rows(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    scales = x.float().abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / 448.0
    return (x.float() / scales).to(torch.float8_e4m3fn), scales


def _multiply(
    out: torch.Tensor,
    rows: torch.Tensor,
    columns: torch.Tensor,
    row_scales: torch.Tensor,
    column_scales: torch.Tensor,
    gemm: str,
) -> None:
    out.copy_((rows.float() @ columns.float()) * row_scales * column_scales)
