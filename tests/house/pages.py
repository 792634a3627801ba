"""The pages of this repository, and what Markdown they are made of."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PACKAGES = ("gptq_hybrid", "vllm_qwen36_plugin")
LEDGERS = frozenset(f"{package}/upstream" for package in PACKAGES)

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
_BULLET = re.compile(r"^\s*(?:[*-]|\d+\.) ")
# A full stop and a capital, a bullet's bold word or code after it. Abbreviations are not used in these pages.
_STOP = re.compile(r"(?<=[.!?])[*)\"]*\s+(?=[A-Z*`([\d…¹²³⁴])")


def room_pages() -> dict[str, Path]:
    """Return the page of each room, by the room's folder relative to the repository."""
    found = [page for package in PACKAGES for page in sorted((ROOT / package).glob("*/README.md"))]
    return {str(page.parent.relative_to(ROOT)): page for page in found}


def committed_pages() -> list[Path]:
    """Return every Markdown file that git knows, deleted ones left out; outside a clone the rooms' pages."""
    try:
        names = subprocess.run(
            ["git", "ls-files", "-z", "*.md"], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return [README, *room_pages().values()]
    return [ROOT / name for name in names.split("\0") if name and (ROOT / name).is_file()]


def links(text: str) -> list[str]:
    """Return the targets of all links outside fenced blocks."""
    return _LINK.findall(_FENCE.sub("", text))


def relative_links(text: str) -> list[str]:
    """Return the links that lead to a file beside the page, without their fragments."""
    outside = [target for target in links(text) if not re.match(r"[a-z]+:|#", target)]
    return [target.partition("#")[0] for target in outside]


def fenced(text: str, *languages: str) -> list[str]:
    """Return the fenced blocks of some languages; of all without one named."""
    return [block for language, block in _FENCE.findall(text) if not languages or language in languages]


def command_lines(text: str, program: str) -> Iterator[list[str]]:
    """Yield the arguments of each command line of ``program``, in fenced shell blocks and in code spans."""
    for block in fenced(text, "bash", "sh", ""):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] == [program]:
                yield words[1:]
    for span in re.findall(r"`([^`\n]+)`", _FENCE.sub("", text)):
        if span.startswith(f"{program} "):
            yield shlex.split(span)[1:]


def prose(text: str) -> list[str]:
    """Return the sentences of paragraphs and bullets: no fences, tables or headings."""
    blocks: list[list[str]] = [[]]
    for line in _FENCE.sub("\n", text).splitlines():
        if not line.strip() or line.startswith(("#", "|", "<!--")):
            blocks.append([])
            continue
        if _BULLET.match(line):
            blocks.append([])
        blocks[-1].append(_BULLET.sub("", line).strip())
    return [s for block in blocks if block for s in _STOP.split(" ".join(block)) if s]


def cells(text: str) -> list[str]:
    """Return the cells of all tables."""
    rows = [line for line in _FENCE.sub("", text).splitlines() if line.startswith("|")]
    return [cell.strip() for row in rows for cell in row.strip("|").split(" | ")]


def plain(sentence: str) -> str:
    """Return a sentence's words alone, in lower case, to be compared."""
    return " ".join(re.findall(r"\w+", sentence.lower()))
