# SPDX-FileCopyrightText: 2026 ModelCloud.ai
# SPDX-License-Identifier: Apache-2.0

import pytest
import torch

from gptqmodel.quantization import QuantizeConfig
from gptqmodel.quantization.gptq import GPTQ


def _quantize(batches):
    torch.manual_seed(1)
    module = torch.nn.Linear(32, 16, bias=False)
    original = module.weight.detach().clone()
    solver = GPTQ(module, qcfg=QuantizeConfig(bits=4, group_size=16, desc_act=False, offload_to_disk=False))
    solver.quantizer.configure(perchannel=True)
    for batch in batches:
        solver.add_batch(batch, None)
    weights, _, _, _, _, loss, _, samples = solver.quantize()
    return weights, original, loss, samples


@torch.no_grad()
def test_loss_does_not_depend_on_how_often_the_same_tokens_are_seen():
    torch.manual_seed(0)
    inputs = torch.randn(1, 64, 32)

    once, thrice = _quantize([inputs]), _quantize([inputs] * 3)

    assert (once[3], thrice[3]) == (64, 192)
    torch.testing.assert_close(once[0], thrice[0])
    assert thrice[2] == pytest.approx(once[2], rel=1e-3)


@torch.no_grad()
def test_loss_is_the_squared_error_of_a_tokens_outputs():
    torch.manual_seed(0)
    inputs = torch.randn(1, 4096, 32)

    weights, original, loss, _ = _quantize([inputs])
    error = (inputs[0] @ (weights - original).T).square().sum(dim=1).mean().item()

    # GPTQ's own sum leaves out the damping, so it is close to this and not equal.
    assert loss == pytest.approx(error, rel=0.1)
