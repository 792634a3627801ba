"""What is listed: the names by entry of a ledger, and what the ledger's page says of the entry."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

FILE = "contract.toml"
# Names of public interfaces stand under this in place of an entry's number.
PUBLIC = "public"
_ENTRY = re.compile(r"^##+ (\d+)\. (.+)\n((?:(?!#).*\n?)*)", re.MULTILINE)
_FEATURE = re.compile(r"^\| (.+) \| (?:all|CPU|CUDA) \| ([\d, ]+) \|", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry of a ledger.

    Attributes:
        ledger: the package whose ``upstream`` room has it.
        number: in that page; "" for public interfaces.
        title: its heading without the files.
        files: our modules that it names.
        reference, may_go: the last line of the entry, as written there.
        features: of the plugin, those that install it.
    """

    ledger: str
    number: str
    title: str
    files: tuple[str, ...] = ()
    reference: str = ""
    may_go: str = ""
    features: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Touch:
    """A name that is touched, ``module:path``, and the entry that it belongs to."""

    name: str
    entry: Entry

    @property
    def package(self) -> str:
        """The package of upstream."""
        return self.name.partition(":")[0].partition(".")[0]


def ledgers() -> dict[str, Path]:
    """The two rooms, by the package that has them. The producer's is read, not imported."""
    found = {}
    for package in ("gptq_hybrid", "vllm_qwen36_plugin"):
        spec = find_spec(package)
        for place in (spec.submodule_search_locations or ()) if spec else ():
            found[package] = Path(place) / "upstream"
    return found


def entries(package: str, page: str) -> dict[str, Entry]:
    """The entries of a ledger's page, by number."""
    features: dict[str, list[str]] = {}
    for feature, numbers in _FEATURE.findall(page):
        for number in numbers.split(","):
            features.setdefault(number.strip(), []).append(feature)
    found = {
        number: Entry(
            package,
            number,
            heading.partition(":")[0] if ": `" in heading else heading,
            tuple(re.findall(r"`([\w/]+\.py)`", heading)),
            _label("Reference", text).removesuffix(" May go"),
            _label("May go", text),
            tuple(features.get(number, ())),
        )
        for number, heading, text in _ENTRY.findall(page)
    }
    return {PUBLIC: Entry(package, "", "public"), **found}


def _label(label: str, text: str) -> str:
    flat = " ".join(text.split())
    match = re.search(rf"{label}: (.*?)(?=(?: May go: | \* |$))", flat)
    return match[1].rstrip(".") if match else ""


@cache
def touches() -> tuple[Touch, ...]:
    """Every name listed, in the order of the files.

    Raises:
        KeyError: a list names an entry that its ledger does not have.
    """
    listed = []
    for package, room in ledgers().items():
        known = entries(package, (room / "README.md").read_text("utf-8"))
        for number, modules in tomllib.loads((room / FILE).read_text("utf-8")).items():
            for module, names in modules.items():
                listed += [Touch(f"{module}:{name}" if name else module, known[number]) for name in names]
    return tuple(listed)
