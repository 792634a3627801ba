# SPDX-FileCopyrightText: 2026 ModelCloud.ai
# SPDX-License-Identifier: Apache-2.0

import copy

import pytest
import torch

from gptqmodel.quantization import QuantizeConfig
from gptqmodel.quantization.gptq import GPTQ
from gptqmodel.quantization.quantizer import Quantizer


GROUP_SIZE = 16


def _solver(rows, columns, **options):
    torch.manual_seed(0)
    module = torch.nn.Linear(columns, rows, bias=False)
    config = QuantizeConfig(
        bits=4, group_size=GROUP_SIZE, desc_act=True, static_groups=True, offload_to_disk=False, **options
    )
    solver = GPTQ(module, qcfg=config)
    solver.quantizer.configure(perchannel=True)
    solver.add_batch(torch.randn(1, 2 * columns, columns), None)
    return solver


@torch.no_grad()
@pytest.mark.parametrize("columns", [128, 120])
@pytest.mark.parametrize("options", [{}, {"mse": 2.4}, {"sym": False}], ids=["plain", "mse", "asym"])
def test_scales_are_those_of_a_search_a_group(columns, options):
    solver = _solver(24, columns, **options)
    weight = solver.module.weight.detach().float()
    scales, zeros = [], []
    for first in range(0, columns, GROUP_SIZE):
        quantizer = copy.deepcopy(solver.quantizer)
        quantizer.find_params(weight[:, first : first + GROUP_SIZE], weight=True)
        scales.append(quantizer.scale)
        zeros.append(quantizer.zero)

    _, scale, zero, *_ = solver.quantize()

    assert torch.equal(scale, torch.cat(scales, dim=1))
    assert torch.equal(zero, torch.cat(zeros, dim=1))


@torch.no_grad()
def test_number_of_searches_does_not_grow_with_the_number_of_groups(monkeypatch):
    calls = []
    find_params = Quantizer.find_params

    def count(self, *args, **kwargs):
        calls.append(self)
        return find_params(self, *args, **kwargs)

    monkeypatch.setattr(Quantizer, "find_params", count)

    counts = []
    for columns in (128, 512):
        calls.clear()
        _solver(24, columns, mse=2.4).quantize()
        counts.append(len(calls))

    assert counts[0] == counts[1]
