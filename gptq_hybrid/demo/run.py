"""The whole job on a small checkpoint: build, quantize, check, serve with MTP, complete, report."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from gptq_hybrid.checkpoint import MTP_FILE, Checkpoint
from gptq_hybrid.common.atomic import write_json_atomic
from gptq_hybrid.common.vllm_server import (
    Acceptance,
    Server,
    cpu_arguments,
    cpu_environment,
    vllm_server,
)
from gptq_hybrid.doctor import inspect, installed_vllm
from gptq_hybrid.doctor.serve_line import serve_arguments
from gptq_hybrid.doctor.vllm_releases import plugin_installed
from gptq_hybrid.quantize import QuantizeRequest, QuantizeResult, plan_run, quantize
from gptq_hybrid.recipes import load_recipe

from .builder import DemoCheckpoint, build_demo_checkpoint

PROMPTS = (
    "What are you?",
    "Explain Gated DeltaNet in one sentence.",
    "Schreib mir ein Gedicht über Grafikkarten.",
    "def fibonacci(n):",
)
# Twice round the demo sentence.
MAX_TOKENS = 52


@dataclass(frozen=True, slots=True)
class Reply:
    prompt: str
    text: str
    as_constructed: bool


@dataclass(frozen=True, slots=True)
class DemoReport:
    """What the demo saw. ``seconds`` by stage: build, quantize, start (of the server), complete."""

    replies: tuple[Reply, ...]
    acceptance: Acceptance
    seconds: dict[str, float]
    command: tuple[str, ...]
    source_bytes: int
    target_bytes: int

    @property
    def ok(self) -> bool:
        """Every reply is the constructed sentence, and drafts were accepted."""
        return all(reply.as_constructed for reply in self.replies) and self.acceptance.accepted > 0

    def to_json(self) -> dict[str, object]:
        return {
            **asdict(self),
            "acceptance_rate": self.acceptance.rate,
            "acceptance_length": self.acceptance.length,
            "ok": self.ok,
        }


def run_demo(folder: Path, *, recipe: str, on_stage: Callable[[str], None]) -> DemoReport:
    """Run the demo in an empty ``folder``; leaves the two checkpoints, the server's log and ``report.json`` there.

    Raises:
        HybridError: any stage that fails.
    """
    seconds: dict[str, float] = {}
    clock = time.perf_counter()

    def stage(name: str, announcement: str) -> None:
        nonlocal clock
        now = time.perf_counter()
        if seconds or name != "build":
            seconds[previous[0]] = now - clock
        clock, previous[0] = now, name
        on_stage(announcement)

    previous = ["build"]
    stage("build", "Building a checkpoint of the true architecture, with an MTP head")
    original = build_demo_checkpoint(folder / "original")
    stage("quantize", "Quantizing to W4A16 GPTQ g128 with gptqmodel")
    result = _quantize(original, folder / "quantized", recipe, on_stage)
    _check(result.target)
    stage("start", "Starting `vllm serve` with MTP speculative decoding")
    arguments = _arguments(result.target)
    with vllm_server(arguments, log=folder / "vllm.log", environment=_environment()) as server:
        stage("complete", "Asking for chat completions")
        replies = tuple(_ask(server, original, prompt) for prompt in PROMPTS)
        acceptance = server.acceptance()
        stage("", "Stopping the server")
    report = DemoReport(
        replies, acceptance, seconds, ("vllm", "serve", *arguments), result.source_bytes, result.target_bytes
    )
    write_json_atomic(folder / "report.json", report.to_json())
    return report


def _quantize(
    original: DemoCheckpoint, target: Path, recipe: str, on_stage: Callable[[str], None]
) -> QuantizeResult:
    request = QuantizeRequest(
        source=original.path,
        target=target,
        recipe=load_recipe(recipe),
        calibration="demo",
        samples=24,
        max_length=256,
    )
    return quantize(
        plan_run(request), on_slower=lambda reason: on_stage(f"gptqmodel runs at its own speed: {reason}")
    )


def _check(target: Path) -> None:
    checkpoint = Checkpoint.open(target)
    # Act order costs a warning, and is what `--recipe reference` asks for.
    errors = inspect(checkpoint, vllm=installed_vllm(), plugin=plugin_installed()).errors
    assert not errors, errors
    assert checkpoint.index is not None
    assert MTP_FILE in checkpoint.index.values()


def _on_cpu() -> bool:
    import torch

    return not torch.cuda.is_available()


def _arguments(target: Path) -> list[str]:
    shared = ["--max-model-len", "512", "--max-num-seqs", "8"]
    arguments = serve_arguments(Checkpoint.open(target), chat=False) + shared
    return arguments + (cpu_arguments() if _on_cpu() else ["--gpu-memory-utilization", "0.5"])


def _environment() -> dict[str, str]:
    return cpu_environment() if _on_cpu() else {}


def _ask(server: Server, original: DemoCheckpoint, prompt: str) -> Reply:
    response = server.chat(prompt, max_tokens=MAX_TOKENS)
    text = response["choices"][0]["message"]["content"] or ""
    return Reply(prompt, text, text.strip() == _expected(original).strip())


def _expected(original: DemoCheckpoint) -> str:
    # Any token outside the sentence leads to its start, so what the prompt was does not matter.
    outside = next(t for t in range(len(original.next_token)) if t not in original.loop)
    return original.expected_text([outside], MAX_TOKENS)


def report_json(report: DemoReport) -> str:
    return json.dumps(report.to_json(), indent=2, ensure_ascii=False)
