"""The load generator: ``vllm bench serve``, which sends requests, and times each by the arrival of its tokens."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

from gptq_hybrid.common.errors import HybridError
from gptq_hybrid.common.small_files import read_json

_COMPLETIONS = "/v1/completions"
_TAIL = 12
# Of a shorter answer one part of the stream, with several tokens in it, would decide the time per token.
LEAST_TOKENS = 8


class LoadError(HybridError):
    """Requests failed, or the load generator did."""


@dataclass(frozen=True)
class Burst:
    """Requests to send at once, ``concurrency`` of them in flight.

    Attributes:
        prompts: texts as the model reads them; empty for random tokens.
        max_tokens: most tokens of each answer.
        concurrency: requests in flight.
        random_tokens: tokens of a random prompt, whose answer always has ``max_tokens``; 0 for none.
        count: how many random prompts.
        seed: of random prompts.
        temperature: of sampling; 0 is greedy.
        rendered: whether the prompts hold the special tokens of a chat template, so that none are added.
    """

    prompts: tuple[str, ...]
    max_tokens: int
    concurrency: int
    random_tokens: int = 0
    count: int = 0
    seed: int = 0
    temperature: float = 0.0
    rendered: bool = True


@dataclass(frozen=True, slots=True)
class Answers:
    """What came back; times in milliseconds, a value for each request in the order of the prompts.

    Attributes:
        ttft: from the request to its first token.
        tpot: from the first token to the last, for each token after the first; None for answers of fewer than
            :data:`LEAST_TOKENS`.
        itl: between the parts of a stream; with drafts a part has several tokens.
        prompt_tokens, output_tokens: counted by the server.
        seconds: from the first request to the last answer.
    """

    ttft: tuple[float, ...]
    tpot: tuple[float | None, ...]
    itl: tuple[tuple[float, ...], ...]
    prompt_tokens: tuple[int, ...]
    output_tokens: tuple[int, ...]
    seconds: float


class LoadGenerator(Protocol):
    """Something that sends a burst and says what came back."""

    def run(self, burst: Burst) -> Answers:
        """Send it, and wait for all answers.

        Raises:
            LoadError: a request failed.
        """


def bench_arguments(burst: Burst, target: Target, folder: Path, result: str) -> list[str]:
    """Make the arguments of ``vllm bench serve``; a file with the prompts is written into ``folder``."""
    count = len(burst.prompts) or burst.count
    body: dict[str, Any] = {"seed": 0}
    if burst.prompts and burst.rendered:
        body["add_special_tokens"] = False
    arguments = ["--backend", "openai", "--base-url", target.url, "--endpoint", _COMPLETIONS]
    arguments += ["--model", target.tokenizer, "--served-model-name", target.model]
    arguments += ["--tokenizer", target.tokenizer, "--num-prompts", str(count)]
    arguments += ["--max-concurrency", str(burst.concurrency), "--seed", str(burst.seed)]
    arguments += ["--temperature", str(burst.temperature), "--extra-body", json.dumps(body)]
    arguments += ["--save-result", "--save-detailed", "--disable-tqdm", "--ready-check-timeout-sec", "0"]
    arguments += ["--result-dir", str(folder), "--result-filename", result]
    if not burst.prompts:
        lengths = [
            "--random-input-len",
            str(burst.random_tokens),
            "--random-output-len",
            str(burst.max_tokens),
        ]
        return [*arguments, "--dataset-name", "random", *lengths]
    prompts = folder / "prompts.jsonl"
    rows = ({"prompt": text, "output_tokens": burst.max_tokens} for text in burst.prompts)
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    arguments += ["--dataset-name", "custom", "--dataset-path", str(prompts), "--custom-output-len", "-1"]
    return [*arguments, "--skip-chat-template", "--disable-shuffle", "--no-oversample"]


@dataclass(frozen=True, slots=True)
class Target:
    """Where requests go: the server's address, its name of the model, and a folder or hub id of the tokenizer."""

    url: str
    model: str
    tokenizer: str
    api_key: str | None = None


def read_answers(content: Mapping[str, Any]) -> Answers:
    """Take the figures of a result that ``vllm bench serve`` saved with ``--save-detailed``.

    Raises:
        LoadError: a request failed; the message is of the first one that did.
    """
    errors = [str(error) for error in content.get("errors", ()) if error]
    requests = len(content["ttfts"])
    # 0.19 and later count failures; an answer without any token has no error text in some.
    failed = max(len(errors), int(content.get("failed", requests - int(content["completed"]))))
    if failed:
        said = errors[0].strip().splitlines()[-1] if errors else "no answer had any token"
        raise LoadError(f"{failed} of {requests} requests failed: {said[:500]}")
    ttft = [1e3 * float(value) for value in content["ttfts"]]
    itl = [tuple(round(1e3 * float(value), 3) for value in each) for each in content["itls"]]
    outputs = [int(count) for count in content["output_lens"]]
    # As vLLM computes it: the stream after the first token, shared by the tokens in it.
    tpot = [
        round(1e3 * sum(map(float, gaps)) / (count - 1), 4) if count >= LEAST_TOKENS and gaps else None
        for gaps, count in zip(content["itls"], outputs, strict=True)
    ]
    return Answers(
        tuple(round(value, 3) for value in ttft),
        tuple(tpot),
        tuple(itl),
        tuple(int(count) for count in content["input_lens"]),
        tuple(outputs),
        round(float(content["duration"]), 4),
    )


@dataclass
class VllmBench:
    """``vllm bench serve`` in a process of its own, which takes one burst after another."""

    target: Target
    folder: Path
    log: Path
    _process: subprocess.Popen[str] = field(init=False)
    _bursts: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        environment = {**os.environ, "VLLM_LOGGING_LEVEL": "WARNING"}
        if self.target.api_key:
            environment["OPENAI_API_KEY"] = self.target.api_key
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", f"{__package__}.bench_process"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=environment,
                start_new_session=True,
            )

    def run(self, burst: Burst) -> Answers:
        """Send a burst, and wait for all answers.

        Raises:
            LoadError: a request failed, or the process ended.
        """
        self._bursts += 1
        name = f"burst-{self._bursts}.json"
        arguments = bench_arguments(burst, self.target, self.folder, name)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(arguments) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except OSError:
            line = ""
        if not line:
            raise LoadError(
                f"vllm bench serve ended with code {self._process.wait()}:\n{self._tail()}",
                remedy=f"Full log: {self.log}",
            )
        if error := json.loads(line)["error"]:
            raise LoadError(f"vllm bench serve failed: {error}", remedy=f"Full log: {self.log}")
        result = self.folder / name
        answers = read_answers(read_json(result, most=1 << 30))
        result.unlink()
        return answers

    def close(self) -> None:
        """End the process."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with suppress(OSError):
                    stream.close()

    def _tail(self) -> str:
        return "\n".join(self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-_TAIL:])


@contextmanager
def vllm_bench(target: Target, log: Path) -> Iterator[VllmBench]:
    """Run a :class:`VllmBench` until the block ends; what it prints goes to ``log``."""
    with TemporaryDirectory(prefix="qwen36-bench-") as folder:
        bench = VllmBench(target, Path(folder), log)
        try:
            yield bench
        finally:
            bench.close()
