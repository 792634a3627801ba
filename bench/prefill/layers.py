"""Linears with random weights, built and repacked as vLLM builds its GPTQ linears, with the plugin's kernel."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch

BITS = 4


@dataclass(frozen=True, slots=True)
class Module:
    """A fused linear of the 27B: x ``[M, k]`` times W ``[k, n]``, in so many layers."""

    name: str
    k: int
    n: int
    layers: int


MODULES = (
    Module("qkv", 5120, 14336, 16),
    Module("qkvz", 5120, 16384, 48),
    Module("o/out", 6144, 5120, 64),
    Module("gate_up", 5120, 34816, 64),
    Module("down", 17408, 5120, 64),
)


@contextmanager
def vllm_config(**options: Any) -> Iterator[Any]:
    """A config of vLLM's for a model of the family, with these options for the plugin, as the current one."""
    from vllm.config import VllmConfig, set_current_vllm_config
    from vllm.distributed import init_distributed_environment, initialize_model_parallel
    from vllm.distributed.parallel_state import model_parallel_is_initialized

    config = VllmConfig()
    with set_current_vllm_config(config, check_compile=False), tempfile.TemporaryDirectory() as folder:
        # vLLM's parameters ask for their rank.
        if not model_parallel_is_initialized():
            init_distributed_environment(1, 0, f"file://{folder}/store", 0, backend="gloo")
            initialize_model_parallel(1)
        config.model_config = SimpleNamespace(
            hf_config=SimpleNamespace(architectures=["Qwen3_5ForConditionalGeneration"])
        )
        config.additional_config = {"qwen36": options}
        yield config


def random_weight(
    k: int, n: int, group: int, dtype: torch.dtype, device: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """qweight int32 ``[k / 8, n]`` and scales ``[groups, n]``; scales of both signs."""
    qweight = torch.empty(k * BITS // 32, n, dtype=torch.int32, device=device).random_(-(2**31), 2**31)
    scales = torch.empty(k // group, n, device=device).uniform_(1e-3, 1e-2)
    signs = torch.randint(0, 2, scales.shape, device=device) * 2 - 1
    return qweight, (scales * signs).to(dtype)


def kernel_config(k: int, n: int, group: int, dtype: torch.dtype) -> Any:
    """What vLLM's GPTQ linear method asks a kernel for. ``has_g_idx`` up to 0.29."""
    from dataclasses import fields

    from vllm.model_executor.kernels.linear import MPLinearLayerConfig
    from vllm.scalar_type import scalar_types

    asked: dict[str, Any] = {
        "full_weight_shape": (k, n),
        "partition_weight_shape": (k, n),
        "weight_type": scalar_types.uint4b8,
        "act_type": dtype,
        "group_size": group,
        "zero_points": False,
    }
    if any(field.name == "has_g_idx" for field in fields(MPLinearLayerConfig)):
        asked["has_g_idx"] = False
    return MPLinearLayerConfig(**asked)


def build(
    qweight: torch.Tensor, scales: torch.Tensor, kernel: type, group: int
) -> tuple[Any, torch.nn.Module]:
    """``kernel`` with one layer of that weight, repacked."""
    from vllm.model_executor.parameter import GroupQuantScaleParameter, PackedvLLMParameter

    k, n = qweight.shape[0] * 32 // BITS, qweight.shape[1]
    layer = torch.nn.Module()
    loader = {"weight_loader": lambda *_, **__: None}
    layer.register_parameter(
        "qweight",
        PackedvLLMParameter(
            data=qweight.clone(), input_dim=0, output_dim=1, packed_dim=0, packed_factor=32 // BITS, **loader
        ),
    )
    layer.register_parameter(
        "scales", GroupQuantScaleParameter(data=scales.clone(), input_dim=0, output_dim=1, **loader)
    )
    layer.register_parameter(
        "qzeros",
        PackedvLLMParameter(
            data=torch.zeros(scales.shape[0], n // 8, dtype=torch.int32, device=qweight.device),
            input_dim=0,
            output_dim=1,
            packed_dim=1,
            packed_factor=32 // BITS,
            **loader,
        ),
    )
    made = kernel(
        kernel_config(k, n, group, scales.dtype),
        w_q_param_name="qweight",
        w_s_param_name="scales",
        w_zp_param_name="qzeros",
    )
    made.process_weights_after_loading(layer)
    return made, layer
