"""``qwen36 tune drafts``: prompts from files, and long contexts from prompts."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from gptq_hybrid.calibration.prompts import Prompt, Prompts, read_prompts
from gptq_hybrid.common.errors import HybridError
from vllm_qwen36_plugin.tune.drafts.prompts import Contexts, require_bytes


class Characters:
    """A tokenizer whose tokens are characters."""

    def count(self, prompt: Prompt) -> int:
        return len(prompt.text) + sum(len(message["content"]) for message in prompt.messages)

    def encode(self, text: str) -> list[int]:
        return [ord(c) for c in text]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(map(chr, ids))


def written(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def bodies(path: Path, *, chat: bool = True) -> list[dict[str, Any]]:
    return [prompt.body() for prompt in read_prompts(path, chat=chat).prompts]


def test_the_three_forms(tmp_path: Path) -> None:
    user = {"role": "user", "content": "Hello?"}
    for row, body in [
        ({"messages": [user]}, {"messages": [user]}),
        ({"messages": [user, {"role": "assistant", "content": "Hi."}]}, {"messages": [user]}),
        ({"conversations": [{"from": "human", "value": "Hello?"}]}, {"messages": [user]}),
        ({"prompt": "Hello?"}, {"messages": [user]}),
        ({"prompt": [user]}, {"messages": [user]}),
        ({"text": "Once upon"}, {"prompt": "Once upon"}),
    ]:
        assert bodies(written(tmp_path / "p.jsonl", row)) == [body]


def test_a_prompt_is_continued_where_there_is_no_chat_template(tmp_path: Path) -> None:
    assert bodies(written(tmp_path / "p.jsonl", {"prompt": "Hello?"}), chat=False) == [{"prompt": "Hello?"}]
    with pytest.raises(HybridError, match="line 1 has messages, and the checkpoint has no chat template"):
        bodies(written(tmp_path / "p.jsonl", {"messages": [{"role": "user", "content": "x"}]}), chat=False)


def test_tool_calls_go_out_as_the_api_has_them(tmp_path: Path) -> None:
    tools = [{"type": "function", "function": {"name": "now", "parameters": {}}}]
    call = {"type": "function", "function": {"name": "now", "arguments": {"zone": "UTC"}}}
    row = {
        "messages": [
            {"role": "user", "content": "What time is it?"},
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "content": "12:00"},
        ],
        "tools": tools,
    }
    (body,) = bodies(written(tmp_path / "p.jsonl", row))
    assert body["tools"] == tools
    (sent,) = body["messages"][1]["tool_calls"]
    assert sent["id"]
    assert json.loads(sent["function"]["arguments"]) == {"zone": "UTC"}


def test_the_order_is_that_of_the_texts_not_of_the_file(tmp_path: Path) -> None:
    rows = [{"text": f"text {i}"} for i in range(20)]
    one = read_prompts(written(tmp_path / "a.jsonl", *rows), chat=True)
    (tmp_path / "b.jsonl.gz").write_bytes(
        gzip.compress("".join(json.dumps(row) + "\n" for row in reversed(rows)).encode())
    )
    other = read_prompts(tmp_path / "b.jsonl.gz", chat=True)
    assert one.prompts == other.prompts
    assert one.sha256 == other.sha256
    assert [prompt.text for prompt in one.prompts] != [row["text"] for row in rows]
    fewer = read_prompts(written(tmp_path / "c.jsonl", *rows[:-1]), chat=True)
    assert fewer.sha256 != one.sha256


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist"),
        (b"", "is empty"),
        (b'{"text": "a"}\n\n', "line 2 is empty"),
        (b"{", "line 1 is not valid JSON"),
        (b"[1]", "line 1 is not a JSON object"),
        (b'{"question": "a"}', "line 1 has neither `messages` nor a non-empty `text`"),
        (b'{"prompt": " "}', "line 1 has an empty `prompt`"),
        (b'{"messages": [{"role": "assistant", "content": "a"}]}', "line 1 has nothing to answer"),
        (b"\xff\xfe", "cannot be read"),
    ],
)
def test_a_file_that_holds_no_prompts(content: bytes | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(HybridError, match=message) as caught:
        read_prompts(path, chat=True)
    assert str(path) in caught.value.message
    assert caught.value.remedy


def contexts(*texts: str, most: int = 10_000) -> Contexts:
    prompts = tuple(Prompt(text=text, content=text) for text in texts)
    return Contexts(Prompts(Path("p.jsonl"), prompts), Characters(), most)


def test_a_short_context_is_the_prompt_as_it_is() -> None:
    prompts = contexts("aaaa", "bb", "cc")
    assert [prompts.short(i).text for i in range(5)] == ["aaaa", "bb", "cc", "aaaa", "bb"]


def test_a_long_context_is_filled_with_the_prompts_that_follow() -> None:
    prompts = contexts("a" * 10, "b" * 20, "c" * 30)
    assert prompts.long(0, 62).text == "b" * 20 + "\n\n" + "c" * 28 + "\n\n" + "a" * 10
    assert prompts.long(1, 40).text == "c" * 18 + "\n\n" + "b" * 20
    assert prompts.long(2, 52).text == "a" * 10 + "\n\n" + "b" * 8 + "\n\n" + "c" * 30
    for i in range(3):
        assert len(prompts.long(i, 50).text) == 50
        assert prompts.long(i, 50) == prompts.long(i, 50)


def test_long_contexts_begin_differently() -> None:
    prompts = contexts(*(chr(97 + i) * 40 for i in range(8)))
    assert len({prompts.long(i, 200).text[:1] for i in range(8)}) == 8


def test_a_prompt_that_is_long_enough_stays_as_it_is() -> None:
    assert contexts("a" * 50, "b").long(0, 50).text == "a" * 50


def test_the_filling_goes_into_the_first_thing_the_user_says() -> None:
    prompt = Prompt(
        ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}), content="Why?"
    )
    assert [m["content"] for m in prompt.behind("filling").messages] == ["Be brief.", "filling\n\nWhy?"]
    assert prompt.behind("") is prompt


def test_too_little_text_for_a_long_context() -> None:
    with pytest.raises(HybridError, match=r"hold 62 tokens, and the long context is 100 tokens") as caught:
        contexts("a" * 10, "b" * 20, "c" * 28).long(0, 100)
    assert "--long-tokens" in str(caught.value.remedy)
    with pytest.raises(HybridError, match="all its prompts together hold 8 bytes"):
        require_bytes(contexts("aaaa", "bbbb").prompts, 9)
    require_bytes(contexts("aaaa", "bbbb").prompts, 8)


def test_prompts_that_leave_no_room_for_an_answer_are_left_out() -> None:
    prompts = contexts("a" * 50, "b" * 5, "c" * 6, most=10)
    assert [prompts.short(i).text for i in range(3)] == ["b" * 5, "c" * 6, "b" * 5]
    assert prompts.left_out == 1
    with pytest.raises(HybridError, match="every prompt has more than 4 tokens"):
        contexts("a" * 50, "b" * 5, most=4).short(0)
