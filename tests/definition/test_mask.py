"""The replayed attention mask is causal and hides padding."""

from __future__ import annotations

import pytest

from gptq_hybrid.definition._layers import causal_mask


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_query_sees_the_past_and_no_padding(dtype: str) -> None:
    import torch

    kind = getattr(torch, dtype)
    padding = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    mask = causal_mask(torch.zeros(2, 4, 8, dtype=kind), padding)
    assert mask.shape == (2, 1, 4, 4)
    assert mask.dtype == kind
    visible = mask == 0
    assert visible[0, 0].tolist() == torch.ones(4, 4, dtype=torch.bool).tril().tolist()
    assert visible[1, 0, 3].tolist() == [True, True, False, False]
    assert mask[~visible].unique().tolist() == [torch.finfo(kind).min]


def test_without_padding_it_is_plainly_causal() -> None:
    import torch

    mask = causal_mask(torch.zeros(1, 3, 8), None)
    assert (mask == 0)[0, 0].tolist() == torch.ones(3, 3, dtype=torch.bool).tril().tolist()
