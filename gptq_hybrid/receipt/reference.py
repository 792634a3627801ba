"""The table of the reference card: disk, KV tokens, one request and sixteen of random 1024/256 with two drafts.

The card is that of Qwen3.6-27B-W4A16-G128. It used random prompts, of which the drafts are accepted by accident.
Here vLLM accepts them at a given rate (``rejection_sample_method: synthetic``), so that times can be repeated.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from gptq_hybrid.common.atomic import write_json_atomic, write_text_atomic
from gptq_hybrid.common.errors import HybridError
from gptq_hybrid.common.tables import plain, report_table
from gptq_hybrid.common.versions import find_version
from gptq_hybrid.doctor.place import this_place
from gptq_hybrid.doctor.serve_line import serve_command

from .compare import compare_receipts
from .markdown import conditions, table
from .plan import RANDOM, Cell, Plan
from .record import Receipt
from .run import Request
from .summary import Estimate, acceptance_by_position, median, over_repeats
from .table import with_interval
from .target import at_least, open_target, speculative

# Published for Qwen3.6-27B with four drafts on an Intel B70 card: 0.763, 0.623, 0.459, 0.396 by position.
RATES = (0.763, 0.623)
PROMPT, ANSWER = 1024, 256
_TINY = (64, 16)
_BATCHES = (1, 16)
_GIB = 1 << 30
NOT_COMPARABLE = (
    "Not comparable to the card's own figures: another GPU than its L40S (memory bandwidth, FP8 and BF16 rates, "
    "and which kernel vLLM picks), another vLLM than 0.19.1, drafts accepted at a given rate rather than by "
    "accident, and tokens of KV cache as newer versions count them (0.19.1 shows about a quarter of them)."
)
# What a column is measured with, and the variables that make it so.
_STOCK, _PLUGIN = "stock", "plugin"

Measure = Callable[[Request], Receipt]


@dataclass(frozen=True)
class ReferenceRequest:
    """What to make a table of.

    Attributes:
        checkpoints: folders or hub ids, a pair of columns each.
        flags: of ``vllm serve``, without that for drafts.
        out: folder; each column's receipt goes into one below it.
        rates: share of drafts accepted at each position, of all steps; as many as there are drafts.
        repeats: of each cell.
        tiny: 64/16 tokens in place of 1024/256, to try the command.
    """

    checkpoints: tuple[str, ...]
    flags: tuple[str, ...]
    out: Path
    rates: tuple[float, ...] = RATES
    repeats: int = 3
    tiny: bool = False


def parse_rates(text: str) -> tuple[float, ...]:
    """Parse ``0.8,0.6``: shares from 0 to 1 that do not grow, as vLLM wants them.

    Raises:
        HybridError: they are not.
    """
    try:
        rates = tuple(float(part) for part in text.split(","))
    except ValueError:
        rates = ()
    if not rates or not all(0 <= rate <= 1 for rate in rates) or list(rates) != sorted(rates, reverse=True):
        raise HybridError(
            f"--acceptance {text!r} is no list of shares from 0 to 1 that do not grow",
            remedy="Give the share of steps in which each position is accepted, such as: --acceptance 0.8,0.6",
        )
    return rates


@dataclass(frozen=True)
class Column:
    """One column: a checkpoint, stock or with the plugin."""

    checkpoint: str
    variant: str
    receipt: Receipt

    @property
    def title(self) -> str:
        """Its head."""
        return f"{self.checkpoint}, {self.variant}"


@dataclass(frozen=True)
class Card:
    """The table."""

    columns: tuple[Column, ...]
    warnings: tuple[str, ...]

    def rows(self) -> list[tuple[str, list[str]]]:
        """Return the rows: a name, and a text for each column."""
        return [(name, [of(column.receipt) for column in self.columns]) for name, of in _ROWS]

    def ratios(self) -> list[dict[str, Any]]:
        """Compare the plugin with stock, and each other checkpoint with the first."""
        found = []
        for one, other in self._pairs():
            comparison = compare_receipts(one.receipt, other.receipt, fiction=True)
            found.append({"first": one.title, "second": other.title, **comparison.as_json()})
        return found

    def _pairs(self) -> Iterator[tuple[Column, Column]]:
        for at in range(0, len(self.columns) - 1, 2):
            yield self.columns[at], self.columns[at + 1]
        for column in self.columns[2:]:
            if column.variant == _STOCK:
                yield self.columns[0], column

    def sentence(self) -> str:
        """Say what matters most."""
        stock, plugin = (_tokens(self.columns[at].receipt, 1) for at in (0, 1))
        return (
            f"{self.columns[0].checkpoint}: one request {with_interval(stock)} tokens a second stock, "
            f"{with_interval(plugin)} with the plugin."
        )

    def table(self) -> Table:
        """Make the table for a terminal."""
        shown = report_table("", "medians over requests; in brackets: 95 % intervals")
        shown.add_column("")
        for column in self.columns:
            shown.add_column(plain(column.title), justify="right", no_wrap=True)
        for name, texts in self.rows():
            shown.add_row(name, *texts)
        return shown

    def as_json(self) -> dict[str, Any]:
        """Make the object of the file."""
        return {
            "kind": "qwen36 reference card",
            "format": 1,
            "columns": [
                {"checkpoint": c.checkpoint, "variant": c.variant, "figures": _figures(c.receipt)}
                for c in self.columns
            ],
            "ratios": self.ratios(),
            "warnings": list(self.warnings),
            "not_comparable": NOT_COMPARABLE,
        }

    def write(self, folder: Path) -> Path:
        """Write ``reference.json`` and ``reference.md``; return the former."""
        path = folder / "reference.json"
        write_json_atomic(path, self.as_json())
        lines = ["# The reference card's table", "", self.sentence(), ""]
        head = ("", *(column.title for column in self.columns))
        lines += table(head, ((name, *texts) for name, texts in self.rows()), numbers=1)
        lines += ["", NOT_COMPARABLE, ""]
        lines += [f"* {text}" for text in self.warnings]
        lines += ["", *conditions(self.columns[-1].receipt)]
        write_text_atomic(path.with_suffix(".md"), "\n".join(lines) + "\n")
        return path


def make_card(request: ReferenceRequest, measure: Measure) -> Card:
    """Measure every column that its folder lacks.

    Args:
        request: what to make.
        measure: makes one receipt.

    Raises:
        HybridError: a checkpoint is none, a flag is set by the measurement itself, or a server ended.
    """
    if speculative(request.flags):
        raise HybridError(
            "--speculative-config may not be given: the table's drafts are set", remedy="Leave it out."
        )
    opened = {each: open_target(each) for each in request.checkpoints}
    synthetic = this_place() != "cpu"
    config: dict[str, Any] = {"method": "mtp", "num_speculative_tokens": len(request.rates)}
    warnings = []
    if synthetic:
        config |= {"rejection_sample_method": "synthetic", "synthetic_acceptance_rates": list(request.rates)}
    else:
        warnings.append(
            "vLLM's CPU build cannot accept drafts at a given rate: with random prompts the decode figures are an "
            "accident, and show only that the command works"
        )
    if find_version("vllm-qwen36-plugin") is None:
        warnings.append("vllm-qwen36-plugin is not installed here, so both columns are stock")
    prompt, answer = _TINY if request.tiny else (PROMPT, ANSWER)
    plan = Plan((), 0, "", (), _BATCHES, answer, request.repeats, 0.0, prompt, 8)
    columns = []
    for name, checkpoint in opened.items():
        flags = list(request.flags)
        variables: dict[str, str] = {}
        if not flags:
            command = serve_command(checkpoint, this_place(), drafts=0)
            variables = dict(command.environment)
            flags = at_least(list(command.arguments[1:]), "--max-num-seqs", max(_BATCHES))
        flags += ["--speculative-config", json.dumps(config)]
        for variant in (_STOCK, _PLUGIN):
            label = Path(checkpoint.location).name
            environment = {**variables, **({"VLLM_PLUGINS": ""} if variant == _STOCK else {})}
            folder = request.out / f"{label}-{variant}"
            receipt = measure(Request(name, plan, None, tuple(flags), environment, folder))
            columns.append(Column(label, variant, receipt))
    return Card(tuple(columns), tuple(warnings))


def _cell(receipt: Receipt, batch: int) -> Any:
    return receipt.cells[Cell(str(receipt.plan.random_tokens), batch, RANDOM)].repeats


def _tokens(receipt: Receipt, batch: int) -> Estimate:
    return over_repeats([repeat.throughput for repeat in _cell(receipt, batch)])


def _time(name: str, batch: int) -> Callable[[Receipt], str]:
    return lambda receipt: with_interval(median(_cell(receipt, batch), lambda r: getattr(r, name)))


def _disk(receipt: Receipt) -> str:
    size = receipt.subject.get("disk_bytes")
    return "–" if not size else f"{size / _GIB:.2f} GiB"


def _cache(receipt: Receipt) -> str:
    gib, tokens = receipt.server["kv_cache_gib"], receipt.server["kv_cache_tokens"]
    return (
        " → ".join(filter(None, (f"{gib:.2f} GiB" if gib else "", f"{tokens:,} tokens" if tokens else "")))
        or "–"
    )


def _accepted(receipt: Receipt) -> str:
    shares = acceptance_by_position(_cell(receipt, 1))
    return " / ".join(f"{100 * share:.0f} %" for share in shares) or "no drafts"


_ROWS: tuple[tuple[str, Callable[[Receipt], str]], ...] = (
    ("weights on disk", _disk),
    ("KV cache", _cache),
    ("one request: tokens/s", lambda r: with_interval(_tokens(r, 1))),
    ("one request: TPOT, ms", _time("tpot_ms", 1)),
    ("one request: TTFT, ms", _time("ttft_ms", 1)),
    ("16 requests: tokens/s", lambda r: with_interval(_tokens(r, 16))),
    ("16 requests: TTFT, ms", _time("ttft_ms", 16)),
    ("drafts accepted by position", _accepted),
)


def _figures(receipt: Receipt) -> dict[str, Any]:
    found: dict[str, Any] = {
        "disk_bytes": receipt.subject.get("disk_bytes"),
        "kv_cache_gib": receipt.server["kv_cache_gib"],
        "kv_cache_tokens": receipt.server["kv_cache_tokens"],
        "acceptance_by_position": acceptance_by_position(_cell(receipt, 1)),
    }
    for batch in _BATCHES:
        for name in ("ttft_ms", "tpot_ms"):
            estimate = median(_cell(receipt, batch), lambda r, name=name: getattr(r, name))  # type: ignore[misc]
            found[f"{name}_batch_{batch}"] = None if estimate is None else estimate.as_json()
        found[f"tokens_per_second_batch_{batch}"] = _tokens(receipt, batch).as_json()
    return found
