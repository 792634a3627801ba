"""From how many rows on which path is faster, for one GPU: read, written, looked for. Imports no torch."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

from .shape import Shape

PathName = Literal["exact", "fp8"]
PATHS: tuple[PathName, ...] = ("exact", "fp8")
# As ``upstream.scaled_mm.Gemm``, which needs torch.
GemmName = Literal["vllm", "torch"]
GEMMS: tuple[GemmName, ...] = get_args(GemmName)
FORMAT = 2
_ENV = "QWEN36_CACHE"


class ProfileError(ValueError):
    """A profile's file cannot be used. The text says which and why."""


@dataclass(frozen=True, slots=True)
class Starts:
    """Rows from which on a path is faster than the stock kernel; None: never. And whose GEMM ``fp8`` takes."""

    exact: int | None = None
    fp8: int | None = None
    fp8_gemm: GemmName = "vllm"


@dataclass(frozen=True, slots=True)
class Card:
    """What a measurement holds for: another of these, another profile."""

    gpu: str
    driver: str
    versions: Mapping[str, str]
    scratch_mib: int

    @property
    def digest(self) -> str:
        """Twelve hex digits of all of it."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


@dataclass(frozen=True, slots=True)
class Profile:
    """Starts by shape, and where they come from: ``measured: …`` or ``derived: …``.

    ``times_us``: by shape, path (``"stock"`` among them) and number of rows, microseconds a call.
    """

    source: str
    starts: Mapping[Shape, Starts]
    card: Card | None = None
    times_us: Mapping[Shape, Mapping[str, Mapping[int, float]]] = field(default_factory=dict)

    def merged(self, other: Profile) -> Profile:
        """Both, ``other``'s where both have a shape."""
        return Profile(
            other.source,
            {**self.starts, **other.starts},
            other.card or self.card,
            {**self.times_us, **other.times_us},
        )


class ShippedProfile(Protocol):
    """What ``qwen36_prefill_profiles`` yields: starts for cards known by name."""

    @property
    def device_names(self) -> tuple[str, ...]:
        """Parts of the name that the driver reports; the last profile with one that fits is taken."""

    @property
    def source(self) -> str:
        """``measured: …`` or ``derived: …``."""

    def starts(self, shape: Shape) -> Starts:
        """For one shape; ``Starts()`` where the stock kernel is to be used."""


def shipped_for(gpu: str, shipped: Iterable[ShippedProfile]) -> ShippedProfile | None:
    """The last contributed profile for a card of that name: a third party's wins over ours."""
    found = [profile for profile in shipped if any(name in gpu for name in profile.device_names)]
    return found[-1] if found else None


def first_win(stock: Mapping[int, float], other: Mapping[int, float], margin: float) -> int | None:
    """The least number of rows from which on, up to the most measured, ``other`` is faster by ``margin``.

    Args:
        stock, other: microseconds by number of rows.
        margin: 0.03 asks for 3 %.
    """
    found = None
    for rows in sorted(set(stock) & set(other), reverse=True):
        if other[rows] > stock[rows] * (1 - margin):
            break
        found = rows
    return found


def to_json(profile: Profile) -> dict[str, Any]:
    """For a file."""
    return {
        "format": FORMAT,
        "source": profile.source,
        "card": asdict(profile.card) if profile.card else None,
        "shapes": {
            shape.key: {
                **asdict(starts),
                "times_us": {
                    path: {str(rows): round(us, 2) for rows, us in sorted(times.items())}
                    for path, times in profile.times_us.get(shape, {}).items()
                },
            }
            for shape, starts in sorted(profile.starts.items())
        },
    }


def from_json(data: Any, where: str) -> Profile:
    """The profile in parsed JSON; ``where`` names it in errors.

    Raises:
        ProfileError: it is not one, or of another version of this plugin's format.
    """
    try:
        if data["format"] != FORMAT:
            raise ProfileError(f"{where} has format {data['format']!r}, not {FORMAT}: run qwen36 tune again")
        shapes = {Shape.parse(key): entry for key, entry in data["shapes"].items()}
        starts = {
            shape: Starts(_rows(entry["exact"]), _rows(entry["fp8"]), _gemm(entry["fp8_gemm"]))
            for shape, entry in shapes.items()
        }
        times = {
            shape: {
                path: {int(m): float(us) for m, us in by.items()} for path, by in entry["times_us"].items()
            }
            for shape, entry in shapes.items()
        }
        card = Card(**data["card"]) if data["card"] else None
        return Profile(str(data["source"]), starts, card, times)
    except ProfileError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ProfileError(f"{where} is no profile of qwen36 tune: {error!r}") from error


def _rows(value: Any) -> int | None:
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and value > 0):
        return value
    raise ValueError(f"{value!r} is no number of rows")


def _gemm(value: Any) -> GemmName:
    if value not in GEMMS:
        raise ValueError(f"{value!r} is none of {', '.join(GEMMS)}")
    return value  # type: ignore[no-any-return]


def read(path: Path) -> Profile:
    """The profile in a file.

    Raises:
        ProfileError: unreadable, or no profile.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ProfileError(f"{path} cannot be read: {error}") from error
    return from_json(data, str(path))


def write(path: Path, profile: Profile) -> None:
    """Write it, under a temporary name first.

    Raises:
        OSError: it cannot be written.
    """
    from gptq_hybrid.common.atomic import write_json_atomic

    path.parent.mkdir(parents=True, exist_ok=True)
    write_json_atomic(path, to_json(profile))


def cache_folder() -> Path:
    """``$QWEN36_CACHE``, else ``qwen36`` in the user's cache folder.

    Raises:
        OSError: the user has no home, as under a container's own user id.
    """
    own = os.environ.get(_ENV)
    if own:
        return Path(own)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qwen36"
    except RuntimeError as error:
        raise OSError(f"there is no folder to keep it in: {error} Set {_ENV} to one") from error


def cached(card: Card) -> Path:
    """Where the profile measured on this card is kept, whether there is one or not.

    Raises:
        OSError: as `cache_folder`.
    """
    name = "".join(c if c.isalnum() else "-" for c in card.gpu).strip("-")
    return cache_folder() / "prefill" / f"{name}-{card.digest}.json"
