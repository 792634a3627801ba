"""A result's page stands alone, says what the tables say, and takes no markup from names."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from rich.console import Group
from rich.text import Text

from gptq_hybrid.common.html_page import write_html_page
from gptq_hybrid.common.tables import plain, report_table

HOSTILE = '</script><script>alert("x")</script> <!-- [bold]'


class Page(HTMLParser):
    """What a browser would make of it: elements, links, cells, and the text of the JSON."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.cells: list[str] = []
        self.scripts: list[str] = []
        self.paragraphs: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]
        for kind, into in (("td", self.cells), ("script", self.scripts), ("p", self.paragraphs)):
            if tag == kind:
                into.append("")

    def handle_endtag(self, tag: str) -> None:
        self.tags.append(f"/{tag}")

    def handle_data(self, data: str) -> None:
        tag = self.tags[-1] if self.tags else ""
        for kind, into in (("td", self.cells), ("script", self.scripts), ("p", self.paragraphs)):
            if tag == kind:
                into[-1] += data


@pytest.fixture
def page(tmp_path: Path) -> Page:
    table = report_table("Figures", "caption")
    table.add_column("module")
    table.add_column("value", justify="right")
    table.add_row(plain(HOSTILE), Text("1.5", style="red"))
    picture = tmp_path / "picture.png"
    picture.write_bytes(b"\x89PNG")
    data: dict[str, Any] = {"name": HOSTILE, "value": 1.5}
    write_html_page(
        tmp_path / "page.html",
        title=HOSTILE,
        sentences=["A & B."],
        tables=Group("", table, Text("a note")),
        conditions={HOSTILE: "2.13 <cpu>"},
        data=data,
        picture=picture,
    )
    return Page((tmp_path / "page.html").read_text())


def test_names_are_text_and_no_markup(page: Page) -> None:
    assert page.tags.count("script") == 1
    assert page.cells == [HOSTILE, "1.5"]
    assert "A & B." in page.paragraphs
    assert "a note" in page.paragraphs


def test_the_json_in_the_page_is_the_result(page: Page) -> None:
    assert json.loads(page.scripts[0]) == {"name": HOSTILE, "value": 1.5}


def test_the_page_loads_nothing(page: Page) -> None:
    assert [source.partition(",")[0] for source in page.sources] == ["data:image/png;base64"]
    assert "link" not in page.tags
