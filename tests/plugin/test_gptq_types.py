"""vLLM's question about weight types: one more passes, the others are vLLM's to refuse."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("vllm")

pytestmark = pytest.mark.engine  # no engine, but vLLM's kernels are imported: some seconds


def test_eight_bits_pass_vllms_own_question_once_they_are_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.model_executor.layers.quantization import auto_gptq
    from vllm.scalar_type import scalar_types

    from vllm_qwen36_plugin.upstream.gptq_types import allow_weight_type

    refused: list[Any] = []

    def stock(quant_type: Any, group_size: int) -> None:
        refused.append((quant_type, group_size))
        raise ValueError("only 4 bits")

    monkeypatch.setattr(auto_gptq, "verify_marlin_supported", stock)
    allow_weight_type(scalar_types.uint8b128)
    first = auto_gptq.verify_marlin_supported
    allow_weight_type(scalar_types.uint8b128)
    assert auto_gptq.verify_marlin_supported is first
    auto_gptq.verify_marlin_supported(quant_type=scalar_types.uint8b128, group_size=128)
    with pytest.raises(ValueError, match="only 4 bits"):
        auto_gptq.verify_marlin_supported(quant_type=scalar_types.uint4b8, group_size=96)
    assert refused == [(scalar_types.uint4b8, 96)]


def test_a_gptq_module_without_that_question_is_a_compat_error(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.model_executor.layers.quantization import auto_gptq

    from vllm_qwen36_plugin.errors import CompatError
    from vllm_qwen36_plugin.upstream.gptq_types import allow_weight_type

    monkeypatch.delattr(auto_gptq, "verify_marlin_supported")
    with pytest.raises(CompatError, match="verify_marlin_supported"):
        allow_weight_type("a type")
