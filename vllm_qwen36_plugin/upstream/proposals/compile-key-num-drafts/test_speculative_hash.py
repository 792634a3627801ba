# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM project
"""What SpeculativeConfig adds to the key of the compile cache."""

import pytest

from vllm.config import SpeculativeConfig


def make(**fields):
    """A config as it stands after validation, which would need a checkpoint."""
    config = object.__new__(SpeculativeConfig)
    defaults = {"method": "mtp", "draft_model_config": None}
    for name, value in {**defaults, **fields}.items():
        object.__setattr__(config, name, value)
    return config


@pytest.mark.parametrize("method", ["mtp", "eagle3", "dflash"])
def test_number_of_speculative_tokens_is_part_of_the_hash(method):
    hashes = {
        make(method=method, num_speculative_tokens=num).compute_hash()
        for num in (1, 2, 7)
    }

    assert len(hashes) == 3


def test_equal_configs_have_equal_hashes():
    first, second = (make(num_speculative_tokens=2) for _ in range(2))

    assert first.compute_hash() == second.compute_hash()
