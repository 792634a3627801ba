"""The shapes that were seen, and what a version is against them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from packaging.version import InvalidVersion, Version

from .listed import Touch
from .packages import Package
from .shapes import Shape, shape_of

SEEN = Path(__file__).with_name("seen.json")
# Nothing to do; read the function again; what we call or replace has moved; it is not there any more.
State = Literal["as before", "other body", "other shape", "gone"]
ABSENT = "absent"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a name.

    Attributes:
        before: its shape in the version that it is compared with, or "absent".
        now: its shape in the version that is looked at, or "absent".
    """

    touch: Touch
    state: State
    before: str
    now: str


@dataclass(frozen=True, slots=True)
class Report:
    """A package against the record. ``against`` is the version it was compared with, None if none was read."""

    package: str
    version: str
    against: str | None
    verdicts: tuple[Verdict, ...]

    def of(self, *states: State) -> list[Verdict]:
        """The verdicts of some states."""
        return [verdict for verdict in self.verdicts if verdict.state in states]

    @property
    def broken(self) -> bool:
        """Whether something that we rely on has moved or is gone."""
        return bool(self.of("other shape", "gone"))

    def to_json(self) -> dict[str, Any]:
        return {
            "package": self.package,
            "version": self.version,
            "against": self.against,
            "broken": self.broken,
            "names": [
                {
                    "name": v.touch.name,
                    "state": v.state,
                    "before": v.before,
                    "now": v.now,
                    "ledger": v.touch.entry.ledger,
                    "entry": v.touch.entry.number or None,
                    "features": list(v.touch.entry.features),
                }
                for v in self.verdicts
            ],
        }


# By package, name and version: shape and body.
Seen = dict[str, dict[str, dict[str, Shape]]]


def load_seen() -> Seen:
    """The shapes that were recorded."""
    stored: dict[str, dict[str, list[list[Any]]]] = json.loads(SEEN.read_text("utf-8"))
    return {
        package: {
            name: {version: Shape(text, body) for text, body, versions in groups for version in versions}
            for name, groups in names.items()
        }
        for package, names in stored.items()
    }


def dump_seen(seen: Seen) -> str:
    """As JSON: of each name a line with the versions of each shape."""
    lines: list[str] = []
    for package in sorted(seen):
        names = []
        for name in sorted(seen[package]):
            groups: dict[Shape, list[str]] = {}
            for version in sorted(seen[package][name], key=parsed):
                groups.setdefault(seen[package][name][version], []).append(version)
            rows = [[*shape, versions] for shape, versions in groups.items()]
            names.append(f"  {json.dumps(name)}: {json.dumps(rows, separators=(',', ':'))}")
        lines.append(f" {json.dumps(package)}: {{\n" + ",\n".join(names) + "\n }")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def shapes(package: Package, touches: Iterable[Touch]) -> dict[str, Shape]:
    """The shape of every name that is touched in a package; "absent" for those that it does not have."""
    names = dict.fromkeys(touch.name for touch in touches if touch.package == package.name)
    return {name: shape_of(package, name) or Shape(ABSENT) for name in names}


def parsed(version: str) -> Version:
    """A version without its local part ("+cpu"), to be ordered; 0 if it is none."""
    try:
        return Version(Version(version).public)
    except InvalidVersion:
        return Version("0")


def compared(package: Package, touches: Iterable[Touch], seen: Seen) -> Report:
    """Compare a package with the record of its own version, or else of the last one before it.

    A name that no version in the record had is "as before" while it is absent.
    """
    touches = [touch for touch in touches if touch.package == package.name]
    known: Mapping[str, Mapping[str, Shape]] = seen.get(package.name, {})
    versions = sorted({version for by_version in known.values() for version in by_version}, key=parsed)
    here = parsed(package.version)
    known_to_it = [version for version in versions if parsed(version) <= here] or versions
    against = known_to_it[-1] if known_to_it else None
    now = shapes(package, touches)
    verdicts = []
    for touch in touches:
        before = known.get(touch.name, {}).get(against or "", Shape(ABSENT))
        verdicts.append(Verdict(touch, _state(before, now[touch.name]), before.text, now[touch.name].text))
    return Report(package.name, package.version, against, tuple(verdicts))


def _state(before: Shape, now: Shape) -> State:
    if before == now:
        return "as before"
    if now.text == ABSENT:
        return "gone"
    return "other body" if before.text == now.text else "other shape"
