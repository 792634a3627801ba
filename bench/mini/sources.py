"""The packages the corpus is made of, from `sources.toml`, and how much of each domain is kept.

A domain is a natural language (ISO 639-1), a programming language, or conversations.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Format = Literal["html", "roff", "text", "dict", "fortune", "code"]

LANGUAGES = {
    "en": "English", "de": "German", "fr": "French", "es": "Spanish", "ja": "Japanese", "zh": "Chinese",
    "ru": "Russian", "pl": "Polish",
}  # fmt: skip
CODE = {"python": "Python", "c": "C", "cpp": "C++", "go": "Go", "rust": "Rust", "java": "Java"}
CHAT = "chat"
DOMAINS = (*LANGUAGES, *CODE, CHAT)

# Characters of training text kept per domain: whole documents, chosen by hash, until the cap is reached.
CAPS = {
    "en": 52_000_000,
    **dict.fromkeys(("de", "fr", "es", "ru", "pl"), 14_000_000),
    **dict.fromkeys(("ja", "zh"), 7_000_000),  # fewer characters say as much
    "python": 34_000_000,
    "c": 22_000_000,
    **dict.fromkeys(("cpp", "go", "rust", "java"), 9_000_000),
    "chat": 26_000_000,
}


@dataclass(frozen=True, slots=True)
class Source:
    """Files of one package.

    pattern: regular expression that a path must match; its group `lang`, if any, names the language.
    domain: the domain of every file, or "" to take it from the group `lang`.
    inner: glob of archives in the package to open first (a source tarball, a zip).
    """

    package: str
    pattern: str
    format: Format
    licence: str
    domain: str = ""
    inner: str = ""
    registry: Literal["debian", "pypi"] = "debian"


SOURCES = tuple(
    Source(**row) for row in tomllib.loads(Path(__file__).with_suffix(".toml").read_text("utf-8"))["source"]
)
