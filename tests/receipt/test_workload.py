"""The prompts: ours, the user's, and the text ahead of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from gptq_hybrid.calibration.prompts import SHIPPED_PROMPTS, Prompt, read_prompts
from gptq_hybrid.common.errors import HybridError
from gptq_hybrid.receipt.workload import Contexts, digest_of, marked, read_workload, records


def test_ours_are_six_of_each_of_six_domains_and_none_twice() -> None:
    workload = read_workload(None, chat=True)
    domains = ("chat", "chinese", "code", "german", "reasoning", "structured")
    assert {name: len(prompts) for name, prompts in workload.domains.items()} == dict.fromkeys(domains, 6)
    assert len({p.content for p in read_prompts(SHIPPED_PROMPTS, chat=True).prompts}) == 36


def test_the_digest_pins_the_prompts_of_this_release() -> None:
    # A receipt of another release is comparable only while this holds; prompts are never changed, only added anew.
    assert read_workload(None, chat=True).name.endswith("sha256 " + PINNED)


PINNED = "2f938ba636cba3b5"


def test_every_domain_of_a_file_gives_as_many_prompts(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text(
        '{"prompt": "a", "domain": "x"}\n{"prompt": "b", "domain": "x"}\n{"prompt": "c", "domain": "y"}\n'
        '{"prompt": "d"}\n'
    )
    workload = read_workload(path, chat=True)
    assert {name: len(prompts) for name, prompts in workload.domains.items()} == {"own": 1, "x": 1, "y": 1}
    assert len(workload.of(None)) == 3


def test_a_file_without_domains_is_one_of_its_name(tmp_path: Path) -> None:
    path = tmp_path / "tickets.jsonl"
    path.write_text('{"prompt": "a"}\n{"prompt": "b"}\n')
    assert {n: len(p) for n, p in read_workload(path, chat=True).domains.items()} == {"tickets": 2}


def test_a_mark_comes_first_so_that_no_two_prompts_share_a_prefix() -> None:
    prompt = Prompt(({"role": "user", "content": "Why?"},))
    one, other = marked(prompt, "1-0"), marked(prompt, "1-1")
    assert one.messages[0]["content"] == "(Request 1-0.)\n\nWhy?"
    assert digest_of([one]) != digest_of([other])
    assert marked(Prompt(text="Once"), "2").text == "(Request 2.)\n\nOnce"


def test_a_system_message_stays_ahead() -> None:
    prompt = Prompt(({"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}))
    assert [m["content"] for m in marked(prompt, "1").messages] == ["Be brief.", "(Request 1.)\n\nWhy?"]


def test_entries_are_the_same_everywhere_and_none_is_there_twice() -> None:
    lines = records(0, 500).splitlines()
    assert len(set(lines)) == 500
    assert lines[10:20] == records(10, 10).splitlines()
    assert lines[0] == FIRST


FIRST = (
    "Entry 0, day 1: pump 9 in hall B ran for 230 minutes at 3.5 bar and used "
    "30.6 kWh. Checked by Lindqvist; noise at high speed, vibration within limits."
)


def test_a_long_context_is_filled_to_less_than_two_entries_below_its_tokens() -> None:
    contexts = Contexts(len)
    prompt = Prompt(({"role": "user", "content": "Which pump ran longest?"},))
    long = contexts.long(prompt, "1", 1000, 4096).messages[0]["content"]
    assert 4096 - 400 < len(long) <= 4096
    assert long.endswith("\n\nWhich pump ran longest?")
    other = contexts.long(prompt, "1", 5000, 4096).messages[0]["content"]
    assert long[:200] != other[:200]


def test_a_prompt_that_is_longer_than_the_context_is_refused() -> None:
    with pytest.raises(HybridError, match="does not fit a context of 256"):
        Contexts(len).long(Prompt(text="x" * 300), "1", 0, 256)
