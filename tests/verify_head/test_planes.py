"""The two bits and the bounds: they hold for the worst hidden state, and are not far above it."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from tests.verify_head.made import Copied, head  # noqa: E402
from vllm_qwen36_plugin.verify_head.planes import WORD, Planes, make_planes  # noqa: E402


def refined(copied: Copied, planes: Planes) -> torch.Tensor:
    """The copy's weight with the two bits, read by the layout that `Planes` states."""
    k = copied.weight.shape[1]
    at = torch.arange(k)
    codes = planes.words[:, at % (k // WORD)] >> (2 * (at // (k // WORD))) & 3
    return copied.copy.float() + planes.scales[at // planes.group].float().t() * (codes - 1.5)


@pytest.mark.parametrize(("k", "group"), [(1024, 64), (2560, 32), (256, 16)])
def test_a_bound_holds_for_the_worst_hidden_state_and_is_near_it(k: int, group: int) -> None:
    copied = head(8, k)
    planes = make_planes(copied.weight, copied.logits)
    assert planes.group == group
    for matrix, bound, slack in (
        (copied.copy.float(), planes.far, 1.1),
        (refined(copied, planes), planes.near, 1.3),
    ):
        lacks = copied.weight.float() - matrix
        # Along what is lacking, which Cauchy and Schwarz leave no room for.
        size = lacks.norm(dim=1)
        worst = ((lacks / size[:, None]) * lacks).sum(dim=1)
        assert (worst <= bound).all()
        assert (bound <= worst * slack).all()


def test_two_bits_leave_less_than_a_third_of_the_error() -> None:
    copied = head()
    planes = make_planes(copied.weight, copied.logits)
    weight = copied.weight.float()
    before, after = (weight - copied.copy.float()).norm(), (weight - refined(copied, planes)).norm()
    assert after < before / 3


def test_a_copy_that_is_exact_leaves_only_what_rounding_may_do() -> None:
    weight = torch.ones(16, 256).bfloat16()
    planes = make_planes(weight, lambda x: torch.nn.functional.linear(x, weight))
    assert (planes.far <= weight.float().norm(dim=1) * 0.006).all()
    assert (planes.far > 0).all()


def test_other_types_and_widths_are_refused() -> None:
    copied = head(16, 256)
    with pytest.raises(ValueError, match="not bfloat16"):
        make_planes(copied.weight.half(), copied.logits)
    with pytest.raises(ValueError, match="not go in words"):
        make_planes(copied.weight[:, :200], copied.logits)
    broken = copied.weight.clone()
    broken[3, 5] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        make_planes(broken, copied.logits)
