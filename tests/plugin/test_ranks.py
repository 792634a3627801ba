"""What ranks say and do together."""

from __future__ import annotations

import pytest

from tests.ranks import Ranks
from vllm_qwen36_plugin import ranks as module
from vllm_qwen36_plugin.ranks import RankError, agreed, on_each_rank
from vllm_qwen36_plugin.upstream import tensor_parallel


@pytest.fixture
def three(monkeypatch: pytest.MonkeyPatch) -> Ranks:
    made = Ranks(3)
    monkeypatch.setattr(tensor_parallel, "rank", made.rank)
    monkeypatch.setattr(tensor_parallel, "told", made.told)
    return made


def test_what_all_find_is_said_once_and_what_one_finds_with_its_gpu() -> None:
    assert on_each_rank([[], []]) == []
    assert on_each_rank([["a"], ["a"]]) == ["a"]
    assert on_each_rank([["a"], ["b", "a"]]) == ["a", "on GPU 1 of 2: b"]
    assert on_each_rank([["a"]]) == ["a"]


def test_one_rank_speaks_for_all(three: Ranks) -> None:
    assert three.run(lambda _: module.first_rank()) == [True, False, False]


def test_what_all_can_make_all_have(three: Ranks) -> None:
    assert three.run(lambda rank: agreed(lambda: rank * 2)) == [0, 2, 4]


def test_what_fails_on_one_fails_on_all_with_its_reason(three: Ranks) -> None:
    def make(rank: int) -> int:
        if rank == 1:
            raise OSError("no room")
        return rank

    def work(rank: int) -> str:
        with pytest.raises(RankError) as caught:
            agreed(lambda: make(rank))
        return str(caught.value)

    assert three.run(work) == ["no room (on GPU 1 of 3)"] * 3


def test_alone_the_reason_is_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensor_parallel, "rank", lambda: tensor_parallel.Rank(0, 1))

    def fail() -> None:
        raise OSError("no room")

    with pytest.raises(RankError, match=r"^no room$"):
        agreed(fail)
