"""What share of the KV cache a copy of the output head takes, and up to how many positions it is faster."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from vllm_qwen36_plugin.draft_head.room import copied_by_vllm, share_of_cache, sure_states, wins_up_to  # noqa: E402

GIB = 1 << 30


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> None:
    """48 GiB: 20 in use, of which PyTorch holds 2 without using them."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (28 * GIB, 48 * GIB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 20 * GIB)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 18 * GIB)


def config(utilization: float = 0.75, fixed: int | None = None) -> Any:
    return SimpleNamespace(
        cache_config=SimpleNamespace(gpu_memory_utilization=utilization, kv_cache_memory_bytes=fixed)
    )


@pytest.mark.usefixtures("card")
class TestShare:
    def test_is_of_what_the_users_limit_leaves(self) -> None:
        # 30 GiB free, of which 12 are not vLLM's and 1.5 are to run: 16.5.
        assert share_of_cache(GIB, config()) == pytest.approx(1 / 16.5)

    def test_of_nothing_left_is_infinite(self) -> None:
        assert share_of_cache(GIB, config(0.3)) == float("inf")

    def test_of_bytes_that_are_given_back_is_nothing(self) -> None:
        assert share_of_cache(-GIB, config(0.3)) == 0.0

    def test_a_cache_of_a_fixed_size_loses_nothing_while_the_copy_fits(self) -> None:
        assert share_of_cache(GIB, config(fixed=27 * GIB)) == 0.0
        assert share_of_cache(GIB, config(fixed=28 * GIB)) == float("inf")


def test_vllms_own_copy_is_seen_where_vllm_has_one() -> None:
    def with_flag(value: Any) -> Any:
        return SimpleNamespace(speculative_config=SimpleNamespace(draft_lm_head_quantization=value))

    assert copied_by_vllm(with_flag("fp8"))
    assert not copied_by_vllm(with_flag(None))
    assert not copied_by_vllm(SimpleNamespace(speculative_config=SimpleNamespace()))


@pytest.mark.parametrize(
    ("copy", "wanted"),
    [
        # Microseconds at 1, 4, 16, 32, 64 positions; the head itself takes 600.
        ((200, 210, 260, 400, 590), 32),
        ((200, 210, 260, 400, 500), 64),
        ((200, 700, 260, 400, 500), 1),
        ((590, 210, 260, 400, 500), 0),
    ],
)
def test_a_copy_is_used_up_to_the_first_number_of_positions_at_which_it_is_not_faster(
    copy: tuple[int, ...], wanted: int
) -> None:
    times = iter(copy)
    asked: list[int] = []

    def timed(calls: Any) -> dict[str, float]:
        asked.append(len(calls["own"]()))
        return {"copy": float(next(times)), "own": 600.0}

    weight = torch.randn(64, 32)
    assert wins_up_to(lambda x: x, weight, timed) == wanted
    assert asked == [1, 4, 16, 32, 64][: len(asked)]


def test_without_a_gpu_nothing_is_timed() -> None:
    assert wins_up_to(lambda x: x, torch.randn(64, 32)) == 64


def test_states_that_are_timed_have_one_token_that_stands_out_of_all_others() -> None:
    torch.manual_seed(0)
    weight = torch.randn(4096, 512, dtype=torch.bfloat16) * 0.02
    logits = torch.nn.functional.linear(sure_states(weight, 48).float(), weight.float())
    assert torch.equal(logits.argmax(dim=1), torch.arange(48))
    best = logits.topk(2).values
    assert float((best[:, 0] - best[:, 1]).min()) > 2 * float(logits.std())
