# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM project
"""The order in which registered kernels are considered."""

import pytest

from vllm.model_executor.kernels import linear
from vllm.platforms import PlatformEnum

KINDS = {
    "mp": "_POSSIBLE_KERNELS",
    "int8": "_POSSIBLE_INT8_KERNELS",
    "fp8": "_POSSIBLE_FP8_KERNELS",
    "nvfp4": "_POSSIBLE_NVFP4_KERNELS",
}


class Kernel:
    pass


@pytest.fixture
def registry(request, monkeypatch):
    name = KINDS[request.param]
    kernels = {key: list(value) for key, value in getattr(linear, name).items()}
    monkeypatch.setattr(linear, name, kernels)
    return request.param, kernels


@pytest.mark.parametrize("registry", KINDS, indirect=True)
@pytest.mark.parametrize("platform", [PlatformEnum.CUDA, PlatformEnum.OOT])
def test_kernel_can_be_registered_before_all_others(registry, platform):
    kind, kernels = registry
    before = list(kernels.get(platform, []))
    linear.register_linear_kernel(Kernel, platform, kind, first=True)

    assert kernels[platform] == [Kernel, *before]


@pytest.mark.parametrize("registry", KINDS, indirect=True)
def test_kernel_is_considered_last_by_default(registry):
    kind, kernels = registry
    before = list(kernels[PlatformEnum.CUDA])
    linear.register_linear_kernel(Kernel, PlatformEnum.CUDA, kind)

    assert kernels[PlatformEnum.CUDA] == [*before, Kernel]


def test_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="Unrecognized kernel type"):
        linear.register_linear_kernel(Kernel, PlatformEnum.CUDA, "int3")
