"""A result as one HTML file that needs nothing else: sentences, the picture, the tables, and the JSON inside.

It can be mailed, kept beside a checkpoint, or shown by any static server. It loads nothing and runs no script.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator, Mapping
from html import escape
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from .atomic import building_file

_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin: 2rem 0 .3rem; }
img { max-width: 100%; height: auto; background: #fff; }
.table { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .8rem .2rem 0; text-align: left; white-space: nowrap; }
th { border-bottom: 1px solid; } .n { text-align: right; }
.note, dt { opacity: .75; } dl { display: grid; grid-template-columns: max-content auto; gap: 0 1rem; }
dd { margin: 0; overflow-wrap: anywhere; }
"""


def write_html_page(
    path: Path,
    *,
    title: str,
    sentences: Iterable[str],
    tables: RenderableType,
    conditions: Mapping[str, Any],
    data: Any,
    picture: Path | None = None,
) -> None:
    """Write the page; it appears only once it is whole.

    Args:
        path: the HTML file.
        title: its heading.
        sentences: what the result says; each is a paragraph.
        tables: rich tables, or groups of them and of text.
        conditions: name and value of what it was measured with.
        data: the result for programs, kept in the page as JSON (``<script type="application/json">``).
        picture: a PNG file, which is taken into the page.
    """
    parts = [
        "<!doctype html>",
        '<html lang="en"><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(title)}</title><style>{_STYLE}</style>",
        f"<h1>{escape(title)}</h1>",
        *(f"<p>{escape(sentence)}</p>" for sentence in sentences),
    ]
    if picture is not None:
        encoded = base64.b64encode(picture.read_bytes()).decode()
        source = f"data:image/png;base64,{encoded}"
        parts.append(f'<p><img alt="{escape(title)}: the tables below say the same" src="{source}"></p>')
    parts += _blocks(tables)
    parts.append("<h2>Measured with</h2><dl>")
    parts += [
        f"<dt>{escape(str(key))}</dt><dd>{escape(str(value))}</dd>" for key, value in conditions.items()
    ]
    # "</" would end the element, whatever stands around it.
    raw = json.dumps(data, ensure_ascii=False).replace("</", "<\\/").replace("<!--", "<\\u0021--")
    parts.append(f'</dl><script type="application/json" id="result">{raw}</script></html>')
    with building_file(path) as temporary:
        temporary.write_text("\n".join(parts) + "\n", encoding="utf-8")


def _blocks(item: RenderableType) -> Iterator[str]:
    if isinstance(item, Group):
        for part in item.renderables:
            yield from _blocks(part)
    elif isinstance(item, Table):
        yield from _table(item)
    elif text := _plain(item).strip():
        yield f'<p class="note">{escape(text)}</p>'


def _table(table: Table) -> Iterator[str]:
    title = getattr(table, "title_line", "") or _plain(table.title or "")
    caption = getattr(table, "caption_line", "") or _plain(table.caption or "")
    if title:
        yield f"<h2>{escape(title)}</h2>"
    kinds = [' class="n"' if column.justify == "right" else "" for column in table.columns]

    def row(tag: str, cells: Iterable[Any]) -> str:
        written = (
            f"<{tag}{kind}>{escape(_plain(cell))}</{tag}>" for kind, cell in zip(kinds, cells, strict=True)
        )
        return f"<tr>{''.join(written)}</tr>"

    yield '<div class="table"><table>'
    if table.show_header:
        yield f"<thead>{row('th', (column.header for column in table.columns))}</thead>"
    yield "<tbody>"
    for cells in zip(*(column.cells for column in table.columns), strict=True):
        yield row("td", cells)
    yield "</tbody></table></div>"
    if caption:
        yield f'<p class="note">{escape(caption)}</p>'


def _plain(item: Any) -> str:
    """Text without styles; what people wrote as markup is rendered first."""
    if isinstance(item, Text):
        return item.plain
    return Text.from_markup(item).plain if isinstance(item, str) else str(item)
