"""bench/drafts/parts: steps along a reply, ratios of them, and the mixes that are compared."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("vllm")

from bench.drafts import parts  # noqa: E402
from vllm_qwen36_plugin.drafts.settings import DraftSettings  # noqa: E402

PROMPT = parts._PROMPT


def reply(new: list[int]) -> list[int]:
    return [0] * PROMPT + new


def drafted(tokens: list[int], wrong: set[int], ahead: int) -> list[int]:
    """What is drafted at each place for ``ahead`` tokens on: the reply's own token, or at ``wrong`` another."""
    return [-1 if place in wrong else tokens[place + ahead] for place in range(len(tokens) - ahead)]


def test_a_step_ends_at_the_first_draft_that_is_not_the_replys_token() -> None:
    tokens = reply([1, 2, 3, 4, 5, 6, 7, 8, 9])
    right = drafted(tokens, set(), 2), drafted(tokens, set(), 3)
    # The prompt's step gave token 1; each step then adds three.
    assert parts._steps(tokens, *right) == (3, 6)
    # A second draft counts for nothing where the first is wrong.
    never = drafted(tokens, set(range(len(tokens))), 2)
    assert parts._steps(tokens, never, right[1]) == (7, 0)
    assert parts._steps(tokens, right[0], drafted(tokens, set(range(len(tokens))), 3)) == (4, 4)


def test_a_drafter_against_itself_has_no_error_and_one_that_accepts_less_is_below_one() -> None:
    counts = torch.tensor([[10.0, 15.0], [12.0, 9.0], [9.0, 13.0]], dtype=torch.float64)
    assert parts.over(counts, counts) == (1.0, 0.0)
    fewer = counts - torch.tensor([[0.0, 3.0], [0.0, 0.0], [0.0, 4.0]], dtype=torch.float64)
    ratio, error = parts.over(fewer, counts)
    assert ratio == pytest.approx((1 + 30 / 31) / (1 + 37 / 31))
    assert 0 < error < 0.1


def test_the_drafter_that_the_plugin_makes_in_w4_is_among_those_compared() -> None:
    named = {"fc": "fc", "qkv": "layers.0.self_attn.qkv_proj", "o": "layers.0.self_attn.o_proj",
             "gate_up": "layers.0.mlp.gate_up_proj", "down": "layers.0.mlp.down_proj"}  # fmt: skip
    settings = DraftSettings("w4", None, None)
    made = {part: settings.form_of(name) for part, name in named.items()} | {"head": settings.form}
    assert parts.mixes()["fc in W8, the rest in W4"] == made
    for part in parts.PARTS:
        alone = parts.mixes()[f"{part} in W4, the rest in BF16"]
        assert [name for name, form in alone.items() if form == "w4"] == [part]
