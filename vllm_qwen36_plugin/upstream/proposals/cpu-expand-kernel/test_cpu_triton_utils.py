# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM project
"""The CPU fallback of the rejection sampler's expand_kernel."""

import pytest
import torch

from vllm.platforms import current_platform
from vllm.utils.cpu_triton_utils import _expand_kernel_impl

pytestmark = pytest.mark.skipif(
    not current_platform.is_cpu(), reason="fallbacks of the CPU backend"
)


@pytest.fixture(scope="module", autouse=True)
def _load_cpu_ops():
    current_platform.import_kernels()


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (torch.tensor([0.8, 1.5]), [0.8, 0.8, 1.5, 1.5]),
        (torch.tensor([20, 40], dtype=torch.int32), [20, 20, 40, 40]),
        (torch.tensor([20, 40], dtype=torch.int64), [20, 20, 40, 40]),
    ],
    ids=["temperature", "top_k", "int64"],
)
def test_each_draft_token_gets_the_value_of_its_request(values, expected):
    output = torch.full((4,), -7, dtype=values.dtype)
    cu_num_tokens = torch.tensor([2, 4], dtype=torch.int32)

    _expand_kernel_impl(output, values, cu_num_tokens, 0, 1, MAX_NUM_TOKENS=32)

    torch.testing.assert_close(output, torch.tensor(expected, dtype=values.dtype))


def test_greedy_temperature_is_replaced_and_empty_requests_are_skipped():
    output = torch.full((3,), -7.0)
    temperature = torch.tensor([0.0, 0.7, 0.9])
    cu_num_tokens = torch.tensor([2, 2, 3], dtype=torch.int32)

    _expand_kernel_impl(output, temperature, cu_num_tokens, 0, 1)

    torch.testing.assert_close(output, torch.tensor([1.0, 1.0, 0.9]))
