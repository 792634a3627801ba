"""The receipt: what was measured, on what, with what; and its file, which is written after every repeat."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gptq_hybrid
from gptq_hybrid.common.atomic import write_json_atomic
from gptq_hybrid.common.errors import HybridError
from gptq_hybrid.common.small_files import read_json
from gptq_hybrid.live import Counters

from .load import Answers
from .plan import Cell, Plan, plan_from_json

KIND, FORMAT = "qwen36 receipt", 1
NAME = "receipt.json"
_ITL_SHARES = (0.0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1.0)
_MOST_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class Repeat:
    """One burst of a cell.

    Attributes:
        ttft_ms, tpot_ms: of each request, milliseconds; a time per token is None for a short answer.
        itl_ms: the distribution between parts of a stream: ``count``, ``mean`` and quantiles by their share.
        prompt_tokens, output_tokens: of each request.
        seconds: from the first request to the last answer.
        counters: what vLLM counted during it.
        gpu: memory, clocks and power of each GPU during it; empty where there is no driver to ask.
    """

    ttft_ms: tuple[float, ...]
    tpot_ms: tuple[float | None, ...]
    itl_ms: Mapping[str, float]
    prompt_tokens: tuple[int, ...]
    output_tokens: tuple[int, ...]
    seconds: float
    counters: Counters
    gpu: tuple[Mapping[str, Any], ...] = ()

    @classmethod
    def of(cls, answers: Answers, counters: Counters, gpu: tuple[Mapping[str, Any], ...]) -> Repeat:
        """Make a repeat of what came back and what was counted."""
        gaps = [gap for each in answers.itl for gap in each]
        itl: dict[str, float] = {"count": len(gaps)}
        if gaps:
            itl["mean"] = round(sum(gaps) / len(gaps), 4)
        return cls(
            answers.ttft,
            answers.tpot,
            itl | quantiles(gaps, _ITL_SHARES),
            answers.prompt_tokens,
            answers.output_tokens,
            answers.seconds,
            counters,
            gpu,
        )

    @property
    def throughput(self) -> float:
        """Tokens of answers a second, all requests together."""
        return sum(self.output_tokens) / self.seconds if self.seconds else 0.0

    def as_json(self) -> dict[str, Any]:
        """Make its object in the file."""
        counted = self.counters
        return {
            "ttft_ms": list(self.ttft_ms),
            "tpot_ms": list(self.tpot_ms),
            "itl_ms": dict(self.itl_ms),
            "prompt_tokens": list(self.prompt_tokens),
            "output_tokens": list(self.output_tokens),
            "seconds": self.seconds,
            "counters": {
                "drafts": counted.drafts,
                "draft_tokens": counted.proposed,
                "accepted_tokens": counted.accepted,
                "accepted_by_position": list(counted.per_position),
                "prefix_cache_queries": counted.cache_queries,
                "prefix_cache_hits": counted.cache_hits,
                "preemptions": counted.preemptions,
                "requests": counted.requests,
                "corrupted": counted.corrupted,
            },
            "gpu": [dict(each) for each in self.gpu],
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Repeat:
        """Read back what :meth:`as_json` made.

        Raises:
            KeyError, TypeError, ValueError: it is not of that form.
        """
        counted = content["counters"]
        repeat = cls(
            tuple(map(float, content["ttft_ms"])),
            tuple(None if value is None else float(value) for value in content["tpot_ms"]),
            dict(content["itl_ms"]),
            tuple(map(int, content["prompt_tokens"])),
            tuple(map(int, content["output_tokens"])),
            float(content["seconds"]),
            Counters(
                drafts=counted["drafts"],
                proposed=counted["draft_tokens"],
                accepted=counted["accepted_tokens"],
                per_position=tuple(counted["accepted_by_position"]),
                cache_queries=counted["prefix_cache_queries"],
                cache_hits=counted["prefix_cache_hits"],
                preemptions=counted["preemptions"],
                requests=counted["requests"],
                corrupted=counted["corrupted"],
            ),
            tuple(content["gpu"]),
        )
        if not len(repeat.ttft_ms) == len(repeat.tpot_ms) == len(repeat.output_tokens) > 0:
            raise ValueError("a repeat's lists are empty or not equally long")
        return repeat


@dataclass
class Measured:
    """A cell's repeats, and the digest of the prompts that they sent."""

    cell: Cell
    prompts_sha256: str
    repeats: list[Repeat] = field(default_factory=list)


@dataclass
class Receipt:
    """A receipt, complete or not.

    Attributes:
        plan: what is to be measured.
        subject: the checkpoint: its name, digest and sizes.
        server: vLLM's version, flags and settings, the plugin's.
        machine: GPU, CPU and versions; empty where the server is elsewhere.
        cells: what is measured so far.
        warnings: objects with ``rule`` and ``message``: why a figure may not mean what it seems to.
        quality: figures of ``qwen36 eval``, if they were joined.
        made: date and time of the last repeat, UTC, ISO 8601.
        complete: whether every cell is measured.
    """

    plan: Plan
    subject: dict[str, Any]
    server: dict[str, Any]
    machine: dict[str, Any]
    cells: dict[Cell, Measured] = field(default_factory=dict)
    warnings: list[dict[str, str]] = field(default_factory=list)
    quality: dict[str, Any] | None = None
    made: str = ""
    complete: bool = False

    @property
    def identity(self) -> dict[str, Any]:
        """What two runs must have in common for one to continue the other."""
        server = {key: self.server.get(key) for key in ("vllm", "plugin", "arguments", "environment")}
        machine = {key: self.machine.get(key) for key in ("gpus", "cpu")}
        return {"plan": self.plan.as_json(), "digest": self.subject.get("digest"), **server, **machine}

    def as_json(self) -> dict[str, Any]:
        """Make the object in the file, with a summary of each cell for people and programs."""
        from .summary import summary_json

        return {
            "kind": KIND,
            "format": FORMAT,
            "version": gptq_hybrid.__version__,
            "made": self.made,
            "complete": self.complete,
            "subject": self.subject,
            "server": self.server,
            "machine": self.machine,
            "plan": self.plan.as_json(),
            "warnings": self.warnings,
            "quality": self.quality,
            "cells": [
                {
                    "context": measured.cell.context,
                    "batch": measured.cell.batch,
                    "domain": measured.cell.domain,
                    "cache": measured.cell.cache,
                    "prompts_sha256": measured.prompts_sha256,
                    "summary": summary_json(measured.repeats),
                    "repeats": [repeat.as_json() for repeat in measured.repeats],
                }
                for measured in self.cells.values()
            ],
        }

    def write(self, path: Path) -> None:
        """Write the file, which appears whole or not at all."""
        write_json_atomic(path, self.as_json())


def read_receipt(path: Path) -> Receipt:
    """Read a receipt, or the one in a folder; needs neither torch nor vLLM.

    Raises:
        HybridError: there is none, or it is of another format.
    """
    file = path / NAME if path.is_dir() else path
    content = read_json(file, most=_MOST_BYTES)
    remedy = "Give a receipt.json that qwen36 receipt wrote, or its folder."
    if not isinstance(content, Mapping) or content.get("kind") != KIND:
        raise HybridError(f"{file} is no receipt of qwen36", remedy=remedy)
    if content.get("format") != FORMAT:
        newer = isinstance(content.get("format"), int) and content["format"] > FORMAT
        raise HybridError(
            f"{file} is a receipt of format {content.get('format')!r}; this version reads {FORMAT}",
            remedy="Update vllm-qwen36-plugin." if newer else remedy,
        )
    try:
        cells: dict[Cell, Measured] = {}
        for entry in content["cells"]:
            cell = Cell(str(entry["context"]), int(entry["batch"]), str(entry["domain"]), entry["cache"])
            repeats = [Repeat.from_json(repeat) for repeat in entry["repeats"]]
            cells[cell] = Measured(cell, str(entry["prompts_sha256"]), repeats)
        return Receipt(
            plan_from_json(content["plan"]),
            dict(content["subject"]),
            dict(content["server"]),
            dict(content["machine"]),
            cells,
            [dict(warning) for warning in content["warnings"]],
            content["quality"],
            str(content["made"]),
            bool(content["complete"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise HybridError(f"{file} is damaged: {error!r}", remedy=remedy) from error


def differences(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Say what differs between two identities of receipts, a text each."""
    texts = []
    for key in {**earlier, **now}:
        old, new = earlier.get(key), now.get(key)
        if old == new:
            continue
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            texts += differences(old, new)
        else:
            texts.append(f"{key} {_short(old)} then, {_short(new)} now")
    return texts


def quantiles(values: Sequence[float], shares: Sequence[float]) -> dict[str, float]:
    """Return the quantiles of some values by their share, as text; empty without values."""
    import numpy as np

    if not values:
        return {}
    data = np.array(values)
    return {f"{share:g}": round(float(np.quantile(data, share)), 4) for share in shares}


def _short(value: Any) -> str:
    text = " ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= 120 else text[:117] + "..."
