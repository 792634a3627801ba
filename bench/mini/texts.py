"""Text out of the files of packages, and conversations made from it.

HTML, roff man pages, dictd dictionaries and fortune files become plain text by regular expressions: for training
text, speed matters more than the last table. Questions about pages, words and Python functions are answered by the
text that they were made from, in the format of the checkpoint's chat template.
"""

from __future__ import annotations

import ast
import gzip
import html
import random
import re
from collections.abc import Iterator

Turn = tuple[str, str, str]  # question, thought (may be empty), answer

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


_MAX_ANSWER = 1500  # characters
_COMMAND = {
    "en": ("What does {} do?", "Describe {}.", "Tell me about {}."),
    "de": ("Was macht {}?", "Beschreibe {}.", "Wozu dient {}?"),
    "fr": ("Que fait {} ?", "Décris {}.", "À quoi sert {} ?"),
    "es": ("¿Qué hace {}?", "Describe {}.", "¿Para qué sirve {}?"),
    "ja": ("{} は何をしますか？", "{} を説明してください。"),
    "zh": ("{} 是做什么的？", "请介绍 {}。"),
    "ru": ("Что делает {}?", "Опиши {}.", "Для чего нужен {}?"),
    "pl": ("Co robi {}?", "Opisz {}.", "Do czego służy {}?"),
}
_TOPIC = {
    "en": ("Explain: {}", "Tell me about {}", "What should I know about {}?"),
    "de": ("Erkläre: {}", "Was muss ich über {} wissen?"),
    "fr": ("Explique : {}", "Que faut-il savoir sur {} ?"),
    "es": ("Explica: {}", "¿Qué debo saber sobre {}?"),
    "ja": ("{} について説明してください。", "{} について教えてください。"),
    "zh": ("请解释：{}", "请介绍一下{}。"),
    "ru": ("Объясни: {}", "Расскажи про {}"),
    "pl": ("Wyjaśnij: {}", "Opowiedz o {}"),
}
_WORD = ("What does the word “{}” mean?", "Define {}.", "What is the meaning of {}?", "Explain the word {}.")
_SYSTEM = (
    "You are a helpful assistant.",
    "You answer questions about computers and language.",
    "Answer briefly and correctly.",
)


def render(turns: list[Turn], rng: random.Random) -> str:
    """The conversation in ChatML; thoughts, empty or not, stand before the last answer only, as at inference."""
    text = f"<|im_start|>system\n{rng.choice(_SYSTEM)}<|im_end|>\n" if rng.random() < 0.3 else ""
    for number, (question, thought, answer) in enumerate(turns, 1):
        text += f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
        style = rng.random()
        if number == len(turns) and style < 0.5:
            text += (
                f"<think>\n{thought}\n</think>\n\n" if thought and style < 0.25 else "<think>\n\n</think>\n\n"
            )
        text += f"{answer}<|im_end|>\n"
    return text


def manual_page(language: str, name: str, body: str, rng: random.Random) -> Turn | None:
    """A question about a manual page, answered by its first sections."""
    answer = _cut(re.sub(r"^# .*\n", "", body, count=1))
    if not name or len(answer) < 150:
        return None
    return (
        rng.choice(_COMMAND[language]).format(name.lower()),
        f"This is about the manual page {name.lower()}.",
        answer,
    )


def page(language: str, title: str, body: str, rng: random.Random) -> Turn | None:
    """A question about a documentation page, answered by its beginning."""
    title = re.split(r" [|—–:-] |\. ", title)[0].strip()
    answer = _cut(re.sub(r"^# .*\n+", "", body, count=1))
    if not 4 <= len(title) <= 80 or len(answer) < 150:
        return None
    return rng.choice(_TOPIC[language]).format(title), f"The topic is: {title}", answer


def word(headword: str, entry: str, rng: random.Random) -> Turn | None:
    """A question about a word, answered by its dictionary entry."""
    definition = "\n".join(line.strip() for line in entry.split("\n")[1:])
    if len(definition) < 40 or not headword.isascii():
        return None
    return (
        rng.choice(_WORD).format(headword),
        f"The user asks for the meaning of {headword}.",
        _cut(definition),
    )


def python_functions(source: str, rng: random.Random) -> Iterator[Turn]:
    """Questions about the documented functions of a Python file: write it, or say what it does."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):
        return
    lines = source.split("\n")
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef) or not (doc := ast.get_docstring(node)):
            continue
        first = doc.strip().split("\n\n")[0].replace("\n", " ")
        code = "\n".join(line[node.col_offset :] for line in lines[node.lineno - 1 : node.end_lineno])
        if not (100 < len(code) < 1800 and 20 < len(first) < 300):
            continue
        if rng.random() < 0.6:
            question = rng.choice(("Write a Python function `{}`. {}", "Implement `{}` in Python: {}"))
            yield (
                question.format(node.name, first),
                f"I need a function named {node.name}.",
                f"```python\n{code}\n```",
            )
        else:
            yield (
                f"What does this function do?\n\n```python\n{code}\n```",
                f"The function is {node.name}.",
                first,
            )


def _cut(text: str) -> str:
    if len(text) <= _MAX_ANSWER:
        return text.strip()
    head = text[:_MAX_ANSWER]
    return head[: max(head.rfind("\n\n"), head.rfind(". ") + 1, head.rfind("。") + 1) or _MAX_ANSWER].strip()
