"""Hessians that cannot be inverted as they are: what gptqmodel did about it is recorded, the error stays true."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from gptq_hybrid.common.errors import HybridError
from gptq_hybrid.losses import ModuleRecord, find_flags
from gptq_hybrid.upstream import gptaq_config, record_modules
from gptq_hybrid.writer import judge
from tests.upstream.test_records import problem, solve, solve_gptaq  # noqa: F401

WIDTH = 256


def paired(share: float, pairs: int = WIDTH // 2) -> Any:
    """Ones on the diagonal, the first ``pairs`` of neighbours coupled; the least eigenvalue is 1 - ``share``."""
    import torch

    hessian = torch.eye(WIDTH)
    for i in range(0, 2 * pairs, 2):
        hessian[i, i + 1] = hessian[i + 1, i] = share
    return hessian


@pytest.fixture
def solve_with(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Any, ModuleRecord]]:
    """Solve with a Hessian put in the place of the accumulated one."""
    from gptqmodel.quantization.gptq import GPTQ

    def run(weight: Any, hessian: Any, **config: Any) -> tuple[Any, ModuleRecord]:
        import torch

        def finalize(self: Any, target_device: Any = None) -> Any:
            if self.H is None:
                self.materialize_global_hessian(target_device=target_device)
                self.H = hessian.clone()
            return self.H

        monkeypatch.setattr(GPTQ, "finalize_hessian", finalize)
        return solve(weight, torch.randn(512, WIDTH), **config)

    return run


def flags(record: ModuleRecord) -> tuple[str, ...]:
    (names,) = find_flags([record]).values()
    return names


def relative(weight: Any, quantized: Any, hessian: Any) -> float:
    delta, weight = (weight - quantized).double(), weight.double()
    hessian = hessian.double()
    return float(((delta @ hessian) * delta).sum() / ((weight @ hessian) * weight).sum())


def test_a_healthy_hessian_keeps_the_damping_asked_for(problem: SimpleNamespace) -> None:  # noqa: F811
    _, record = solve(problem.weight, problem.inputs, desc_act=False, damp_percent=0.02)
    assert (record.damp_asked, record.damp, record.floor) == (0.02, 0.02, 0.0)
    assert (record.reason, record.nonfinite_columns) == ("", 0)
    assert flags(record) == ()


def test_damping_that_had_to_be_raised_is_recorded_with_its_error(
    problem: SimpleNamespace,  # noqa: F811
    solve_with: Callable[..., Any],
) -> None:
    hessian = paired(1.295)  # least eigenvalue -0.295
    quantized, record = solve_with(problem.weight, hessian, desc_act=False, damp_percent=0.01)
    assert record.damp_asked == 0.01
    assert record.damp == pytest.approx(0.3)
    assert (record.outcome, record.floor) == ("gptq", 0.0)
    assert record.relative_error == pytest.approx(relative(problem.weight, quantized, hessian), rel=1e-2)
    assert flags(record) == ("damped",)
    assert judge([record]).damped == (record.module,)
    assert judge([record]).ok


@pytest.mark.parametrize("config", [{"desc_act": True, "static_groups": True}, {"desc_act": False}])
def test_a_raised_diagonal_is_recorded_and_taken_out_of_the_error(
    problem: SimpleNamespace,  # noqa: F811
    solve_with: Callable[..., Any],
    config: dict[str, Any],
) -> None:
    # Damping below 1 cannot do: gptqmodel lifts the diagonal, up to 0.1 here.
    hessian = paired(2.05, pairs=1)
    quantized, record = solve_with(problem.weight, hessian, damp_percent=0.01, **config)
    assert record.outcome == "gptq"
    assert record.floor == pytest.approx(0.1, rel=1e-3)
    assert record.damp > 0.5
    assert record.relative_error == pytest.approx(relative(problem.weight, quantized, hessian), rel=1e-3)
    assert record.relative_error > 0
    assert "floor" in flags(record)


def test_a_hessian_beyond_help_is_a_fallback_that_says_why(
    problem: SimpleNamespace,  # noqa: F811
    solve_with: Callable[..., Any],
) -> None:
    _, record = solve_with(problem.weight, paired(9.0), desc_act=False)
    assert (record.outcome, record.reason) == ("fallback", "not positive definite")
    assert (record.loss, record.relative_error, record.floor) == (None, None, 0.0)
    assert flags(record) == ("fallback",)
    (failure,) = judge([record]).failures
    assert "not positive definite" in failure


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_inputs_that_are_not_finite_are_counted_and_named(
    problem: SimpleNamespace,  # noqa: F811
    value: float,
) -> None:
    problem.inputs[5, 7] = value
    _, record = solve(problem.weight, problem.inputs, desc_act=False)
    assert (record.outcome, record.reason) == ("fallback", "inputs not finite")
    assert record.nonfinite_columns >= 1
    assert flags(record) == ("fallback", "nonfinite")


def test_a_module_without_tokens_says_so(problem: SimpleNamespace) -> None:  # noqa: F811
    _, record = solve(problem.weight, problem.inputs[:0], desc_act=False)
    assert (record.outcome, record.reason) == ("fallback", "too few tokens")
    assert flags(record) == ("fallback", "starved")


def test_a_nan_loss_keeps_what_its_hessian_said(problem: SimpleNamespace) -> None:  # noqa: F811
    problem.inputs[:, 10:14] = 0
    problem.weight[3, 40] = float("nan")
    _, record = solve(problem.weight, problem.inputs, desc_act=False)
    assert (record.outcome, record.reason) == ("nan", "NaN loss")
    assert (record.dead_columns, record.columns) == (4, WIDTH)
    assert flags(record) == ("nan", "dead")
    assert not judge([record]).ok


@pytest.mark.parametrize("config", [{"desc_act": True, "static_groups": True}, {"desc_act": False}])
def test_the_error_is_true_beside_dead_inputs(
    problem: SimpleNamespace,  # noqa: F811
    config: dict[str, Any],
) -> None:
    # Their weights are zeroed, which changes the weight and costs nothing.
    problem.inputs[:, 10:74] = 0
    quantized, record = solve(problem.weight, problem.inputs, damp_percent=0.01, **config)
    delta = ((problem.weight - quantized) @ problem.inputs.T).double().square().sum()
    whole = (problem.weight @ problem.inputs.T).double().square().sum()
    assert record.dead_columns == 64
    assert record.relative_error == pytest.approx(float(delta / whole), rel=1e-3)


def test_modules_that_share_a_factor_both_tell_of_its_damping(problem: SimpleNamespace) -> None:  # noqa: F811
    """The second takes the first's factor, and never inverts its own Hessian."""
    import torch
    from gptqmodel import QuantizeConfig
    from gptqmodel.quantization import gptq

    hessian = paired(2.05)
    cache = gptq.SharedHessianFactorCache(generation=0, cohort="x")
    with record_modules() as records, torch.inference_mode():
        for name in ("first", "second"):
            linear = torch.nn.Linear(WIDTH, 64, bias=False)
            linear.weight.data = problem.weight.clone()
            config = QuantizeConfig(bits=4, group_size=128, desc_act=False, offload_to_disk=False)
            solver = gptq.GPTQ(linear, config)
            solver.name, solver.fallback, solver.expected_nsamples = name, config.fallback, 2048
            solver.quantizer.configure(perchannel=True)
            solver.add_batch(problem.inputs[None], (problem.inputs @ problem.weight.T)[None], batch_index=0)
            solver.materialize_global_hessian()
            solver.H = hessian.clone()
            solver._shared_hessian_cache = cache
            solver.quantize()
    first, second = records["first"], records["second"]
    assert len(cache._values) == 1
    assert (second.floor, second.damp_asked) == (first.floor, first.damp_asked)
    assert second.floor == pytest.approx(0.1, rel=1e-3)
    assert second.relative_error == first.relative_error


def test_gptaq_says_which_module_it_cannot_invert(problem: SimpleNamespace) -> None:  # noqa: F811
    problem.inputs[5, 7] = float("nan")
    with pytest.raises(HybridError, match=r"layers\.0\.mlp\.up_proj: the Hessian holds NaN"):
        solve_gptaq(problem.weight, problem.inputs, problem.inputs, desc_act=False)
    assert gptaq_config({"alpha": 0.25}) is not None


def test_methods_are_restored_afterwards() -> None:
    from gptqmodel.quantization.gptq import GPTQ

    before = GPTQ.hessian_inverse, GPTQ._shared_factor_or_local
    with record_modules():
        assert GPTQ.hessian_inverse is not before[0]
        assert GPTQ._shared_factor_or_local is not before[1]
    assert (GPTQ.hessian_inverse, GPTQ._shared_factor_or_local) == before
