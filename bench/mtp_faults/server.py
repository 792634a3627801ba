"""One real `vllm serve` process: start it, complete one prompt, read its counters, end it."""

from __future__ import annotations

import os
import re
import time
import urllib.error
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gptq_hybrid.common.vllm_server import (
    ServerExitedError,
    cpu_arguments,
    cpu_environment,
    vllm_server,
)

SPECULATIVE = '{"method":"mtp","num_speculative_tokens":2}'
FLAGS = [*cpu_arguments(), "--max-model-len", "512", "--max-num-seqs", "4"]
# Little of a card, so that several servers share it; what needs no flashinfer; and nothing compiled: that takes
# longer than all else and changes no verdict.
GPU_FLAGS = [
    "--gpu-memory-utilization", "0.05", "--kv-cache-memory-bytes", str(2 << 30),
    "--gdn-prefill-backend", "triton", "--attention-backend", "TRITON_ATTN",
    "--enforce-eager",
]  # fmt: skip


@dataclass
class Outcome:
    """What one server did.

    ``text`` is None if it did not start, or failed at the request; ``message`` then holds what it said last.
    """

    started: bool
    seconds: float
    exit_code: int | None = None
    text: str | None = None
    proposed: int | None = None
    accepted: int | None = None
    message: list[str] = field(default_factory=list)


def serve_once(
    model: Path,
    prompt: Sequence[int],
    max_tokens: int,
    *,
    plugins: str,
    log: Path,
    pythonpath: Path | None = None,
    extra: Sequence[str] = (),
    speculative: bool = True,
    timeout: float = 420,
    temperature: float = 0,
    vllm: Sequence[str] = (),
) -> Outcome:
    """Serve ``model``, by another environment's command if one is given.

    ``plugins`` becomes ``VLLM_PLUGINS``; "" is stock vLLM.
    """
    drafts = ("--speculative-config", SPECULATIVE) if speculative else ()
    arguments = [str(model), *FLAGS, *(GPU_FLAGS if on_gpu() else ()), *drafts, *extra]
    environment = cpu_environment() | {
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_PLUGINS": plugins,
    }
    if pythonpath is not None:
        environment["PYTHONPATH"] = os.pathsep.join(
            part for part in (str(pythonpath), os.environ.get("PYTHONPATH", "")) if part
        )
    begun = time.monotonic()
    body = {"prompt": list(prompt), "max_tokens": max_tokens, "temperature": temperature}
    outcome = Outcome(started=False, seconds=0)
    try:
        with vllm_server(arguments, log=log, environment=environment, timeout=timeout, vllm=vllm) as server:
            outcome = Outcome(started=True, seconds=round(time.monotonic() - begun, 1))
            answer = server.post("/v1/completions", {"model": server.model, **body})
            outcome.text = answer["choices"][0]["text"]
            counted = server.acceptance()
            outcome.proposed, outcome.accepted = counted.proposed, counted.accepted
    except urllib.error.URLError:
        outcome.message = what_was_said(log.read_text(errors="replace").splitlines())
    except ServerExitedError as error:
        outcome = Outcome(started=False, seconds=round(time.monotonic() - begun, 1), exit_code=error.code)
        outcome.message = what_was_said(log.read_text(errors="replace").splitlines())
    return outcome


def on_gpu() -> bool:
    """Whether servers here run on a GPU."""
    import torch

    return torch.cuda.is_available()


def what_was_said(lines: Sequence[str]) -> list[str]:
    """The plugin's message from its first line on; else the engine's own error, or any; else the last lines."""
    said = [said for line in lines if (said := re.sub(r"^\(\w+ pid=\d+\) ", "", line)).strip()]
    ours = [i for i, line in enumerate(said) if line.startswith("vllm-qwen36-plugin:")]
    engine = [line for line in said if re.match(r"ERROR .*\] (?!Runtime|EngineDead)\w*Error: ", line)]
    if ours:
        return said[ours[0] :]
    named = [line.strip() for line in said if re.match(r"\s*Value error, |\w*Error: ", line)]
    return [line.split("] ", 1)[1] for line in engine[-1:]] or named[-1:] or said[-8:]
