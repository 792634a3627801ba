# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM project
"""Four-bit weights on a CPU whose library was compiled without the kernel."""

from types import SimpleNamespace

import pytest
import torch

from vllm.model_executor.kernels.linear import (
    CPUWNA16LinearKernel,
    MPLinearLayerConfig,
    choose_mp_linear_kernel,
)
from vllm.platforms import current_platform
from vllm.scalar_type import scalar_types

pytestmark = pytest.mark.skipif(
    not current_platform.is_cpu(), reason="a kernel of the CPU backend"
)
CONFIG = MPLinearLayerConfig(
    full_weight_shape=(128, 64),
    partition_weight_shape=(128, 64),
    weight_type=scalar_types.uint4b8,
    act_type=torch.bfloat16,
    group_size=128,
    zero_points=False,
)


def test_layer_is_refused_when_the_kernel_is_not_compiled(monkeypatch):
    monkeypatch.setattr(torch.ops, "_C", SimpleNamespace())

    supported, reason = CPUWNA16LinearKernel.can_implement(CONFIG)

    assert not supported
    assert "AVX-512" in reason
    with pytest.raises(ValueError, match="AVX-512"):
        choose_mp_linear_kernel(CONFIG)


def test_layer_is_accepted_when_the_kernel_is_compiled(monkeypatch):
    compiled = SimpleNamespace(cpu_gemm_wna16=lambda *args: None)
    monkeypatch.setattr(torch.ops, "_C", compiled)

    assert CPUWNA16LinearKernel.can_implement(CONFIG) == (True, None)
