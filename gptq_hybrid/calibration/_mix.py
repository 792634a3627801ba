"""Mixes: several sources by weight. A mix is one TOML file."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from gptq_hybrid.common.errors import CheckpointError, HybridError
from gptq_hybrid.common.small_files import read_small_file

from ._files import FILE_ENDINGS, path_kind
from .rows import Row

_PREFIX = "mix:"


@dataclass(frozen=True, slots=True)
class Part:
    """One source of a mix.

    Attributes:
        name: the domain of its rows.
        source: the source, with paths relative to the working folder.
        spec: the source as the mix writes it.
        weight: its share of the tokens, relative to the other parts.
        domains: if not empty, only rows whose own ``domain`` is one of these.
        max_rows: most rows.
        only_full: leave out rows shorter than the maximal length.
        template: keyword arguments of the chat template.
        evaluation: another source, for evaluation only.
        hold_out: share of the rows, 0 to 1, kept for evaluation and never calibrated on; chosen by their text.
        licence: of the rows, if the source does not say.
    """

    name: str
    source: str
    spec: str
    weight: float = 1.0
    domains: tuple[str, ...] = ()
    max_rows: int | None = None
    only_full: bool = False
    template: dict[str, Any] = field(default_factory=dict)
    evaluation: str | None = None
    hold_out: float = 0.0
    licence: str | None = None

    def accepts(self, row: Row) -> bool:
        """Whether a row is of one of the ``domains``."""
        return not self.domains or row.get("domain") in self.domains


@dataclass(frozen=True, slots=True)
class Mix:
    """A named mix, whose parts have distinct names."""

    name: str
    description: str
    parts: tuple[Part, ...]


_KEYS = {f.name for f in fields(Part)} - {"spec"}


def is_mix(spec: str) -> bool:
    """Whether a ``--calibration`` value names a mix: ``mix:NAME``, or a path ending in .toml."""
    return spec.startswith(_PREFIX) or spec.endswith(".toml")


def mix_names() -> list[str]:
    """Return the names of the mixes that ship."""
    return sorted(p.name.removesuffix(".toml") for p in _shipped().iterdir() if p.name.endswith(".toml"))


def load_mix(spec: str) -> Mix:
    """Read the mix that ``spec`` names.

    Raises:
        HybridError: there is no such mix, or the file is not a mix.
    """
    if spec.startswith(_PREFIX):
        name = spec.removeprefix(_PREFIX)
        if name not in mix_names():
            raise HybridError(
                f"no calibration mix is called {name!r}", remedy="Mixes: " + ", ".join(mix_names()) + "."
            )
        return _parse(name, (_shipped() / f"{name}.toml").read_text(encoding="utf-8"), spec, None)
    path = Path(spec)
    try:
        return _parse(path.stem, read_small_file(path).decode("utf-8-sig"), spec, path.parent)
    except (CheckpointError, ValueError) as error:
        raise HybridError(f"calibration mix {path} cannot be read: {error}") from error


def _shipped() -> Traversable:
    return files(__package__) / "mixes"


def _parse(name: str, text: str, where: str, folder: Path | None) -> Mix:
    try:
        data = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise HybridError(f"{where} is not valid TOML: {error}") from error
    parts = data.get("part")
    if not isinstance(parts, list) or not parts or data.keys() - {"description", "part"}:
        raise HybridError(
            f"{where} must hold `description` and one or more [[part]], and nothing else",
            remedy='[[part]]\nname = "chat"\nsource = "chat.jsonl"\nweight = 2',
        )
    mix_parts = tuple(
        _parse_part(part, f"{where}: part {number}", folder) for number, part in enumerate(parts, 1)
    )
    repeated = {part.name for part in mix_parts if sum(other.name == part.name for other in mix_parts) > 1}
    if repeated:
        raise HybridError(
            f"{where}: two parts are called {min(repeated)!r}", remedy="Give each its own name."
        )
    return Mix(name, str(data.get("description", "")), mix_parts)


def _parse_part(data: Any, where: str, folder: Path | None) -> Part:
    if not isinstance(data, dict):
        raise HybridError(f"{where} is not a table")
    unknown = data.keys() - _KEYS
    if unknown:
        raise HybridError(
            f"{where}: unknown key {min(unknown)!r}", remedy="Keys: " + ", ".join(sorted(_KEYS)) + "."
        )
    part = {**data, "spec": data.get("source")}
    for key in ("source", "evaluation"):
        value = part.get(key)
        if isinstance(value, str):
            if is_mix(value):
                raise HybridError(
                    f"{where}: {key} is itself a mix, which is not supported",
                    remedy="Write the parts of that mix here.",
                )
            if folder is not None and (value.endswith(FILE_ENDINGS) or path_kind(str(folder / value))):
                part[key] = str(folder / value)
    for key, (is_valid, description) in _VALUES.items():
        if not is_valid(part.get(key)) and (key in part or key in ("name", "source")):
            raise HybridError(f"{where}: {key} = {part.get(key)!r} is not {description}")
    return Part(**{**part, "domains": tuple(part.get("domains", ()))})


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value != ""


# For each key of a part: whether a value is valid, and what it should be, for messages.
_VALUES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "name": (_is_text, "a name"),
    "source": (_is_text, "a source"),
    "weight": (lambda v: _is_number(v) and 0 < v < float("inf"), "a number above 0"),
    "domains": (lambda v: isinstance(v, list) and all(map(_is_text, v)), "a list of domains"),
    "max_rows": (lambda v: isinstance(v, int) and not isinstance(v, bool) and v > 0, "a number of rows"),
    "only_full": (lambda v: isinstance(v, bool), "true or false"),
    "template": (lambda v: isinstance(v, dict), "a table"),
    "evaluation": (_is_text, "a source"),
    "hold_out": (lambda v: _is_number(v) and 0 <= v < 1, "a share from 0 to below 1"),
    "licence": (_is_text, "text"),
}
