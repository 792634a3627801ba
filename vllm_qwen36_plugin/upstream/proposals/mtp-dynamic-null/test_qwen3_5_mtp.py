# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM project
"""Building the MTP module of Qwen3.5 from a quantized checkpoint."""

from types import SimpleNamespace

import pytest
import torch

from vllm.config import VllmConfig, set_current_vllm_config
from vllm.model_executor.models import qwen3_5_mtp


class StubModule(torch.nn.Module):
    def __init__(self, *args, **kwargs):
        super().__init__()


class StubQuantConfig:
    def get_name(self):
        return "auto_gptq"


@pytest.fixture
def build(monkeypatch):
    """Build the predictor; return the quantization config its layer was given."""
    seen = []

    class StubDecoderLayer(StubModule):
        def __init__(self, vllm_config, **kwargs):
            super().__init__()
            seen.append(vllm_config.quant_config)

    for name in ("VocabParallelEmbedding", "ColumnParallelLinear", "Qwen3_5RMSNorm"):
        monkeypatch.setattr(qwen3_5_mtp, name, StubModule)
    monkeypatch.setattr(qwen3_5_mtp, "Qwen3_5DecoderLayer", StubDecoderLayer)
    monkeypatch.setattr(
        qwen3_5_mtp, "is_model_fused_shared_expert_compatible", lambda *args: False
    )

    def _build(quantization_config):
        text_config = SimpleNamespace(
            vocab_size=8, hidden_size=4, num_hidden_layers=1, rms_norm_eps=1e-6
        )
        vllm_config = VllmConfig()
        vllm_config.model_config = SimpleNamespace(
            hf_text_config=text_config,
            hf_config=SimpleNamespace(quantization_config=quantization_config),
        )
        vllm_config.quant_config = StubQuantConfig()
        with set_current_vllm_config(vllm_config):
            qwen3_5_mtp.Qwen3_5MultiTokenPredictor(vllm_config=vllm_config)
        return seen.pop()

    return _build


@pytest.mark.parametrize("quantization_config", [{}, {"dynamic": None}])
def test_mtp_is_quantized_without_dynamic_rules(build, quantization_config):
    assert isinstance(build(quantization_config), StubQuantConfig)


def test_mtp_is_excluded_by_a_dynamic_rule(build):
    assert build({"dynamic": {r"-:^mtp\.": {}}}) is None
