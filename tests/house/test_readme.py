"""README and the rooms' pages: short, true to the program, and nothing said twice."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from gptq_hybrid.cli.help_page import whole_command

from .pages import (
    LEDGERS,
    PACKAGES,
    README,
    ROOT,
    cells,
    command_lines,
    committed_pages,
    links,
    plain,
    prose,
    relative_links,
    room_pages,
)

ROOMS = room_pages()
PAGES = {"README": README, **ROOMS}
_SET_UP = "python3 -m venv .cache/uv && .cache/uv/bin/pip install -q uv && .cache/uv/bin/uv run --locked "


def read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def unknown_words(command: Any, arguments: list[str]) -> list[str]:
    """Commands and options among ``arguments`` that the program does not have."""
    # What stands behind a bare -- is for another program.
    words = list(arguments)[: arguments.index("--") if "--" in arguments else None]
    while getattr(command, "commands", None) and words and not words[0].startswith("-"):
        name = words.pop(0)
        if name not in command.commands:
            return [name]
        command = command.commands[name]
    options = {"--help"} | {opt for p in command.params for opt in (*p.opts, *p.secondary_opts)}
    given = [word.partition("=")[0] for word in words]
    return [word for word in given if re.fullmatch(r"--?[a-z][\w-]*", word) and word not in options]


def test_readme_is_short() -> None:
    text = read(README)
    assert len(text.splitlines()) <= 200
    assert len(text.split()) <= 1800


def test_readme_is_written_in_short_sentences() -> None:
    lengths = [len(sentence.split()) for sentence in prose(read(README))]
    assert len(lengths) > 30
    assert sum(lengths) / len(lengths) < 20


def test_readme_has_no_link_that_a_package_index_cannot_follow() -> None:
    assert [target for target in links(read(README)) if not target.startswith("https://")] == []


def test_readme_shows_the_two_commands_that_need_nothing_installed() -> None:
    assert {f"{_SET_UP}qwen36 demo", f"{_SET_UP}pytest"} <= set(read(README).splitlines())


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_s_page_has_every_room_on_its_map(package: str) -> None:
    mapped = re.findall(
        r"^\| \[`(\w+)/`\]\(\1/README\.md\) \|", read(ROOT / package / "README.md"), re.MULTILINE
    )
    assert sorted(f"{package}/{room}" for room in mapped) == [
        r for r in sorted(ROOMS) if r.startswith(f"{package}/")
    ]


def test_readme_leads_to_the_maps() -> None:
    assert all(f"`{package}/README.md`" in read(README) for package in PACKAGES)


def test_every_package_has_a_page() -> None:
    found = {
        str(init.parent.relative_to(ROOT))
        for name in PACKAGES
        for init in (ROOT / name).glob("*/__init__.py")
    }
    assert found == set(ROOMS)


@pytest.mark.parametrize("room", ROOMS)
def test_page_has_the_length_of_a_page(room: str) -> None:
    lines = len(read(ROOMS[room]).splitlines())
    assert 30 <= lines <= (200 if room in LEDGERS else 110)


@pytest.mark.parametrize("page", PAGES)
def test_command_lines_are_the_programs(page: str) -> None:
    root = whole_command()
    wrong = {
        " ".join(line): unknown
        for line in command_lines(read(PAGES[page]), "qwen36")
        if (unknown := unknown_words(root, line))
    }
    assert wrong == {}


def test_command_lines_that_the_program_lacks_are_seen() -> None:
    root = whole_command()
    text = "```bash\nqwen36 check X --jsno \\\n  --mtp  # no --such\nqwen36 chek X\n```\n`qwen36 repair --outt D`"
    assert [unknown_words(root, line) for line in command_lines(text, "qwen36")] == [
        ["--jsno"],
        ["chek"],
        ["--outt"],
    ]


@pytest.mark.parametrize("page", committed_pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_lead_to_files(page: Path) -> None:
    missing = [target for target in relative_links(read(page)) if not (page.parent / target).exists()]
    assert missing == []


def test_no_sentence_stands_in_two_pages() -> None:
    pages_of: dict[str, set[str]] = defaultdict(set)
    for name, page in PAGES.items():
        text = read(page)
        for sentence in [*prose(text), *cells(text)]:
            pages_of[plain(sentence)].add(name)
    twice = {s: sorted(names) for s, names in pages_of.items() if len(s.split()) >= 8 and len(names) > 1}
    assert twice == {}


def test_sentences_are_told_apart() -> None:
    text = "# Head\n\nOne `a.b` here. *Two* are\nthere.\n\n* A point. And more.\n"
    text += "| cell | of a table |\n```\nno. It.\n```\n"
    assert prose(text) == ["One `a.b` here.", "*Two* are there.", "A point.", "And more."]
    assert cells(text) == ["cell", "of a table"]
