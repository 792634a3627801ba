"""Rows as data sets write them come out as the chat template wants them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from transformers import AutoTokenizer

from gptq_hybrid.calibration.encode import RejectedRowError, encode_row
from gptq_hybrid.calibration.rows import LeftOutError, parse_row, row_key
from gptq_hybrid.demo.builder import DemoCheckpoint

# The parts of Qwen3.6's template that matter here, in its words' order: tools first, the thinking block of
# the turns after the last question, calls as XML from an object of arguments.
TEMPLATE = """\
{%- if tools %}<|im_start|>system
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}<|im_end|>
{% endif %}
{%- for message in messages %}
{%- if message.role == 'narrator' %}{{ raise_exception('Unexpected role') }}{% endif -%}
<|im_start|>{{ message.role }}
{% if message.role == 'assistant' and enable_thinking is not defined %}<think>
{{ message.reasoning_content or '' }}
</think>

{% endif %}{{ message.content }}
{%- for call in message.tool_calls or [] %}
<function={{ call.function.name }}>
{%- for name, value in call.function.arguments | items %}<{{ name }}={{ value }}>{% endfor %}
{%- endfor %}<|im_end|>
{% endfor %}"""
QUESTION = {"role": "user", "content": "How warm is it in Rome?"}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


@pytest.fixture
def tokenizer(original: DemoCheckpoint) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(original.path)
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def templated(row: dict[str, Any], tokenizer: Any, **template: Any) -> str:
    return str(tokenizer.decode(encode_row(parse_row(row), tokenizer, 4096, template)))


def answer(**message: Any) -> dict[str, Any]:
    return {"messages": [QUESTION, {"role": "assistant", **message}]}


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_becomes_a_thinking_block(key: str, tokenizer: Any) -> None:
    text = templated(answer(content="20 °C.", **{key: "Rome, in June."}), tokenizer)
    assert text.endswith("<think>\nRome, in June.\n</think>\n\n20 °C.<|im_end|>\n")


def test_a_thinking_block_in_the_content_is_not_written_twice(tokenizer: Any) -> None:
    text = templated(answer(content="<think>\nRome, in June.\n</think>\n\n20 °C."), tokenizer)
    assert text.endswith("<think>\nRome, in June.\n</think>\n\n20 °C.<|im_end|>\n")
    assert text.count("<think>") == 1


def test_a_template_without_thinking_blocks_gets_it_in_the_content(tokenizer: Any) -> None:
    tokenizer.chat_template = "{% for message in messages %}{{ message.content }}\n{% endfor %}"
    text = templated(answer(content="20 °C.", reasoning_content="Rome, in June."), tokenizer)
    assert text == "How warm is it in Rome?\n<think>\nRome, in June.\n</think>\n\n20 °C.\n"


def test_the_templates_arguments_reach_it(tokenizer: Any) -> None:
    assert "<think>" not in templated(answer(content="20 °C."), tokenizer, enable_thinking=False)


@pytest.mark.parametrize("arguments", ['{"town": "Rome"}', {"town": "Rome", "country": None}])
def test_tools_and_calls_are_written_by_the_template(arguments: Any, tokenizer: Any) -> None:
    row = answer(content=None, tool_calls=[{"function": {"name": "weather", "arguments": arguments}}])
    text = templated({**row, "tools": json.dumps([TOOL])}, tokenizer)
    assert text.startswith('<|im_start|>system\n{"type": "function", "function": {"name": "weather"')
    assert text.endswith("<function=weather><town=Rome><|im_end|>\n")


def test_a_conversation_in_hermes_form_is_written_in_the_models(tokenizer: Any) -> None:
    call = '<tool_call>\n{"name": "weather", "arguments": {"town": "Rome"}}\n</tool_call>'
    turns = [
        ("system", "You call functions. <tools>[...]</tools>"),
        ("human", "How warm is it in Rome?"),
        ("gpt", f"Let me see.\n{call}"),
        ("tool", '<tool_response>\n{"degrees": 20}\n</tool_response>'),
        ("gpt", "20 °C."),
    ]
    row = parse_row({"conversations": [{"from": who, "value": what} for who, what in turns], "tools": [TOOL]})
    assert [message["role"] for message in row["messages"]] == ["user", "assistant", "tool", "assistant"]
    assert row["messages"][1]["content"] == "Let me see."
    assert row["messages"][2]["content"] == '{"degrees": 20}'
    text = templated(row, tokenizer)
    assert "<tool_call>" not in text
    assert "<function=weather><town=Rome>" in text


def test_a_call_that_is_no_json_stays_as_it_is() -> None:
    content = "<tool_call>\n{'name': oops}\n</tool_call>"
    assert parse_row(answer(content=content))["messages"][1]["content"] == content


def test_text_parts_are_joined_as_the_template_joins_them(tokenizer: Any) -> None:
    template = "{% for m in messages %}{% for part in m.content %}{{ part.text }}{% endfor %}{% endfor %}"
    parts = [{"type": "text", "text": "How warm "}, {"type": "text", "text": "is it?"}]
    message = {"role": "user", "content": parts}
    expected = tokenizer.apply_chat_template([message], chat_template=template, tokenize=False)
    [parsed] = parse_row({"messages": [message]})["messages"]
    assert parsed == {"role": "user", "content": expected}


@pytest.mark.parametrize(
    "parts",
    [
        ["20 ", "°C."],
        [{"type": "output_text", "text": "20 °C."}],
        [{"type": "text", "text": "20 °C.", "image_url": None}],
        [{"text": "20 °C.", "image": None}],
    ],
)
def test_parts_come_in_several_forms(parts: list[Any]) -> None:
    assert parse_row(answer(content=parts))["messages"][1]["content"] == "20 °C."


@pytest.mark.parametrize(
    ("part", "reason"),
    [
        ({"type": "image_url", "image_url": {"url": "data:"}}, "with_images"),
        ({"type": "image"}, "with_images"),
        ({"image": "a.png"}, "with_images"),
        ({"type": "input_audio", "input_audio": {}}, "with_audio"),
        ({"type": "video", "video": "a.mp4"}, "with_video"),
        ({"type": "file", "file": {}}, "with_other_parts"),
    ],
)
def test_a_part_that_is_no_text_is_told_apart_from_a_malformed_row(part: Any, reason: str) -> None:
    with pytest.raises(LeftOutError, match="only text is taken") as caught:
        parse_row(answer(content=[{"type": "text", "text": "See:"}, part]))
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    "row",
    [
        {"text": "\ud83d"},
        {"text": "fine", "domain": "\ude00"},
        answer(content="\ud83d"),
        answer(content="", reasoning="\ud83d"),
        answer(content=[{"type": "text", "text": "\ud83d"}]),
        answer(tool_calls=[{"name": "f", "arguments": '{"a": ["\\ud83d"]}'}]),
        answer(content='<tool_call>{"name": "f", "arguments": {"\\ud83d": 1}}</tool_call>'),
        {"messages": [QUESTION], "tools": [{"name": "\ud83d"}]},
    ],
)
def test_half_a_character_anywhere_in_a_row_is_told_apart(row: Any) -> None:
    with pytest.raises(LeftOutError, match=r"lone surrogate \\u(d83d|de00)") as caught:
        parse_row(row)
    assert caught.value.reason == "with_broken_text"


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (answer(content=[{"type": "text"}]), "has no `text`"),
        (answer(content=[3]), "neither text nor a JSON object"),
        (answer(content=[]), "no text `content`"),
        ([], "not a JSON object"),
        ({"words": 3}, "neither `messages` nor"),
        ({"text": " \n"}, "neither `messages` nor"),
        ({"messages": []}, "not a non-empty list"),
        ({"messages": ["hi"]}, "not a JSON object"),
        ({"messages": [{"content": "hi"}]}, "lacks its `role`"),
        ({"messages": [{"role": "user", "content": None}]}, "no text `content`"),
        (answer(tool_calls=[{"function": {}}]), "lacks its function `name`"),
        (answer(tool_calls=[{"name": "f", "arguments": "{"}]), "not valid JSON"),
        (answer(tool_calls=[{"name": "f", "arguments": "[1]"}]), "not an object"),
        ({"messages": [QUESTION], "tools": "{"}, "not a list of tool definitions"),
        ({"messages": [{"role": "system", "content": "<tools>"}], "tools": [TOOL]}, "nothing but tool"),
    ],
)
def test_what_is_no_row(row: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        parse_row(row)


def test_what_the_template_refuses_is_told_apart(tokenizer: Any) -> None:
    row = parse_row({"messages": [{"role": "narrator", "content": "Once upon a time"}]})
    with pytest.raises(RejectedRowError, match="Unexpected role"):
        encode_row(row, tokenizer, 100)


def test_rows_are_compared_by_what_was_said_case_and_space_aside() -> None:
    question = {"role": "user", "content": "How  warm\nis it in ROME?"}
    system = {"role": "system", "content": "Be brief."}
    assert row_key(parse_row({"messages": [system, question]})) == row_key(
        parse_row({"messages": [QUESTION]})
    )
    assert row_key({"text": "ﬁne"}) == row_key({"text": "Fine"})
    assert row_key(parse_row(answer(content="20"))) != row_key(parse_row(answer(content="21")))
