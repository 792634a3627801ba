"""Names from elsewhere cannot steer a terminal, whichever way they are printed."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from gptq_hybrid.common.tables import plain, report_table
from gptq_hybrid.common.text import printable
from vllm_qwen36_plugin.errors import MtpHeadError, OptionsError
from vllm_qwen36_plugin.log import logger
from vllm_qwen36_plugin.mtp_guard.front import head_refusal
from vllm_qwen36_plugin.options import PluginOptions

HOSTILE = "a\x1b[31m\x1b]0;title\x07\r\u202e\u2066\x9b2Jb"


@given(st.text())
def test_what_is_printable_stays_and_nothing_else_does(text: str) -> None:
    shown = printable(text)
    assert all(c.isprintable() or c == "\n" for c in shown)
    if text.isprintable():
        assert shown == text


def test_line_breaks_can_be_shown_too() -> None:
    assert printable("a\nb", lines=False) == "a\\nb"


# Without backslashes: rich's own escaping loses one before a bracket, and doubles one at the end.
@given(st.text(alphabet=st.sampled_from("[]/bold red=x@#.\x1b\n")))
def test_markup_is_text(text: str) -> None:
    console = Console(width=1000, color_system=None)
    with console.capture() as shown:
        console.print(plain(text), highlight=False, soft_wrap=True)
    assert shown.get().removesuffix("\n") == printable(text)


def test_titles_of_tables_are_text() -> None:
    assert "\x1b" not in str(report_table(HOSTILE, HOSTILE).title)


def test_a_refusal_is_text(caplog: pytest.LogCaptureFixture) -> None:
    message = str(MtpHeadError(head_refusal(HOSTILE, [(f"{HOSTILE}\n  * a line of its own", HOSTILE)])))
    assert "\x1b" not in message
    assert "\n  * a line" not in message
    with pytest.raises(OptionsError) as refused:
        PluginOptions.of({"qwen36": {HOSTILE: 1}})
    assert "\x1b" not in str(refused.value)
    assert "\\x1b[31m" in str(refused.value)


def test_what_the_plugin_logs_is_text() -> None:
    record = logging.LogRecord(logger.name, logging.WARNING, __file__, 1, "%s: %d", (HOSTILE, 3), None)
    assert logger.filter(record)
    assert "\x1b" not in record.getMessage()
    assert record.getMessage().endswith("b: 3")


def test_markup_is_escaped_by_one_function() -> None:
    root = Path(__file__).parents[2]
    own = [
        str(path.relative_to(root))
        for top in ("gptq_hybrid", "vllm_qwen36_plugin")
        for path in (root / top).rglob("*.py")
        if "rich.markup" in path.read_text(encoding="utf-8")
    ]
    assert own == ["gptq_hybrid/common/terminal.py"]
