"""What settles a step's largest logits: the kernels, as Triton interprets them, and PyTorch's on CPUs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from tests.interpreted import bf16_as_on_a_gpu, interpreted_copy  # noqa: E402
from tests.verify_head.made import Copied, K, N, head, states  # noqa: E402
from vllm_qwen36_plugin.verify_head import kernel, on_cpu  # noqa: E402
from vllm_qwen36_plugin.verify_head.planes import make_planes  # noqa: E402

Settle = Callable[..., None]


@pytest.fixture(params=["kernels", "cpu"])
def settle(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Settle:
    if request.param == "cpu":
        return on_cpu.settle
    return interpreted(monkeypatch)


def interpreted(monkeypatch: pytest.MonkeyPatch) -> Settle:
    """The kernels', with few enough programs for an interpreter."""
    bf16_as_on_a_gpu(monkeypatch)
    copy = interpreted_copy(kernel, monkeypatch)
    monkeypatch.setattr(copy, "_PROGRAMS", 8)
    settle: Settle = copy.settle
    return settle


def settled(settle: Settle, copied: Copied, hidden: Any, most: int = 4096) -> tuple[Any, int, set[int]]:
    """The logits, how many tokens were listed, and which (``row * n + token``)."""
    planes = make_planes(copied.weight, copied.logits)
    logits = copied.logits(hidden)
    found, listed = torch.full((1,), 99, dtype=torch.int32), torch.full((most,), -1, dtype=torch.int32)
    settle(logits, hidden, copied.weight, planes, found, listed)
    return logits, int(found), {int(place) for place in listed if place >= 0}


@pytest.mark.parametrize("rows", [1, 3, 17])
def test_the_largest_logit_is_the_weights_own_and_others_stay_below(settle: Settle, rows: int) -> None:
    copied, hidden = head(), states(rows)
    logits, found, _ = settled(settle, copied, hidden)
    exact = copied.stock(hidden)
    assert 0 < found < logits.numel()
    assert torch.equal(logits.argmax(-1), exact.argmax(-1))
    assert torch.equal(logits.amax(-1), exact.amax(-1))


def test_of_equal_logits_the_first_token_wins_as_in_stock(settle: Settle) -> None:
    copied, hidden = head(whole=True), states(6, whole=True)
    # Twins of whatever wins, before and behind it, and one that rounds to the same logit.
    for row, best in enumerate(copied.stock(hidden).argmax(-1).tolist()):
        copied.weight[(best + 7 + row) % N] = copied.weight[best]
        copied.copy[(best + 7 + row) % N] = copied.copy[best] * 0.97
    exact = copied.stock(hidden)
    assert bool(((exact == exact.amax(-1, keepdim=True)).sum(-1) > 1).any())
    logits, _, _ = settled(settle, copied, hidden)
    assert torch.equal(logits.argmax(-1), exact.argmax(-1))


def test_a_winner_that_the_copy_hides_is_found(settle: Settle) -> None:
    copied, hidden = head(), states(2)
    best = copied.stock(hidden).argmax(-1)
    # Its copy is all zeros: nothing but the bound speaks for it.
    copied.copy[best] = 0
    logits, _, listed = settled(settle, copied, hidden)
    assert {row * N + int(token) for row, token in enumerate(best)} <= listed
    assert torch.equal(logits.argmax(-1), best)


def test_what_does_not_go_on_the_list_takes_the_whole_head(settle: Settle) -> None:
    copied, hidden = head(), states(3)
    logits, found, _ = settled(settle, copied, hidden, most=2)
    assert found > 2
    torch.testing.assert_close(logits, copied.stock(hidden), rtol=2**-7, atol=1e-3)


def test_a_hidden_state_that_is_no_number_is_left_to_the_whole_head(settle: Settle) -> None:
    copied, hidden = head(), states(2)
    hidden[1, 5] = float("nan")
    logits, found, _ = settled(settle, copied, hidden, most=64)
    assert found >= N
    assert bool(logits[1].isnan().all())


def test_rows_and_logits_may_lie_apart(settle: Settle) -> None:
    copied, wide = head(), states(3, K + 16)
    hidden = wide[:, :K]
    planes = make_planes(copied.weight, copied.logits)
    logits = torch.zeros(3, N + 64).bfloat16()
    logits[:, :N] = copied.logits(hidden)
    found, listed = torch.zeros(1, dtype=torch.int32), torch.zeros(960, dtype=torch.int32)
    settle(logits[:, :N], hidden, copied.weight, planes, found, listed)
    assert torch.equal(logits[:, :N].argmax(-1), copied.stock(hidden).argmax(-1))
    assert bool((logits[:, N:] == 0).all())


def test_kernels_list_what_the_cpu_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    copied, hidden = head(), states(5)
    _, found, listed = settled(on_cpu.settle, copied, hidden)
    _, by_kernels, theirs = settled(interpreted(monkeypatch), copied, hidden)
    assert listed == theirs
    assert found == by_kernels == len(listed)
