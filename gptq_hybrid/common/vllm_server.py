"""A real ``vllm serve`` process, and a real HTTP client for it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptq_hybrid.common.errors import HybridError

_METRIC = "vllm:spec_decode_num_"
_TERM_SECONDS = 20.0
# Process groups of the servers that run, for kill_servers().
_running: set[int] = set()


class ServerExitedError(HybridError):
    """``vllm serve`` ended before it was ready; ``code`` is its exit status."""

    def __init__(self, code: int, log: Path) -> None:
        super().__init__(f"vllm serve exited with code {code}:\n{_tail(log)}", remedy=f"Full log: {log}")
        self.code = code


@dataclass(frozen=True, slots=True)
class Acceptance:
    """Counts from the server's own metrics, since it started.

    ``drafts``: verification steps; ``proposed`` and ``accepted``: draft tokens;
    ``per_position``: accepted tokens by position in the draft.
    """

    drafts: int
    proposed: int
    accepted: int
    per_position: tuple[int, ...]

    @property
    def rate(self) -> float:
        return self.accepted / self.proposed if self.proposed else 0.0

    @property
    def length(self) -> float:
        """Mean acceptance length: tokens produced per verification step, the verified one included."""
        return 1 + self.accepted / self.drafts if self.drafts else 1.0


@dataclass(frozen=True, slots=True)
class Server:
    """A running server. ``url`` has no trailing slash."""

    url: str
    model: str

    def chat(self, content: str, *, max_tokens: int, **extra: Any) -> dict[str, Any]:
        """One greedy chat completion; returns the parsed response."""
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": max_tokens,
            "temperature": 0,
            **extra,
        }
        return self.post("/v1/chat/completions", body)

    def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        request = urllib.request.Request(
            self.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=300) as response:
            parsed: dict[str, Any] = json.load(response)
        return parsed

    def acceptance(self) -> Acceptance:
        """What ``/metrics`` says of speculative decoding."""
        with urllib.request.urlopen(self.url + "/metrics", timeout=30) as response:
            lines = response.read().decode().splitlines()
        totals: dict[str, int] = {}
        positions: dict[int, int] = {}
        for line in lines:
            if not line.startswith(_METRIC) or "_created" in line:
                continue
            name, _, rest = line.removeprefix(_METRIC).partition("{")
            labels, _, value = rest.rpartition("} ")
            if 'position="' in labels:
                position = int(labels.split('position="')[1].split('"')[0])
                positions[position] = positions.get(position, 0) + int(float(value))
            else:
                totals[name] = totals.get(name, 0) + int(float(value))
        return Acceptance(
            drafts=totals.get("drafts_total", 0),
            proposed=totals.get("draft_tokens_total", 0),
            accepted=totals.get("accepted_tokens_total", 0),
            per_position=tuple(positions[key] for key in sorted(positions)),
        )


def cpu_arguments() -> list[str]:
    """What vLLM's CPU build needs for this architecture.

    It has no Triton, hence no prefix caching in the hybrid's "align" mode, and
    compiling costs more than it gives on a toy.
    """
    none = json.dumps({"image": 0, "video": 0})
    return ["--enforce-eager", "--no-enable-prefix-caching", "--limit-mm-per-prompt", none]


def cpu_environment() -> dict[str, str]:
    return {"VLLM_CPU_KVCACHE_SPACE": "1"}


def vllm_command() -> list[str]:
    """The ``vllm`` command of this Python, or the module behind it where there is no script."""
    script = Path(sys.executable).with_name("vllm")
    return [str(script)] if script.exists() else [sys.executable, "-m", "vllm.entrypoints.cli.main"]


@contextmanager
def vllm_server(
    arguments: Sequence[str],
    *,
    log: Path,
    environment: Mapping[str, str] | None = None,
    timeout: float = 600.0,
) -> Iterator[Server]:
    """``vllm serve`` with ``arguments`` on a free port of the loopback interface, until the block ends.

    Whatever ends the block, the whole process group is gone afterwards.

    Raises:
        ServerExitedError: the server exits; its last lines are quoted.
        HybridError: it is not ready after ``timeout`` seconds; its last lines are quoted.
    """
    port = _free_port()
    command = [*vllm_command(), "serve", *arguments, "--host", "127.0.0.1", "--port", str(port)]
    with log.open("wb") as output:
        # A session of its own, so that the engine processes can be ended with it.
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(environment or {})},
            start_new_session=True,
        )
    _running.add(process.pid)
    try:
        url = f"http://127.0.0.1:{port}"
        _wait_ready(process, url, log, timeout)
        yield Server(url, arguments[0])
    finally:
        _end_group(process)
        _running.discard(process.pid)


def kill_servers() -> None:
    """End every server this process started, at once; for a signal handler that is about to exit."""
    for group in tuple(_running):
        with suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)


def _wait_ready(process: subprocess.Popen[bytes], url: str, log: Path, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        code = process.poll()
        if code is not None:
            raise ServerExitedError(code, log)
        try:
            with urllib.request.urlopen(url + "/health", timeout=5):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.5)
    raise HybridError(
        f"vllm serve was not ready after {timeout:.0f} s:\n{_tail(log)}", remedy=f"Full log: {log}"
    )


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """Ask the group to end, then insist."""
    for sign, patience in ((signal.SIGTERM, _TERM_SECONDS), (signal.SIGKILL, _TERM_SECONDS)):
        try:
            os.killpg(process.pid, sign)
        except ProcessLookupError:
            break
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline and _group_alive(process):
            time.sleep(0.1)
    process.wait()


def _group_alive(process: subprocess.Popen[bytes]) -> bool:
    process.poll()
    try:
        os.killpg(process.pid, 0)
    except ProcessLookupError:
        return False
    return True


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _tail(log: Path, lines: int = 25) -> str:
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])
