"""Two receipts side by side: ratios with intervals where they sent the same, and a refusal where they did not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from gptq_hybrid.common.errors import HybridError

from .fiction import FICTION
from .plan import Cell
from .record import Receipt, Repeat
from .summary import Array, Estimate, log_ratios, ratio

METRICS = ("ttft_ms", "tpot_ms", "tokens_per_second", "acceptance_length")
Verdict = Literal["equal", "different", "undecided"]
# Two starts of one server differ by this much, which the repeats of one start do not show.
NOISE = 0.01
TOLERANCE = 0.05


class NotComparableError(HybridError):
    """Two receipts whose figures are of different things."""

    exit_code = 2


@dataclass(frozen=True, slots=True)
class Row:
    """Ratios of one context, batch and state of the cache: the second receipt over the first."""

    context: str
    batch: int
    cache: str
    ratios: dict[str, Estimate]

    def as_json(self) -> dict[str, Any]:
        """Make its object."""
        ratios = {name: estimate.as_json() for name, estimate in self.ratios.items()}
        return {"context": self.context, "batch": self.batch, "cache": self.cache, "ratios": ratios}


@dataclass(frozen=True)
class Comparison:
    """Two receipts that can be compared.

    Attributes:
        rows: the ratios.
        differs: what is not the same, a text each.
        left_out: cells that only one has, by name.
    """

    rows: tuple[Row, ...]
    differs: tuple[str, ...]
    left_out: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Make its object."""
        return {
            "rows": [row.as_json() for row in self.rows],
            "differs": list(self.differs),
            "left_out": list(self.left_out),
        }


def compare_receipts(a: Receipt, b: Receipt, *, fiction: bool = False) -> Comparison:
    """Compare the second receipt with the first.

    Args:
        a, b: the receipts.
        fiction: compare even what a warning of one calls fiction.

    Raises:
        NotComparableError: they did not measure the same; the message gives every reason.
    """
    reasons = list(_reasons(a, b, fiction=fiction))
    shared = [cell for cell in a.cells if cell in b.cells and _same(a, b, cell)]
    if not reasons and not shared:
        reasons.append(_nothing_shared(a, b))
    if reasons:
        raise NotComparableError(
            "the two receipts cannot be compared: " + "; ".join(reasons),
            remedy="Measure the second as the first was: qwen36 receipt TARGET --verify FIRST",
        )
    groups: dict[tuple[str, int, str], list[Cell]] = {}
    for cell in shared:
        groups.setdefault((cell.context, cell.batch, cell.cache), []).append(cell)
    rows = tuple(Row(*key, _ratios(a, b, cells)) for key, cells in groups.items())
    left = [cell.name for cell in {**a.cells, **b.cells} if cell not in shared]
    return Comparison(rows, tuple(_differs(a, b)), tuple(left))


def _same(a: Receipt, b: Receipt, cell: Cell) -> bool:
    one, other = a.cells[cell], b.cells[cell]
    same = one.prompts_sha256 == other.prompts_sha256 or a.plan.repeats != b.plan.repeats
    return bool(same and one.repeats and other.repeats)


def _reasons(a: Receipt, b: Receipt, *, fiction: bool) -> Iterator[str]:
    for name, receipt in (("first", a), ("second", b)):
        if not receipt.complete:
            yield f"the {name} is not complete (give its command again, and it goes on)"
        if not fiction:
            for warning in receipt.warnings:
                if warning["rule"] in FICTION:
                    yield f"in the {name}, {warning['message']}"
    for field, what in (
        ("workload", "prompts"),
        ("max_tokens", "most tokens of an answer"),
        ("temperature", "temperature"),
        ("random_tokens", "tokens of a random prompt"),
    ):
        one, other = getattr(a.plan, field), getattr(b.plan, field)
        if one != other:
            yield f"{what}: {one} and {other}"
    one, other = a.server.get("rejection"), b.server.get("rejection")
    if "synthetic" in (one, other) and one != other:
        yield "one accepts drafts at a given rate, whatever they are, and the other does not"
    elif one == "synthetic":
        rates = [r.server.get("synthetic_rates") or r.server.get("synthetic_length") for r in (a, b)]
        if rates[0] != rates[1]:
            yield f"drafts are accepted at given rates, {rates[0]} and {rates[1]}"
    tokenizers = [receipt.subject.get("tokenizer_sha256") for receipt in (a, b)]
    if None not in tokenizers and tokenizers[0] != tokenizers[1]:
        yield "their tokenizers differ, so a token is not the same amount of text"


def _nothing_shared(a: Receipt, b: Receipt) -> str:
    if not a.cells.keys() & b.cells.keys():
        return (
            f"no context and batch is in both ({', '.join(sorted({c.name for c in a.cells}))} against "
            f"{', '.join(sorted({c.name for c in b.cells}))})"
        )
    return "the prompts of every cell differ, though they have the same names"


def _differs(a: Receipt, b: Receipt) -> Iterator[str]:
    """What is not the same in the two, of all that decides a figure."""
    names = [
        ", ".join(gpu["name"] for gpu in r.machine.get("gpus") or []) or r.machine.get("cpu") for r in (a, b)
    ]
    limits = [
        {gpu.get("power_limit_w") for m in r.cells.values() for each in m.repeats for gpu in each.gpu}
        for r in (a, b)
    ]
    pairs = [
        ("machine", *names),
        ("power limit, W", *(" and ".join(map(str, sorted(x for x in each if x))) for each in limits)),
        ("checkpoint", *(_name(receipt) for receipt in (a, b))),
        *(
            (key, a.server.get(key), b.server.get(key))
            for key in ("vllm", "plugin", "drafts", "kv_cache_dtype")
        ),
        ("plugin options", a.server.get("plugin_options"), b.server.get("plugin_options")),
        ("flags", *(" ".join((r.server.get("arguments") or ["?"])[1:]) or "none" for r in (a, b))),
    ]
    for what, one, other in pairs:
        if one != other:
            yield f"{what}: {one or 'none'} → {other or 'none'}"


def _name(receipt: Receipt) -> str:
    digest = receipt.subject.get("digest")
    return f"{receipt.subject.get('name')} ({digest[:12] if digest else 'no digest: it was elsewhere'})"


def _ratios(a: Receipt, b: Receipt, cells: Sequence[Cell]) -> dict[str, Estimate]:
    pairs = [(a.cells[cell].repeats, b.cells[cell].repeats) for cell in cells]
    found = {
        "ttft_ms": ratio([log_ratios(one, other, lambda r: r.ttft_ms) for one, other in pairs]),
        "tpot_ms": ratio([log_ratios(one, other, lambda r: r.tpot_ms) for one, other in pairs]),
        "tokens_per_second": ratio(
            [log_ratios(one, other, lambda r: (r.throughput or None,)) for one, other in pairs]
        ),
        "acceptance_length": ratio([(_lengths(one), _lengths(other)) for one, other in pairs]),
    }
    return {name: estimate for name, estimate in found.items() if estimate is not None}


def _lengths(repeats: Sequence[Repeat]) -> Array:
    """Logarithms ``[repeats, 1]`` of the acceptance length; NaN without drafts."""
    lengths = [r.counters.acceptance.length if r.counters.drafts else np.nan for r in repeats]
    logs: Array = np.log(np.array(lengths, dtype=np.float64))[:, None]
    return logs


def verdict(estimate: Estimate, tolerance: float = TOLERANCE) -> Verdict:
    """Judge a ratio: ``equal`` if its interval lies within ``tolerance`` of 1, ``different`` if it leaves out 1.

    1 % around 1 counts as 1 (:data:`NOISE`). Anything else is ``undecided``: the interval is too wide.
    """
    low = estimate.value if estimate.low is None else estimate.low
    high = estimate.value if estimate.high is None else estimate.high
    if low >= 1 / (1 + tolerance) and high <= 1 + tolerance:
        return "equal"
    if low > 1 + NOISE or high < 1 / (1 + NOISE):
        return "different"
    return "undecided"


def worst(verdicts: Sequence[Verdict]) -> Verdict:
    """Return the verdict on several figures together."""
    order: tuple[Verdict, ...] = ("different", "undecided")
    for each in order:
        if each in verdicts:
            return each
    return "equal"
