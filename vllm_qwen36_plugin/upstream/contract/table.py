"""The table of all names, as a page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from .listed import Entry, Touch
from .packages import PACKAGES
from .record import ABSENT, Seen, parsed
from .shapes import Shape

_HEAD = """# The contract: every name of upstream that is touched

Written by `python -m vllm_qwen36_plugin.upstream.contract`, from `contract.toml` of both ledgers and `seen.json`.
`qwen36 contract` holds any version against it. "Seen" has the versions whose text has the name in its newest shape:
a function with these parameters, a class with these bases. "public" stands for what upstream documents.
"""


def contract_page(touches: Iterable[Touch], seen: Seen) -> str:
    """Return the page."""
    touches = list(touches)
    parts = [_HEAD]
    for package in PACKAGES:
        own = [touch for touch in touches if touch.package == package]
        versions = sorted({v for by in seen.get(package, {}).values() for v in by}, key=parsed)
        parts.append(f"## {package}\n\nRead in {', '.join(versions) or 'no version'}; {len(own)} names.\n")
        parts.append("| name | ours | seen | also | reference | may go |\n|---|---|---|---|---|---|")
        for touch in sorted(own, key=lambda touch: touch.name):
            newest, others = seen_in(seen.get(package, {}).get(touch.name, {}), versions)
            cells = [
                f"`{touch.name}`",
                _ours(touch.entry),
                newest,
                others,
                touch.entry.reference,
                touch.entry.may_go,
            ]
            parts.append(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |")
        parts.append("")
    return "\n".join(parts)


def seen_in(by_version: dict[str, Shape], versions: Sequence[str]) -> tuple[str, str]:
    """The versions of the newest shape, and of the others; runs of versions are written short."""
    shapes = dict.fromkeys(by_version[v].text for v in sorted(by_version, key=parsed, reverse=True))
    present = [text for text in shapes if text != ABSENT]
    if not present:
        return "nowhere", ""
    runs = {
        text: _runs([v in by_version and by_version[v].text == text for v in versions], versions)
        for text in shapes
    }
    others = [f"another shape in {runs[text]}" for text in present[1:]]
    others += [f"not in {runs[ABSENT]}"] if ABSENT in runs else []
    return runs[present[0]], "; ".join(others)


def _runs(has: Sequence[bool], versions: Sequence[str]) -> str:
    written = []
    at = 0
    while at < len(versions):
        end = at
        while end < len(versions) and has[end]:
            end += 1
        if end > at:
            written.append(versions[at] if end == at + 1 else f"{versions[at]} to {versions[end - 1]}")
        at = max(end, at + 1)
    return ", ".join(written)


def _ours(entry: Entry) -> str:
    package = "plugin" if entry.ledger == "vllm_qwen36_plugin" else "producer"
    if not entry.number:
        return f"{package}, public"
    return f"{package} {entry.number}: {', '.join(f'`{file}`' for file in entry.files)}"
