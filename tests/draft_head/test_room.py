"""What share of the KV cache a copy of the output head takes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from vllm_qwen36_plugin.draft_head.room import copied_by_vllm, share_of_cache  # noqa: E402

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
