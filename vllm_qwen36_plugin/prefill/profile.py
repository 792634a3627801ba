"""Profiles: the number of tokens from which each route is faster on one GPU, and their files. Imports no torch."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

from gptq_hybrid.common.errors import CheckpointError
from gptq_hybrid.common.small_files import read_json

from .shape import Shape

Route = Literal["exact", "a8", "fp8"]
ROUTES: tuple[Route, ...] = ("exact", "a8", "fp8")
# Those whose activations have 8 bits: for rows of prompts alone.
EIGHT_BIT = frozenset({"a8", "fp8"})
# The same as ``upstream.scaled_mm.Gemm``; importing that would import torch.
GemmName = Literal["vllm", "torch"]
GEMMS: tuple[GemmName, ...] = get_args(GemmName)
Ranges = tuple[tuple[int, int | None], ...]
FORMAT = 3
_ENV = "QWEN36_CACHE"


class ProfileError(ValueError):
    """The file of a profile cannot be used; the text says which file and why."""


@dataclass(frozen=True, slots=True)
class Starts:
    """What serves a call, by its number of tokens.

    Attributes:
        exact, fp8, a8: number of tokens from which the route beats whatever else would serve; None: never.
        fp8_gemm: the GEMM of ``fp8``.
        humming: first and last numbers of tokens (None: no last) that Humming's kernel takes from the stock one.
    """

    exact: int | None = None
    fp8: int | None = None
    fp8_gemm: GemmName = "vllm"
    humming: Ranges = ()
    a8: int | None = None


@dataclass(frozen=True, slots=True)
class Card:
    """What a measurement is valid for: if any of these changes, another profile is needed."""

    gpu: str
    driver: str
    versions: Mapping[str, str]
    scratch_mib: int

    @property
    def digest(self) -> str:
        """Twelve hex digits that identify all of it."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


@dataclass(frozen=True, slots=True)
class Profile:
    """Starts by shape.

    Attributes:
        source: where they come from, ``measured: …`` or ``derived: …``.
        times_us: microseconds of a call by shape, route (``"stock"`` is one) and number of tokens.
    """

    source: str
    starts: Mapping[Shape, Starts]
    card: Card | None = None
    times_us: Mapping[Shape, Mapping[str, Mapping[int, float]]] = field(default_factory=dict)

    def merged(self, other: Profile) -> Profile:
        """Combine two profiles; ``other`` wins where both have a shape."""
        return Profile(
            other.source,
            {**self.starts, **other.starts},
            other.card or self.card,
            {**self.times_us, **other.times_us},
        )


class ShippedProfile(Protocol):
    """What the hook ``qwen36_prefill_profiles`` contributes: starts for cards known by name."""

    @property
    def device_names(self) -> tuple[str, ...]:
        """Parts of the name that the driver reports; of the profiles with a match the last one is used."""

    @property
    def source(self) -> str:
        """``measured: …`` or ``derived: …``."""

    def starts(self, shape: Shape) -> Starts:
        """Give the starts of one shape; ``Starts()`` leaves it to the stock kernel."""


def shipped_for(gpu: str, shipped: Iterable[ShippedProfile]) -> ShippedProfile | None:
    """Pick the last contributed profile for a card of that name: a third party's wins over ours."""
    matching = [profile for profile in shipped if any(name in gpu for name in profile.device_names)]
    return matching[-1] if matching else None


def winning_ranges(stock: Mapping[int, float], other: Mapping[int, float], margin: float) -> Ranges:
    """Find the numbers of tokens that ``other`` is faster for by ``margin``.

    A kernel's time grows in steps, a tile of tokens at a time. So a measured number stands for those down to the
    one measured before it, and the last for all above.
    """
    ranges: list[tuple[int, int | None]] = []
    counts = sorted(set(stock) & set(other))
    for place, tokens in enumerate(counts):
        if other[tokens] > stock[tokens] * (1 - margin):
            continue
        first = counts[place - 1] + 1 if place else 1
        last = tokens if place + 1 < len(counts) else None
        if ranges and ranges[-1][1] == first - 1:
            ranges[-1] = ranges[-1][0], last
        else:
            ranges.append((first, last))
    return tuple(ranges)


def first_win(stock: Mapping[int, float], other: Mapping[int, float], margin: float) -> int | None:
    """Find the least number of tokens from which ``other`` is faster by ``margin`` up to the most measured.

    Args:
        stock, other: microseconds by number of tokens.
        margin: 0.03 asks for 3 %.
    """
    start = None
    for tokens in sorted(set(stock) & set(other), reverse=True):
        if other[tokens] > stock[tokens] * (1 - margin):
            break
        start = tokens
    return start


def to_json(profile: Profile) -> dict[str, Any]:
    """Make the JSON object of a profile's file."""
    return {
        "format": FORMAT,
        "source": profile.source,
        "card": asdict(profile.card) if profile.card else None,
        "shapes": {
            shape.key: {
                **asdict(starts),
                "times_us": {
                    route: {str(tokens): round(us, 2) for tokens, us in sorted(times.items())}
                    for route, times in profile.times_us.get(shape, {}).items()
                },
            }
            for shape, starts in sorted(profile.starts.items())
        },
    }


# One that `qwen36 tune prefill` wrote for the 27B has 12 KB.
_MOST_BYTES = 4 << 20


def from_json(data: Any, where: str) -> Profile:
    """Read a profile from parsed JSON.

    Args:
        data: the parsed file.
        where: its name in errors.

    Raises:
        ProfileError: it is no profile, or one of another format.
    """
    try:
        if data["format"] != FORMAT:
            raise ProfileError(
                f"{where} has format {data['format']!r}, not {FORMAT}: run qwen36 tune prefill again"
            )
        shapes = {Shape.parse(key): entry for key, entry in data["shapes"].items()}
        starts = {
            shape: Starts(
                _start(entry["exact"]),
                _start(entry["fp8"]),
                _gemm(entry["fp8_gemm"]),
                tuple((int(first), _start(last)) for first, last in entry["humming"]),
                # Profiles written before there was this route have none.
                _start(entry.get("a8")),
            )
            for shape, entry in shapes.items()
        }
        times_us = {
            shape: {
                route: {int(tokens): float(us) for tokens, us in times.items()}
                for route, times in entry["times_us"].items()
            }
            for shape, entry in shapes.items()
        }
        card = Card(**data["card"]) if data["card"] else None
        return Profile(str(data["source"]), starts, card, times_us)
    except ProfileError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ProfileError(f"{where} is no profile of qwen36 tune prefill: {error!r}") from error


def _start(value: Any) -> int | None:
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and value > 0):
        return value
    raise ValueError(f"{value!r} is no number of tokens")


def _gemm(value: Any) -> GemmName:
    if value not in GEMMS:
        raise ValueError(f"{value!r} is none of {', '.join(GEMMS)}")
    return value  # type: ignore[no-any-return]


def read(path: Path) -> Profile:
    """Read the profile in a file.

    Raises:
        ProfileError: the file cannot be read or holds no profile.
    """
    try:
        data = read_json(path, most=_MOST_BYTES)
    except CheckpointError as error:
        raise ProfileError(error.message) from error
    return from_json(data, str(path))


def write(path: Path, profile: Profile) -> None:
    """Write a profile, under a temporary name first.

    Raises:
        OSError: the file cannot be written.
    """
    from gptq_hybrid.common.atomic import write_json_atomic

    path.parent.mkdir(parents=True, exist_ok=True)
    write_json_atomic(path, to_json(profile))


def cache_folder() -> Path:
    """Name the cache folder: ``$QWEN36_CACHE``, else ``qwen36`` in the user's cache folder.

    Raises:
        OSError: the user has no home folder, as under a container's own user id.
    """
    from_user = os.environ.get(_ENV)
    if from_user:
        return Path(from_user)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qwen36"
    except RuntimeError as error:
        raise OSError(f"there is no folder to keep it in: {error} Set {_ENV} to a folder") from error


def cache_path(card: Card) -> Path:
    """Name the file that keeps the profile measured on this card; it need not exist.

    Raises:
        OSError: as :func:`cache_folder`.
    """
    name = "".join(c if c.isalnum() else "-" for c in card.gpu).strip("-")
    return cache_folder() / "prefill" / f"{name}-{card.digest}.json"
