"""The head for drafts over several ranks: the logits and tokens of one rank's head, whoever has which channels."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("vllm")

from tests.draft_head.test_head import VOCABULARY, WIDTH, Dense, hidden  # noqa: E402
from tests.ranks import Ranks  # noqa: E402
from vllm_qwen36_plugin.draft_head import sharded  # noqa: E402
from vllm_qwen36_plugin.draft_head.head import DraftHead  # noqa: E402
from vllm_qwen36_plugin.ranks import RankError  # noqa: E402
from vllm_qwen36_plugin.upstream import tensor_parallel  # noqa: E402

pytestmark = pytest.mark.engine  # no engine, but vLLM is imported: some seconds

# Most of them in the first half of the vocabulary, as the likeliest tokens are: one rank has few, or none.
LOW = torch.arange(0, 256)
UNEVEN = torch.cat([torch.arange(0, 250), torch.arange(600, 606)])
EVEN = torch.arange(0, VOCABULARY, 5)[:128]
# Padded as vLLM pads it, to parts of one size.
PADDED = 768


@pytest.fixture(params=[2, 4])
def ranks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Ranks:
    made = Ranks(request.param)
    monkeypatch.setattr(sharded, "rank", made.rank)
    monkeypatch.setattr(sharded, "gathered", made.gathered)
    monkeypatch.setattr(sharded, "gathered_logits", made.gathered_logits)
    monkeypatch.setattr(tensor_parallel, "rank", made.rank)
    monkeypatch.setattr(tensor_parallel, "told", made.told)
    monkeypatch.setattr(sharded, "_CHANNELS", 100)
    return made


@pytest.fixture(autouse=True)
def kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.model_executor import parameter

    from vllm_qwen36_plugin.cpu.packed_weights import offer

    offer()
    monkeypatch.setattr(parameter, "get_tensor_model_parallel_rank", lambda: 0)
    monkeypatch.setattr(parameter, "get_tensor_model_parallel_world_size", lambda: 1)


class Part(torch.nn.Module):
    """One rank's part of a head, as vLLM cuts it."""

    def __init__(self, whole: torch.Tensor, rank: int, ranks: int) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(whole.chunk(ranks)[rank].clone(), requires_grad=False)
        start = rank * (PADDED // ranks)
        end = min(start + PADDED // ranks, VOCABULARY)
        self.shard_indices = SimpleNamespace(org_vocab_start_index=start, org_vocab_end_index=end)


def whole_head() -> torch.Tensor:
    return Dense(PADDED).weight.data


def heads(ranks: Ranks, ids: Any, precision: Any = "bf16") -> list[tuple[Any, Any, Any]]:
    """Of each rank: its part of the head, and the logits and tokens that it computes with the others."""

    def work(rank: int) -> tuple[Any, Any, Any]:
        part = Part(whole_head(), rank, ranks.size)
        head = sharded.make_sharded(part, VOCABULARY, ids, precision)
        return head, head.logits(hidden(40)), head.top(hidden(40))

    return ranks.run(work)


@pytest.mark.parametrize("ids", [LOW, UNEVEN, EVEN, None], ids=["low", "uneven", "even", "all"])
def test_every_rank_has_the_logits_and_tokens_of_the_whole_head(ranks: Ranks, ids: Any) -> None:
    expected = DraftHead(Dense(PADDED), VOCABULARY, ids, "bf16")
    for head, logits, top in heads(ranks, ids):
        assert logits.shape == (40, VOCABULARY)
        torch.testing.assert_close(logits, expected.logits(hidden(40)))
        assert torch.equal(top, logits.argmax(-1))
        assert len(head.linear.weight) == (PADDED if ids is None else len(ids)) // ranks.size


def test_channels_are_those_of_the_target_bit_for_bit(ranks: Ranks) -> None:
    parts = [head.linear.weight.data for head, _, _ in heads(ranks, UNEVEN)]
    assert torch.equal(torch.cat(parts), whole_head()[UNEVEN])


def test_of_equal_logits_the_first_token_wins_over_all_ranks(ranks: Ranks) -> None:
    def work(rank: int) -> Any:
        head = sharded.make_sharded(Part(whole_head(), rank, ranks.size), VOCABULARY, EVEN, "bf16")
        return head.top(torch.zeros(2, WIDTH).bfloat16()).tolist()

    assert ranks.run(work) == [[0, 0]] * ranks.size


def test_parts_in_fewer_bits_are_equal_and_have_the_logits_within_rounding(ranks: Ranks) -> None:
    ids = torch.arange(0, 64 * ranks.size)
    exact = DraftHead(Dense(PADDED), VOCABULARY, ids, "bf16").logits(hidden(40))[:, ids].float()
    made = heads(ranks, ids, "w8")
    assert len({head.bytes for head, _, _ in made}) == 1
    for _, logits, _ in made:
        error = (logits[:, ids].float() - exact).norm()
        assert 0 < error < 0.05 * exact.norm()


def test_if_it_fails_on_one_rank_none_has_one(ranks: Ranks, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rank that drafts from the target's head would wait for the others in another exchange."""
    stock = sharded.ShardedDraftHead

    def fails_on_the_last(*arguments: Any) -> Any:
        if ranks.rank().number == ranks.size - 1:
            raise ValueError("no such kernel")
        return stock(*arguments)

    monkeypatch.setattr(sharded, "ShardedDraftHead", fails_on_the_last)

    def work(rank: int) -> str:
        with pytest.raises(RankError) as caught:
            sharded.make_sharded(Part(whole_head(), rank, ranks.size), VOCABULARY, EVEN, "bf16")
        return str(caught.value)

    said = f"no such kernel (on GPU {ranks.size - 1} of {ranks.size})"
    assert ranks.run(work) == [said] * ranks.size
