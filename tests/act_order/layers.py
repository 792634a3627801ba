"""Linears of vLLM as far as their methods are concerned, and a decoder layer made of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from gptq_hybrid.packing import dequantize, natural_g_idx, pack, quantize_rtn

HIDDEN, INNER, GROUP = 64, 128, 32
CONFIG = {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "sym": True, "desc_act": True}
PARTS = ("qweight", "scales", "qzeros")


@contextmanager
def one_rank() -> Iterator[None]:
    """vLLM building a model on one CPU, whose packed linears have the plugin's kernel, with AVX-512 too."""
    from vllm.config import VllmConfig, set_current_vllm_config
    from vllm.model_executor import parameter
    from vllm.platforms import current_platform

    from vllm_qwen36_plugin.cpu import packed_weights

    if not current_platform.is_cpu():
        pytest.skip("checks numbers with the plugin's CPU kernel")
    packed_weights.offer()
    with pytest.MonkeyPatch.context() as patch, set_current_vllm_config(VllmConfig()):
        patch.setattr(packed_weights, "stock_gemm_missing", lambda: True)
        patch.setattr(parameter, "get_tensor_model_parallel_rank", lambda: 0)
        patch.setattr(parameter, "get_tensor_model_parallel_world_size", lambda: 1)
        yield


def act_order_config() -> Any:
    from vllm_qwen36_plugin.act_order.config import ActOrderConfig

    return ActOrderConfig.from_config(dict(CONFIG))


class Layer(torch.nn.Module):  # type: ignore[misc]
    """A linear in act order, with what a checkpoint holds for it."""

    def __init__(self, config: Any, prefix: str, inputs: int, outputs: list[int], *, ranks: int = 1) -> None:
        super().__init__()
        from vllm_qwen36_plugin.act_order.method import ActOrderLinearMethod

        self.quant_method = ActOrderLinearMethod(config, prefix, config.siblings)
        config.siblings.add(prefix, self)
        self.inputs, self.outputs = inputs, outputs
        self.quant_method.create_weights(
            self, inputs // ranks, outputs, inputs, sum(outputs), torch.bfloat16, weight_loader=None
        )

    def load(self, seed: int, *, permuted: bool = True, order: int | None = None) -> torch.Tensor:
        """Random weights in act order; returns the dense matrix [outputs, inputs].

        ``order``: a seed of its own for ``g_idx``, for layers that share it.
        """
        generator = torch.Generator().manual_seed(seed)
        dense = torch.randn(sum(self.outputs), self.inputs, generator=generator)
        stored = pack(*quantize_rtn(dense, 4, GROUP), 4)
        g_idx = natural_g_idx(self.inputs, GROUP)
        if order is not None:
            generator = torch.Generator().manual_seed(order)
        if permuted:
            g_idx = g_idx[torch.randperm(self.inputs, generator=generator)]
        for name in PARTS:
            getattr(self, name).data.copy_(stored[name])
        for _ in self.outputs:  # once a shard, as vLLM does
            self.g_idx.weight_loader(self.g_idx, g_idx, 0)
        return dequantize(**{name: stored[name] for name in PARTS}, g_idx=g_idx, bits=4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.quant_method.apply(self, x)

    def finish(self) -> None:
        self.quant_method.process_weights_after_loading(self)


class Plain(torch.nn.Module):  # type: ignore[misc]
    """A linear without quantization."""

    def __init__(self, inputs: int, outputs: int, seed: int) -> None:
        super().__init__()
        from vllm.model_executor.layers.linear import UnquantizedLinearMethod

        self.quant_method = UnquantizedLinearMethod()
        self.quant_method.create_weights(
            self, inputs, [outputs], inputs, outputs, torch.bfloat16, weight_loader=None
        )
        generator = torch.Generator().manual_seed(seed)
        self.weight.data.copy_(torch.randn(outputs, inputs, generator=generator))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.quant_method.apply(self, x)


class Decoder(torch.nn.Module):  # type: ignore[misc]
    """What the norms of a decoder layer feed, by vLLM's names; ``mixer`` is linear_attn or self_attn."""

    def __init__(self, config: Any, mixer: str, *, number: int = 0) -> None:
        super().__init__()
        from vllm.model_executor.layers.layernorm import GemmaRMSNorm

        prefix = f"model.layers.{number}"
        self.mixer = mixer
        block, mlp = torch.nn.Module(), torch.nn.Module()
        if mixer == "linear_attn":
            block.conv1d = Plain(4, INNER, 1)
            block.in_proj_qkvz = Layer(config, f"{prefix}.{mixer}.in_proj_qkvz", HIDDEN, [INNER, HIDDEN])
            block.in_proj_ba = Plain(HIDDEN, 32, 2)
            block.out_proj = Layer(config, f"{prefix}.{mixer}.out_proj", INNER, [HIDDEN])
        else:
            block.qkv_proj = Layer(config, f"{prefix}.{mixer}.qkv_proj", HIDDEN, [INNER, HIDDEN])
            block.o_proj = Layer(config, f"{prefix}.{mixer}.o_proj", INNER, [HIDDEN])
        mlp.gate_up_proj = Layer(config, f"{prefix}.mlp.gate_up_proj", HIDDEN, [INNER, INNER])
        mlp.down_proj = Layer(config, f"{prefix}.mlp.down_proj", INNER, [HIDDEN])
        self.add_module(mixer, block)
        self.mlp = mlp
        for seed, name in enumerate(("input_layernorm", "post_attention_layernorm")):
            norm = GemmaRMSNorm(HIDDEN, eps=1e-6).to(torch.bfloat16)
            norm.weight.data.copy_(torch.randn(HIDDEN, generator=torch.Generator().manual_seed(seed)) * 0.2)
            self.add_module(name, norm)

    def load(self, *, permuted: bool = True) -> None:
        for seed, layer in enumerate(module for module in self.modules() if isinstance(module, Layer)):
            layer.load(seed, permuted=permuted)

    def forward(
        self, x: torch.Tensor, residual: torch.Tensor | None
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """What each linear behind a norm returns, and the residual."""
        out = {}
        if residual is None:
            residual, x = x, self.input_layernorm(x)
        else:
            x, residual = self.input_layernorm(x, residual)
        block = getattr(self, self.mixer)
        for name in ("in_proj_qkvz", "in_proj_ba", "qkv_proj"):
            if hasattr(block, name):
                out[name] = getattr(block, name)(x)
        x = out["qkv_proj" if self.mixer == "self_attn" else "in_proj_qkvz"][..., :HIDDEN] * 0.1
        x, residual = self.post_attention_layernorm(x, residual)
        gate, up = self.mlp.gate_up_proj(x).chunk(2, dim=-1)
        out["down_proj"] = self.mlp.down_proj(torch.nn.functional.silu(gate) * up)
        return out, residual


def finish(model: torch.nn.Module) -> None:
    """As vLLM does when all is loaded: module after module, those that are not done yet."""
    for module in list(model.modules()):
        if hasattr(module, "quant_method") and not getattr(module, "done", False):
            module.quant_method.process_weights_after_loading(module)
            module.done = True
