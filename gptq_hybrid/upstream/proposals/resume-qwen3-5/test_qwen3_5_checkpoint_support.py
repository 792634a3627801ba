# SPDX-FileCopyrightText: 2026 ModelCloud.ai
# SPDX-License-Identifier: Apache-2.0

from types import SimpleNamespace

import pytest

from gptqmodel.looper.gptq_checkpoint import validate_checkpoint_support
from gptqmodel.quantization import QuantizeConfig


def _model(model_type, **options):
    config = QuantizeConfig(bits=4, group_size=128, offload_to_disk=True, offload_to_disk_path="offload", **options)
    inner = SimpleNamespace(config=SimpleNamespace(model_type=model_type))
    return SimpleNamespace(quantize_config=config, model=inner)


@pytest.mark.parametrize("model_type", ["llama", "qwen3_moe", "qwen3_5", "qwen3_5_text"])
def test_supported_model_types(model_type):
    validate_checkpoint_support(_model(model_type))


def test_other_model_types_are_refused():
    with pytest.raises(NotImplementedError, match="qwen3_5"):
        validate_checkpoint_support(_model("gpt2"))


def test_dynamic_rules_are_refused_as_for_other_models():
    with pytest.raises(NotImplementedError, match="dynamic"):
        validate_checkpoint_support(_model("qwen3_5", dynamic={"-:.*down_proj": {}}))
