"""Plain text from HTML, roff man pages, dictd dictionaries and fortune files.

Regular expressions only: for training text, speed matters more than the last table.
"""

from __future__ import annotations

import gzip
import html
import re
from collections.abc import Iterator

_DROP = re.compile(r"<(script|style|head|nav|footer)\b.*?</\1\s*>", re.S | re.I)
_TITLE = re.compile(r"<title[^>]*>(.*?)</title>", re.S | re.I)
_NAVIGATION = re.compile(
    r'<(div|ul|ol|table)[^>]*(?:class|id)="[^"]*(?:nav|toc|header|footer|menu)[^"]*".*?</\1>', re.S | re.I
)
_PRE = re.compile(r"<pre\b[^>]*>(.*?)</pre>", re.S | re.I)
_HEADING = re.compile(r"<h[1-4][^>]*>", re.I)
_BLOCK = re.compile(
    r"</?(?:p|div|li|ul|ol|tr|table|dt|dd|dl|h[1-6]|section|article|br|blockquote)\b[^>]*>", re.I
)
_TAG = re.compile(r"<[^>]+>")
_BLANK = re.compile(r"[ \t]*\n(?:[ \t]*\n)+")


def tidy(text: str) -> str:
    """Trailing spaces and runs of empty lines removed."""
    return _BLANK.sub("\n\n", re.sub(r"[ \t]+\n", "\n", text)).strip()


def html_text(page: str) -> tuple[str, str]:
    """(title, body from the first heading on) of an HTML page; preformatted blocks keep their lines."""
    found = _TITLE.search(page)
    title = " ".join(html.unescape(_TAG.sub("", found.group(1))).split()) if found else ""
    page = _NAVIGATION.sub(" ", _DROP.sub(" ", page))
    kept: list[str] = []

    def keep(match: re.Match[str]) -> str:
        kept.append(_TAG.sub("", match.group(1)).strip("\n"))
        return f"\n\n\x00{len(kept) - 1}\x00\n\n"

    page = _PRE.sub(keep, page)
    page = re.sub(r"\s+", " ", page)
    page = _TAG.sub("", _BLOCK.sub("\n", _HEADING.sub("\n\n# ", page)))
    lines = [line.strip() for line in page.split("\n")]
    text = re.sub(r"\x00(\d+)\x00", lambda m: "\n" + kept[int(m.group(1))] + "\n", "\n".join(lines))
    text = re.sub(r"\n# *\n", "\n# ", text)
    heading = re.search(r"^# ", text, re.M)  # before it: menus
    return title, tidy(html.unescape(text[heading.start() :] if heading else text))


_CHARS = {
    "(co": "©", "(bu": "•", "(em": "—", "(en": "–", "(lq": "“", "(rq": "”", "(oq": "‘", "(cq": "’", "(aq": "'",
    "(dq": '"', "(ha": "^", "(ti": "~", "(rs": "\\", "(->": "→", "(<-": "←", "(mu": "×", "(ss": "ß", "(ga": "`",
    "*(lq": "“", "*(rq": "”", "*(Aq": "'", "*(dq": '"',
    "-": "-", "e": "\\", " ": " ", "~": " ", "0": " ",
    "&": "", "|": "", "^": "", "/": "", ",": "", ":": "", "%": "",
}  # fmt: skip
_ESCAPE = re.compile(
    r"\\(?:f(?:\(..|\[[^\]]*\]|.)|s[+-]?\d|[mM]\[[^\]]*\]|\[(?P<u>[^\]]*)\]|(?P<two>\*?\(..)|(?P<one>.))"
)
_FONT = {"B", "I", "BR", "RB", "BI", "IB", "IR", "RI", "SM", "SB"}


def _unescape(text: str) -> str:
    def character(match: re.Match[str]) -> str:
        if (code := match["u"]) is not None:
            if re.fullmatch(r"u[0-9A-F]{4,6}", code):
                return chr(int(code[1:], 16))
            return _CHARS.get("(" + code, "")
        return _CHARS.get(match["two"] or match["one"] or "", "")

    return _ESCAPE.sub(character, text)


def _arguments(text: str) -> list[str]:
    return [a.replace('""', '"') if a else b for a, b in re.findall(r'"((?:[^"]|"")*)"?|(\S+)', text)]


def roff_text(page: str) -> tuple[str, str]:
    """(name, body) of a man page in the `man` macros; mdoc pages and redirections give an empty body."""
    if re.search(r"^\.(?:Dd|so)\b", page, re.M):
        return "", ""
    name, out, table = "", [], False
    for line in page.split("\n"):
        if line.startswith((".TS", ".TE")):
            table = line.startswith(".TS")
            continue
        if table or line.startswith(('.\\"', "'\\\"", '\\"')):
            continue
        if not line.startswith((".", "'")):
            out.append(_unescape(line.split(' \\"')[0]))
            continue
        macro, _, rest = line[1:].strip().partition(" ")
        arguments = _arguments(rest)
        if macro == "TH" and len(arguments) > 1:
            name = f"{_unescape(arguments[0])}({_unescape(arguments[1])})"
        elif macro in ("SH", "SS"):
            out.append("\n# " + _unescape(" ".join(arguments)))
        elif macro in _FONT:
            joiner = " " if macro in ("B", "I", "SM") else ""
            out.append(_unescape(joiner.join(arguments)))
        elif macro in ("PP", "P", "LP", "TP", "IP", "HP", "sp"):
            out.append("\n" + (_unescape(arguments[0]) if macro == "IP" and arguments else ""))
    return name, tidy("\n".join(out))


def dict_entries(data: bytes, index: str) -> Iterator[tuple[str, str]]:
    """(headword, entry) of a dictd dictionary: `index` has lines of word, offset, length in base 64."""
    digits = {c: i for i, c in enumerate("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/")}

    def number(text: str) -> int:
        value = 0
        for c in text:
            value = value * 64 + digits[c]
        return value

    text, seen = gzip.decompress(data), set()
    for line in index.splitlines():
        fields = line.split("\t")
        if len(fields) < 3 or fields[0].startswith("00") or fields[1] in seen:
            continue
        seen.add(fields[1])
        start = number(fields[1])
        yield fields[0], tidy(text[start : start + number(fields[2])].decode("utf-8", "replace"))


def fortunes(text: str) -> list[str]:
    """The sayings of a fortune file."""
    return [
        saying for part in text.split("\n%\n") if 20 < len(saying := tidy(part.replace("\t", " "))) < 3000
    ]
