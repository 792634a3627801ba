"""Names in a checkpoint that would move a terminal's cursor: they are shown, not obeyed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from gptq_hybrid.checkpoint import MTP_FILE
from gptq_hybrid.demo.builder import DemoCheckpoint
from tests.corpus import Workshop

from .hostile import GPTQ, NORM, quantization, run_here, send

NAMES = {
    "escape": "a\x1b[31m\x1b]0;title\x07b",
    "nul": "a\0b",
    "c1": "a\x9b31mb",
    "right-to-left": "a\u202eb\u2067c",
    "lone-surrogate": "a\ud800b",
    "carriage-return": "a\r\x08\x08b",
    "markup": "[bold red]a[/] [link=file:///etc/passwd]b[/link]",
    "newline": "a\nFORGED: nothing found. Serve it:\nFORGED serve b",
    "line-separator": "a\u2028FORGED b",
    "zero-width": "a\u200b\ufeffb",
}


def rename_a_tensor(shop: Workshop, name: str) -> None:
    shop.header(MTP_FILE, lambda header: header.update({name: header.pop(NORM)}))
    shop.index(lambda weight_map: weight_map.update({name: weight_map.pop(NORM)}))


def name_a_file(shop: Workshop, name: str) -> None:
    send(f"{name}.safetensors")(shop)


def name_a_method(shop: Workshop, name: str) -> None:
    quantization({"quant_method": name})(shop)
    shop.config(lambda config: config.update(architectures=[name]))


def name_a_format(shop: Workshop, name: str) -> None:
    quantization({**GPTQ, "checkpoint_format": name})(shop)


def name_a_model(shop: Workshop, name: str) -> None:
    shop.config(lambda config: config.update(model_type=name))


PLACES = [rename_a_tensor, name_a_file, name_a_method, name_a_format, name_a_model]


@pytest.mark.parametrize("name", NAMES)
def test_nothing_that_moves_a_cursor_is_printed(
    build: Callable[..., DemoCheckpoint], tmp_path: Path, name: str
) -> None:
    for place in PLACES:
        shop = Workshop(build(mtp="separate").path, tmp_path / place.__name__ / "copy")
        place(shop, NAMES[name])
        ended = run_here(shop.folder)
        shown = ended.out + ended.err
        assert ended.code in (1, 2)
        assert "Traceback" not in shown
        assert [c for c in shown if not c.isprintable() and c != "\n"] == []
        assert not any(line.startswith("FORGED") for line in shown.splitlines())
        [checkpoint] = json.loads(run_here(shop.folder, "--json").out)["result"]["checkpoints"]
        assert checkpoint["verdict"] != "serves"


def test_markup_in_a_name_is_shown_as_it_is(shop: Workshop) -> None:
    name_a_model(shop, "[bold red]a[/]")
    assert "[bold red]a[/]" in run_here(shop.folder).err


@pytest.mark.parametrize("depth", [100, 100_000])
def test_a_chat_template_nested_deeply_breaks_no_rule(shop: Workshop, depth: int) -> None:
    template = "{% if tools %}" * depth + "{{ x }}" + "{% endif %}" * depth + "{{"
    # Not in place: the copy's files are links to those of other tests.
    (shop.folder / "chat_template.jinja").unlink()
    (shop.folder / "chat_template.jinja").write_text(template)
    ended = run_here(shop.folder, "--json")
    rules = {finding["rule"] for finding in json.loads(ended.out)["result"]["checkpoints"][0]["findings"]}
    assert rules == {"chat-template-missing"}
