# SPDX-FileCopyrightText: 2026 ModelCloud.ai
# SPDX-License-Identifier: Apache-2.0

import pytest
import torch

from gptqmodel.quantization import QuantizeConfig
from gptqmodel.quantization.gptq import GPTQ


def _solver(columns):
    module = torch.nn.Linear(columns, 4, bias=False)
    return GPTQ(module, qcfg=QuantizeConfig(bits=4, group_size=16, damp_percent=0.01, offload_to_disk=False))


def _hessian(columns):
    torch.manual_seed(columns)
    inputs = torch.randn(2 * columns, columns) * torch.logspace(-1, 1, columns)
    return inputs.T @ inputs / (2 * columns)


@torch.no_grad()
@pytest.mark.parametrize("columns", [1, 7, 512, 1025])
def test_factor_of_the_inverse(columns):
    hessian = _hessian(columns)
    original = hessian.clone()

    factor, damp = _solver(columns).hessian_inverse(hessian)

    damped = original + damp * original.diagonal().mean() * torch.eye(columns)
    assert torch.equal(hessian, original)
    assert torch.equal(factor, factor.triu())
    assert bool((factor.diagonal() > 0).all())
    product = factor.double() @ damped.double() @ factor.T.double()
    torch.testing.assert_close(product, torch.eye(columns, dtype=torch.float64), atol=2e-3, rtol=0)


@torch.no_grad()
def test_no_inverse_is_decomposed_again(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the inverse is formed")

    monkeypatch.setattr(torch, "cholesky_inverse", refuse)

    factor, _ = _solver(64).hessian_inverse(_hessian(64))

    assert factor is not None


@torch.no_grad()
def test_damping_is_raised_as_before_for_an_indefinite_matrix():
    solver = _solver(2)
    solver.qcfg.damp_auto_increment = 0.25

    factor, damp = solver.hessian_inverse(torch.tensor([[0.0, 1.0], [1.0, 0.0]]))

    assert factor is None
    assert damp == 1.0
