"""Start a real ``vllm serve`` process, and talk to it over HTTP."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from .errors import HybridError

_METRIC = "vllm:spec_decode_num_"
_TERM_SECONDS = 20.0
_TELL_SECONDS = 15.0
# "(EngineCore pid=1) INFO 11-30 16:27:47 [utils.py:333] " and the like; or the rest of a progress bar.
_LOG_PREFIX = re.compile(r"^(?:\([^)]*\)\s*)?(?:[A-Z]+ \d\d-\d\d [\d:]+ \[[^\]]*\]\s*)?")
# Process groups of the running servers, for kill_servers().
_running: set[int] = set()


class ServerExitedError(HybridError):
    """``vllm serve`` exited before it was ready; ``code`` is its exit status."""

    def __init__(self, code: int, log: Path) -> None:
        super().__init__(f"vllm serve exited with code {code}:\n{_tail(log)}", remedy=f"Full log: {log}")
        self.code = code


@dataclass(frozen=True, slots=True)
class Acceptance:
    """Speculative-decoding counts from the server's own metrics, since it started.

    Attributes:
        drafts: verification steps.
        proposed, accepted: draft tokens.
        per_position: accepted draft tokens, by position in the draft.
    """

    drafts: int
    proposed: int
    accepted: int
    per_position: tuple[int, ...]

    @property
    def rate(self) -> float:
        """Share of the proposed draft tokens that were accepted; 0 without any."""
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
        """Ask for one greedy chat completion; return the parsed response."""
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": max_tokens,
            "temperature": 0,
            **extra,
        }
        return self.post("/v1/chat/completions", body)

    def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Post JSON to ``path``; return the parsed response.

        Raises:
            urllib.error.URLError: no answer within 300 s, or an HTTP status of 400 and above.
        """
        request = urllib.request.Request(
            self.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=300) as response:
            parsed: dict[str, Any] = json.load(response)
        return parsed

    def acceptance(self) -> Acceptance:
        """Read the counts of speculative decoding from ``/metrics``."""
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
    """Arguments of ``vllm serve`` that vLLM's CPU build needs for this architecture.

    The build has no Triton, so the hybrid's "align" mode of prefix caching cannot run. Compiling costs more than
    it saves on a toy.
    """
    no_images = json.dumps({"image": 0, "video": 0})
    return ["--enforce-eager", "--no-enable-prefix-caching", "--limit-mm-per-prompt", no_images]


def cpu_environment() -> dict[str, str]:
    """Environment variables for vLLM's CPU build: 1 GiB of key-value cache is enough for a toy."""
    return {"VLLM_CPU_KVCACHE_SPACE": "1"}


def vllm_command() -> list[str]:
    """Return the ``vllm`` command of this Python; the module behind it if no script is installed."""
    script = Path(sys.executable).with_name("vllm")
    return [str(script)] if script.exists() else [sys.executable, "-m", "vllm.entrypoints.cli.main"]


@contextmanager
def vllm_server(
    arguments: Sequence[str],
    *,
    log: str | Path,
    environment: Mapping[str, str] | None = None,
    timeout: float = 600.0,
    on_wait: Callable[[float, str], None] | None = None,
    vllm: Sequence[str] = (),
) -> Iterator[Server]:
    """Run ``vllm serve`` on a free port of the loopback interface until the block ends.

    However the block ends, the whole process group is gone afterwards.

    Args:
        arguments: of ``vllm serve``, the model first.
        log: the file for the server's output.
        environment: variables to set beside this process's own.
        timeout: seconds until the server must be ready.
        on_wait: called every 15 s until it is, with the seconds so far and the last line of its log.
        vllm: the ``vllm`` command, of another environment say; without it that of :func:`vllm_command`.

    Raises:
        ServerExitedError: the server exited; the message quotes its last lines.
        HybridError: the server was not ready after ``timeout`` seconds; the message quotes its last lines.
    """
    log = Path(log)
    port = _free_port()
    command = [*(vllm or vllm_command()), "serve", *arguments, "--host", "127.0.0.1", "--port", str(port)]
    with log.open("wb") as output:
        # A session of its own, so that the engine processes end with it.
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
        _wait_ready(process, url, log, timeout, on_wait)
        yield Server(url, arguments[0])
    finally:
        _end_group(process)
        _running.discard(process.pid)


def kill_servers() -> None:
    """Kill every server this process started; for a signal handler that is about to exit."""
    for group in tuple(_running):
        with suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)


@contextmanager
def servers_end_on_signal() -> Iterator[None]:
    """On Ctrl-C, SIGTERM or a closed terminal: kill every server at once, then leave the block.

    Killed at once: during an orderly end a second Ctrl-C would leave the server running.
    """

    def leave(number: int, frame: FrameType | None) -> None:
        kill_servers()
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + number)

    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, leave) for number in signals}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait_ready(
    process: subprocess.Popen[bytes],
    url: str,
    log: Path,
    timeout: float,
    on_wait: Callable[[float, str], None] | None,
) -> None:
    begun = time.monotonic()
    deadline, told = begun + timeout, begun
    while (now := time.monotonic()) < deadline:
        if on_wait is not None and now - told >= _TELL_SECONDS:
            told = now
            on_wait(now - begun, _last_line(log))
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
    """Send SIGTERM to the process group, then SIGKILL."""
    for signal_number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, signal_number)
        except ProcessLookupError:
            break
        deadline = time.monotonic() + _TERM_SECONDS
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


def _last_line(log: Path) -> str:
    """The last line of the log that says something, without the process and time that vLLM puts before it."""
    lines = [line.strip() for line in _tail(log).splitlines() if line.strip()]
    return _LOG_PREFIX.sub("", lines[-1]) if lines else "its log is empty yet"


def _tail(log: Path, lines: int = 25) -> str:
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])
