"""The whole job on a small checkpoint: build, quantize, check, serve with MTP, complete, report."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from gptq_hybrid.checkpoint import MTP_FILE, Checkpoint
from gptq_hybrid.common.atomic import write_json_atomic
from gptq_hybrid.common.errors import CheckpointError
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
# The demo sentence twice.
MAX_TOKENS = 52


@dataclass(frozen=True, slots=True)
class Reply:
    prompt: str
    text: str
    as_constructed: bool


@dataclass(frozen=True, slots=True)
class DemoReport:
    """The outcome of a demo run.

    Attributes:
        acceptance: of the MTP drafts, from vLLM's metrics.
        seconds: by stage: ``build``, ``quantize``, ``start`` (of the server), ``complete``.
        command: the ``vllm serve`` line that was run.
    """

    replies: tuple[Reply, ...]
    acceptance: Acceptance
    seconds: dict[str, float]
    command: tuple[str, ...]
    source_bytes: int
    target_bytes: int

    @property
    def ok(self) -> bool:
        """Whether every reply is the constructed sentence and drafts were accepted."""
        return all(reply.as_constructed for reply in self.replies) and self.acceptance.accepted > 0

    def to_json(self) -> dict[str, object]:
        return {
            **asdict(self),
            "acceptance_rate": self.acceptance.rate,
            "acceptance_length": self.acceptance.length,
            "ok": self.ok,
        }


def run_demo(
    folder: str | Path,
    *,
    recipe: str,
    on_stage: Callable[[str], None],
    on_layer: Callable[[int, int], None] | None = None,
    on_wait: Callable[[float, str], None] | None = None,
) -> DemoReport:
    """Run the demo in an empty ``folder``.

    Leaves the two checkpoints there, the server's log and ``report.json``.

    Args:
        folder: where to work.
        recipe: the recipe's name, or the path of its file.
        on_stage: called with what begins.
        on_layer: called with (done, total) as layers are quantized.
        on_wait: called with the seconds so far and the last line of the server's log, while it starts.

    Raises:
        HybridError: a stage failed.
    """
    folder = Path(folder)
    seconds: dict[str, float] = {}

    @contextmanager
    def stage(name: str, announcement: str) -> Iterator[None]:
        on_stage(announcement)
        start = time.perf_counter()
        yield
        seconds[name] = time.perf_counter() - start

    with stage("build", "Building a checkpoint of the true architecture, with an MTP head"):
        original = build_demo_checkpoint(folder / "original")
    with stage("quantize", "Quantizing to W4A16 GPTQ g128 with gptqmodel"):
        result = _quantize(original, folder / "quantized", recipe, on_stage, on_layer)
        refuse_faulty(result.target)
    arguments = _serve_arguments(result.target)
    with ExitStack() as serving:
        with stage("start", "Starting `vllm serve` with MTP speculative decoding"):
            server = serving.enter_context(
                vllm_server(arguments, log=folder / "vllm.log", environment=_environment(), on_wait=on_wait)
            )
        with stage("complete", "Asking for chat completions"):
            replies = tuple(_ask(server, original, prompt) for prompt in PROMPTS)
            acceptance = server.acceptance()
        on_stage("Stopping the server")
    report = DemoReport(
        replies, acceptance, seconds, ("vllm", "serve", *arguments), result.source_bytes, result.target_bytes
    )
    write_json_atomic(folder / "report.json", report.to_json())
    return report


def _quantize(
    original: DemoCheckpoint,
    target: Path,
    recipe: str,
    on_stage: Callable[[str], None],
    on_layer: Callable[[int, int], None] | None,
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
        plan_run(request),
        on_slower=lambda reason: on_stage(f"gptqmodel runs at its own speed: {reason}"),
        on_layer=on_layer,
    )


def refuse_faulty(target: str | Path) -> None:
    """Check the quantized checkpoint before it is served.

    Warnings are accepted: act order costs one, and ``--recipe reference`` asks for it.

    Raises:
        CheckpointError: it has faults, or its index does not name the MTP head's file.
    """
    target = Path(target)
    checkpoint = Checkpoint.open(target)
    errors = inspect(checkpoint, vllm=installed_vllm(), plugin=plugin_installed()).errors
    if errors:
        raise CheckpointError(
            target,
            f"was written with {len(errors)} faults; the first: {errors[0].message}",
            remedy=f"Run: qwen36 check {target}; keep the folder with --keep.",
        )
    if checkpoint.index is None or MTP_FILE not in checkpoint.index.values():
        raise CheckpointError(
            target,
            f"was written without {MTP_FILE} in its index",
            remedy=f"Run: qwen36 check {target}; keep the folder with --keep.",
        )


def _on_cpu() -> bool:
    import torch

    return not torch.cuda.is_available()


def _serve_arguments(target: Path) -> list[str]:
    shared = ["--max-model-len", "512", "--max-num-seqs", "8"]
    arguments = serve_arguments(Checkpoint.open(target), chat=False) + shared
    return arguments + (cpu_arguments() if _on_cpu() else ["--gpu-memory-utilization", "0.5"])


def _environment() -> dict[str, str]:
    return cpu_environment() if _on_cpu() else {}


def _ask(server: Server, original: DemoCheckpoint, prompt: str) -> Reply:
    response = server.chat(prompt, max_tokens=MAX_TOKENS)
    text = response["choices"][0]["message"]["content"] or ""
    return Reply(prompt, text, text.strip() == _expected_reply(original).strip())


def _expected_reply(original: DemoCheckpoint) -> str:
    # Any token outside the sentence leads to its start, so the prompt does not matter.
    outside = next(t for t in range(len(original.next_token)) if t not in original.loop)
    return original.expected_text([outside], MAX_TOKENS)
