"""The error noted for a module is the error of its output, on the calibration data."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from gptq_hybrid.compat import record_modules


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


def test_the_solver_is_restored_afterwards() -> None:
    from gptqmodel.quantization.gptq import GPTQ

    before = GPTQ.quantize, GPTQ.finalize_hessian
    with record_modules():
        assert GPTQ.quantize is not before[0]
    assert (GPTQ.quantize, GPTQ.finalize_hessian) == before
