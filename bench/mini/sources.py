"""The packages the corpus is made of: what is read from each, in which domain, under which licence.

Licences were read in the packages themselves (debian/copyright, metadata of wheels) and are those of the files
used, shortened; single files may be under another free licence. Two packages only link to the copyright file of
another: manpages-dev to that of manpages, openjdk-17-source to one not downloaded, so the headers of its 1,395
files were read. A domain is a natural language (ISO 639-1) or a programming language.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Format = Literal["html", "roff", "text", "dict", "fortune", "code"]

LANGUAGES = {
    "en": "English",
    "de": "German",
    "fr": "French",
    "es": "Spanish",
    "ja": "Japanese",
    "zh": "Chinese",
    "ru": "Russian",
    "pl": "Polish",
}
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


_MAN = "GPL-2.0+; pages also Linux-man-pages-copyleft, GPL-1.0+, BSD, MIT"
_MAN_TRANSLATED = "GPL-3.0+ (translations), pages under their originals' licences"
_MAN_JA = "the original pages' free licences (GPL, BSD, Linux-man-pages-copyleft and alike)"
_VENDORED = "MIT; vendored parts MIT, BSD, Apache-2.0, LGPL-3.0, MPL-2.0"
_LO = r"/help/[^/]+/text/.*\.html$"
_DEB_LANG = r"(?P<lang>en|de|fr|es|ja|zh|ru|pl)(?:[-_](?:US|CN))?"


def _man(package: str, domain: str, licence: str) -> Source:
    return Source(package, r"/man/.*man[1-8]/.*\.[1-8][a-z]*\.gz$", "roff", licence, domain)


def _wheel(package: str, licence: str) -> Source:
    return Source(package, r"\.py$", "code", licence, "python", registry="pypi")


SOURCES: tuple[Source, ...] = (
    # Prose and documentation
    Source(
        "debian-handbook", rf"/html/{_DEB_LANG}(?:-[A-Z]{{2}})?/.*\.html$", "html", "GPL-2.0+ or CC-BY-SA-3.0"
    ),
    Source("installation-guide-amd64", rf"/{_DEB_LANG}/[^/]*\.html$", "html", "GPL-2.0"),
    *(
        Source(f"libreoffice-help-{tag}", _LO, "html", "MPL-2.0", domain)
        for tag, domain in (
            ("de", "de"),
            ("fr", "fr"),
            ("es", "es"),
            ("ja", "ja"),
            ("zh-cn", "zh"),
            ("ru", "ru"),
            ("pl", "pl"),
        )
    ),
    *(
        _man(f"manpages-{tag}", tag, _MAN_JA if tag == "ja" else _MAN_TRANSLATED)
        for tag in ("de", "fr", "es", "ja", "ru", "pl")
    ),
    Source("manpages-zh", r"/man/zh_CN/.*\.[1-8][a-z]*\.gz$", "roff", "GFDL-1.2+", "zh"),
    _man("manpages", "en", _MAN),
    _man("manpages-dev", "en", _MAN),
    _man("git-man", "en", "GPL-2.0"),
    _man("perl-doc", "en", "Artistic-1.0 or GPL-1.0+"),
    Source("anarchism", r"/markdown/.*\.md(\.gz)?$", "text", "GPL-2.0+", "en"),
    Source("dict-jargon", r"\.dict\.dz$", "dict", "public domain", "en"),
    Source("dict-foldoc", r"\.dict\.dz$", "dict", "GFDL-1.1+", "en"),
    Source("dict-gcide", r"\.dict\.dz$", "dict", "GPL-2.0+", "en"),
    Source("dict-wn", r"wn\.dict\.dz$", "dict", "WordNet licence (BSD-like)", CHAT),
    Source("debian-policy", r"policy\.html/[^_]*\.html$", "html", "GPL-2.0+", "en"),
    Source("git-doc", r"/git-doc/.*\.txt$", "text", "GPL-2.0", "en"),
    Source("postgresql-doc-15", r"/html/.*\.html$", "html", "PostgreSQL", "en"),
    Source("python3.11-doc", r"/_sources/.*\.rst\.txt$", "text", "PSF-2.0", "en"),
    Source("nodejs-doc", r"/api/[^/]*\.html$", "html", "MIT", "en"),
    Source("octave-doc", r"octave\.html/.*\.html$", "html", "GPL-3.0+", "en"),
    Source("r-doc-html", r"/manual/.*\.html$", "html", "GPL-2.0 (manuals: own copyleft)", "en"),
    Source("fortunes", r"/fortunes/[^/.]*$", "fortune", "BSD-3-Clause (collection)", "en"),
    Source("fortunes-de", r"/fortunes/de/[^/.]*$", "fortune", "GPL-2.0+", "de"),
    Source(
        "fortunes-es",
        r"/fortunes/[^.]*\.fortunes$",
        "fortune",
        "public domain (texts, presumed), GPL-2.0+",
        "es",
    ),
    Source("fortunes-pl", r"/fortunes/pl/[^/.]*$", "fortune", "GPL-2.0", "pl"),
    Source("fortunes-ru", r"/fortunes/ru/[^.]*$", "fortune", "GPL-2.0", "ru"),
    # Code
    Source("perl-modules-5.36", r"\.pod$", "text", "Artistic-1.0 or GPL-1.0+", "en"),
    Source("golang-1.19-src", r"/src/.*(?<!_test)\.go$", "code", "BSD-3-Clause", "go"),
    Source("rust-src", r"/(library|compiler)/.*\.rs$", "code", "MIT or Apache-2.0", "rust"),
    Source("libboost1.74-dev", r"\.hpp$", "code", "BSL-1.0", "cpp"),
    Source(
        "openjdk-17-source",
        r"java\.base/java/.*\.java$",
        "code",
        "GPL-2.0 with Classpath-exception",
        "java",
        "*src.zip",
    ),
    Source(
        "linux-source-6.1",
        r"/(kernel|mm|fs|lib|ipc|init|block|crypto|net/(core|ipv4|sched))/.*\.c$",
        "code",
        "GPL-2.0 with Linux-syscall-note",
        "c",
        "*.tar.xz",
    ),
    Source(
        "linux-source-6.1",
        r"/Documentation/(?!translations|devicetree|ABI).*\.rst$",
        "text",
        "GPL-2.0",
        "en",
        "*.tar.xz",
    ),
    _wheel("django", "BSD-3-Clause"),
    _wheel("sympy", "BSD-3-Clause"),
    _wheel("networkx", "BSD-3-Clause"),
    _wheel("sqlalchemy", "MIT"),
    _wheel("twisted", "MIT"),
    _wheel("pandas", "BSD-3-Clause"),
    _wheel("scikit-learn", "BSD-3-Clause"),
    _wheel("matplotlib", "PSF-like (matplotlib)"),
    _wheel("jinja2", "BSD-3-Clause"),
    _wheel("flask", "BSD-3-Clause"),
    _wheel("requests", "Apache-2.0"),
    _wheel("rich", "MIT"),
    _wheel("docutils", "public domain, BSD-2-Clause, PSF-2.0"),
    _wheel("sphinx", "BSD-2-Clause"),
    _wheel("nltk", "Apache-2.0"),
    _wheel("pip", _VENDORED),
    _wheel("setuptools", _VENDORED),
    _wheel("mypy", "MIT, PSF-2.0"),
    _wheel("ansible-core", "GPL-3.0+"),
)
