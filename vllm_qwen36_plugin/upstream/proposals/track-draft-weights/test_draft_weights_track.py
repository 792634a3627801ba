# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM project
"""Missing weights of a draft model are an error by default."""

from types import SimpleNamespace

import pytest
import torch

from vllm.config import LoadConfig
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader


class Draft(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = torch.nn.Linear(2, 2, bias=False)
        self.norm = torch.nn.LayerNorm(2, bias=False)

    def load_weights(self, weights):
        return {name for name, _ in weights}


@pytest.fixture
def load(monkeypatch):
    def _load(names, *, runner_type, quantization="auto_gptq", extra=None):
        config = LoadConfig(model_loader_extra_config=extra or {})
        loader = DefaultModelLoader(config)
        loader.counter_before_loading_weights = 0.0
        weights = [(name, torch.zeros(1)) for name in names]
        monkeypatch.setattr(loader, "get_all_weights", lambda *args: iter(weights))
        monkeypatch.setattr(loader, "_init_ep_weight_filter", lambda *args: None)
        monkeypatch.setattr(
            loader, "_init_mm_encoder_only_weight_filter", lambda *args: None
        )
        model_config = SimpleNamespace(
            quantization=quantization, runner_type=runner_type
        )
        loader.load_weights(Draft(), model_config)

    return _load


def test_missing_weight_of_a_quantized_draft_is_an_error(load):
    with pytest.raises(
        ValueError, match=r"not initialized from checkpoint.*fc\.weight"
    ):
        load(["norm.weight"], runner_type="draft")


def test_whole_draft_loads(load):
    load(["norm.weight", "fc.weight"], runner_type="draft")


def test_tracking_of_a_draft_can_be_turned_off(load):
    extra = {"enable_weights_track": False}
    load(["norm.weight"], runner_type="draft", extra=extra)


def test_quantized_target_is_not_tracked_by_default(load):
    load(["norm.weight"], runner_type="generate")
