"""The error noted for a module is the error of its output, on the calibration data."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from gptq_hybrid.common.errors import HybridError
from gptq_hybrid.upstream import gptaq_config, record_modules, refuse_batches
from gptq_hybrid.writer import judge


def solve(weight: Any, inputs: Any, **config: Any) -> tuple[Any, Any]:
    """Run gptqmodel's solver on one linear; returns its dequantized weight and the record."""
    import torch
    from gptqmodel import QuantizeConfig
    from gptqmodel.quantization.gptq import GPTQ

    linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    linear.weight.data = weight.clone()
    with record_modules() as records, torch.inference_mode():
        solver = GPTQ(linear, QuantizeConfig(bits=4, group_size=128, offload_to_disk=False, **config))
        solver.quantizer.configure(perchannel=True)
        solver.fallback, solver.expected_nsamples = solver.qcfg.fallback, inputs.shape[0]
        if len(inputs):
            solver.add_batch(inputs[None], (inputs @ weight.T)[None], batch_index=0)
        quantized = solver.quantize()[0]
    (record,) = records.values()
    return quantized, record


@pytest.fixture
def problem() -> SimpleNamespace:
    import torch

    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(256, 256, generator=generator)
    return SimpleNamespace(
        weight=torch.randn(64, 256, generator=generator),
        inputs=torch.randn(2048, 256, generator=generator) @ mixing,
    )


@pytest.mark.parametrize(
    "config",
    [
        {"desc_act": True, "damp_percent": 0.01},
        {"desc_act": True, "static_groups": True, "damp_percent": 0.01},
        {"desc_act": False, "damp_percent": 0.05},
    ],
)
def test_relative_error_equals_the_measured_one(problem: SimpleNamespace, config: dict[str, Any]) -> None:
    quantized, record = solve(problem.weight, problem.inputs, **config)
    delta = ((problem.weight - quantized) @ problem.inputs.T).double().square().sum()
    whole = (problem.weight @ problem.inputs.T).double().square().sum()
    assert record.outcome == "gptq"
    assert record.relative_error == pytest.approx(float(delta / whole), rel=1e-3)


def test_inputs_that_are_always_zero_are_counted(problem: SimpleNamespace) -> None:
    problem.inputs[:, 10:14] = 0
    _, record = solve(problem.weight, problem.inputs, desc_act=False)
    assert record.dead_columns == 4


def test_a_module_without_calibration_data_is_a_fallback(problem: SimpleNamespace) -> None:
    _, record = solve(problem.weight, problem.inputs[:0], desc_act=False)
    assert record.outcome == "fallback"
    assert record.relative_error is None


def solve_gptaq(weight: Any, inputs: Any, native: Any, **config: Any) -> tuple[Any, Any]:
    """Run gptqmodel's GPTAQ on one linear, in rows of 512 tokens."""
    import torch
    from gptqmodel import QuantizeConfig
    from gptqmodel.looper.named_module import NamedModule
    from gptqmodel.looper.native_processor import NATIVE_INPUTS_STATE_KEY
    from gptqmodel.quantization import GPTAQ

    linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    linear.weight.data = weight.clone()
    named = NamedModule(linear, "up_proj", "model.layers.0.mlp.up_proj", 0)
    named.state[NATIVE_INPUTS_STATE_KEY] = list(native.split(512))
    gptaq = gptaq_config({"alpha": 0.25})
    with record_modules() as records, torch.inference_mode():
        solver = GPTAQ(named, QuantizeConfig(bits=4, group_size=128, gptaq=gptaq, **config))
        solver.quantizer.configure(perchannel=True)
        for row in inputs.split(512) if len(inputs) else ():
            solver.add_batch(row[None], (row @ weight.T)[None])
        quantized = solver.quantize()[0]
    (record,) = records.values()
    return quantized, record


@pytest.mark.parametrize("config", [{"desc_act": True, "static_groups": True}, {"desc_act": False}])
def test_gptaq_is_recorded_with_its_true_error_and_its_tokens(
    problem: SimpleNamespace, config: dict[str, Any]
) -> None:
    problem.inputs[:, 10:14] = 0
    native = problem.inputs + 0.05 * problem.inputs.roll(1, dims=0)
    quantized, record = solve_gptaq(problem.weight, problem.inputs, native, damp_percent=0.01, **config)
    delta = ((problem.weight - quantized) @ problem.inputs.T).double().square().sum()
    whole = (problem.weight @ problem.inputs.T).double().square().sum()
    assert (record.module, record.outcome) == ("model.layers.0.mlp.up_proj", "gptaq")
    # gptqmodel itself counts four rows here.
    assert (record.tokens, record.columns, record.dead_columns) == (2048, 256, 4)
    assert record.relative_error == pytest.approx(float(delta / whole), rel=1e-3)
    verdict = judge([record])
    assert verdict.ok
    assert (verdict.starved, verdict.dead) == ((), (record.module,))


def test_gptaq_without_calibration_data_says_which_module(problem: SimpleNamespace) -> None:
    with pytest.raises(HybridError, match=r"layers\.0\.mlp\.up_proj saw no calibration data"):
        solve_gptaq(problem.weight, problem.inputs[:0].reshape(0, 256), problem.inputs[:0])


def test_gptaq_takes_one_row_at_a_time() -> None:
    refuse_batches(1)
    with pytest.raises(HybridError, match=r"batch size 4") as caught:
        refuse_batches(4)
    assert "batch size at 1" in str(caught.value)


def test_the_solver_is_restored_afterwards() -> None:
    from gptqmodel.quantization import GPTAQ
    from gptqmodel.quantization.gptq import GPTQ

    before = GPTQ.quantize, GPTQ.finalize_hessian, GPTAQ.quantize, GPTAQ.process_batch
    with record_modules():
        assert GPTQ.quantize is not before[0]
        assert GPTAQ.quantize is not before[2]
    assert (GPTQ.quantize, GPTQ.finalize_hessian, GPTAQ.quantize, GPTAQ.process_batch) == before
