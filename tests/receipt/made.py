"""Made-up receipts, and ``qwen36 receipt`` run against a fake server without ``vllm bench serve``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptq_hybrid.common.vllm_server import Server
from gptq_hybrid.live import Counters
from gptq_hybrid.receipt.load import Answers, Burst, LoadError, Target
from gptq_hybrid.receipt.plan import Cell, Plan
from gptq_hybrid.receipt.record import Measured, Receipt, Repeat

from .fake import MODEL, FakeVllm

MINI = Path(__file__).parents[2] / "bench" / "mini" / "checkpoint"
MACHINE = {
    "gpus": [{"name": "A card", "memory_gib": 24.0, "compute_capability": "8.9", "driver": "580"}],
    "cpu": "a CPU",
    "system": "Linux",
    "python": "3.11",
    "versions": {"vllm": "0.32.0", "torch": "2.13.0"},
    "variables": {},
    "features": [],
}
SERVER: dict[str, Any] = {
    "vllm": "0.32.0",
    "plugin": "0.1.0",
    "plugin_options": "{}",
    "plugin_paths": {},
    "arguments": ["made", "--max-num-seqs", "16"],
    "environment": {},
    "max_model_len": 8192,
    "max_num_seqs": 16,
    "prefix_caching": False,
    "speculates": True,
    "drafts": 2,
    "rejection": "standard",
    "synthetic_rates": None,
    "synthetic_length": None,
    "kv_cache_tokens": 4096,
    "kv_cache_gib": None,
    "kv_cache_dtype": "auto",
}


def repeat(tpot: Sequence[float | None], *, ttft: float = 50.0, accepted: Sequence[int] = (80, 60)) -> Repeat:
    """A burst whose requests have these times per token; 100 drafts, accepted so often at each position."""
    counters = Counters(
        drafts=100, proposed=200, accepted=sum(accepted), per_position=tuple(accepted), requests=len(tpot)
    )
    answers = Answers(
        tuple(ttft + at for at in range(len(tpot))),
        tuple(tpot),
        tuple((1.0, 2.0, 3.0) for _ in tpot),
        (100,) * len(tpot),
        (32,) * len(tpot),
        sum(32 * (value or 1.0) for value in tpot) / 1e3,
    )
    return Repeat.of(answers, counters, ())


def receipt(times: float = 1.0, **changes: Any) -> Receipt:
    """A complete receipt of two domains, batches 1 and 4; every time is ``times`` the usual one."""
    plan = Plan(("chat", "code"), 2, "made", ("short",), (1, 4), 32, 3)
    cells = {}
    for at, cell in enumerate(plan.cells(warm=False)):
        repeats = [
            repeat([times * (10 + at + noise), times * (11 + at - noise)], ttft=50.0 * times)
            for noise in (0.0, 0.05, -0.05)
        ]
        cells[cell] = Measured(cell, f"digest of {cell.name}", repeats)
    values: dict[str, Any] = {
        "plan": plan,
        "subject": {"name": "made", "digest": "ab" * 32, "tokenizer_sha256": "cd" * 32},
        "server": dict(SERVER),
        "machine": dict(MACHINE),
        "cells": cells,
        "made": "2026-11-30T20:00:00+00:00",
        "complete": True,
    }
    return Receipt(**(values | changes))


@dataclass
class MadeLoad:
    """Answers bursts at once, and has the fake server count them; may fail at one.

    Attributes:
        fails_at: number of the burst at which the server dies.
        refuses_at: number of the burst at which it refuses.
    """

    fake: FakeVllm
    fails_at: int = 0
    refuses_at: int = 0
    bursts: int = 0
    tpot_ms: float = 5.0

    def run(self, burst: Burst) -> Answers:
        self.bursts += 1
        if self.bursts == self.fails_at:
            self.fake.dead = True
            raise LoadError("1 of 1 requests failed: ClientConnectorError: Cannot connect")
        if self.bursts == self.refuses_at:
            raise LoadError("1 of 1 requests failed: Bad Request")
        prompts = burst.prompts or tuple(f"random {burst.seed} {at}" for at in range(burst.count))
        for prompt in prompts:
            self.fake.answer(prompt, burst.max_tokens)
        count = len(prompts)
        return Answers(
            tuple(20.0 + at for at in range(count)),
            (self.tpot_ms,) * count,
            ((self.tpot_ms, self.tpot_ms),) * count,
            tuple(map(len, prompts)),
            (burst.max_tokens,) * count,
            0.1,
        )


def patched(monkeypatch: Any, fake: FakeVllm, **load: Any) -> MadeLoad:
    """Put the fake in place of servers and of the load generator; no machine is looked at."""
    from gptq_hybrid.receipt import measure, outputs, run

    made = MadeLoad(fake, **load)
    monkeypatch.setattr(measure, "_SETTLED_AFTER", 0.0)
    # One test draws; a picture takes longer than all the rest.
    monkeypatch.setattr(outputs, "find_spec", lambda name: None)

    @contextmanager
    def bench(target: Target, log: Path) -> Iterator[MadeLoad]:
        assert target.url == fake.url
        yield made

    @contextmanager
    def server(arguments: Sequence[str], *, log: Path, **_: Any) -> Iterator[Server]:
        fake.dead = False
        log.write_text("Available KV cache memory: 1.50 GiB\n")
        yield Server(fake.url, MODEL)

    monkeypatch.setattr(run, "vllm_bench", bench)
    monkeypatch.setattr(run, "vllm_server", server)
    monkeypatch.setattr(run, "describe_machine", lambda: dict(MACHINE))
    return made


def cell(context: str = "short", batch: int = 1, domain: str = "chat") -> Cell:
    """A cell with a cold cache."""
    return Cell(context, batch, domain)
