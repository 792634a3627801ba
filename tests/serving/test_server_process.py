"""However a block that uses a server ends, no process of that server outlives it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from gptq_hybrid.common import vllm_server as module
from gptq_hybrid.common.vllm_server import ServerExitedError, vllm_server

# A stand-in for `vllm`: answers /health, and starts a child that ignores SIGTERM, as an engine may.
FAKE = textwrap.dedent("""
    import http.server, subprocess, sys
    port = int(sys.argv[sys.argv.index("--port") + 1])
    if "--refuse" in sys.argv:
        sys.exit("no such model")
    child = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
    open(sys.argv[2], "w").write(str(subprocess.Popen([sys.executable, "-c", child]).pid))
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
    http.server.HTTPServer(("127.0.0.1", port), Handler).serve_forever()
""")


def alive(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    script = tmp_path / "vllm.py"
    script.write_text(FAKE)
    monkeypatch.setattr(module, "vllm_command", lambda: [sys.executable, str(script)])
    monkeypatch.setattr(module, "_TERM_SECONDS", 2.0)
    return tmp_path / "pid"


def test_a_finished_block_leaves_no_process(fake: Path, tmp_path: Path) -> None:
    with vllm_server([str(fake)], log=tmp_path / "log"):
        pid = int(fake.read_text())
        assert alive(pid)
    assert not alive(pid)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failed_or_interrupted_block_leaves_no_process(
    fake: Path, tmp_path: Path, error: type[BaseException]
) -> None:
    def fail() -> None:
        with vllm_server([str(fake)], log=tmp_path / "log"):
            raise error

    with pytest.raises(error):
        fail()
    assert not alive(int(fake.read_text()))


def test_a_server_that_exits_is_an_error_with_its_last_words(fake: Path, tmp_path: Path) -> None:
    with pytest.raises(ServerExitedError, match="no such model") as caught:  # noqa: SIM117
        with vllm_server([str(fake), "--refuse"], log=tmp_path / "log"):
            pytest.fail("must not run")
    assert caught.value.code == 1


@pytest.mark.parametrize("delay", [0.0, 4.0])
def test_an_interrupted_demo_ends_at_once_and_cleans_up(tmp_path: Path, delay: float) -> None:
    """Ctrl-C while libraries are imported or the demo works: exit code 130, temporary folder gone."""
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    demo = subprocess.Popen(
        [str(Path(sys.executable).with_name("qwen36")), "demo"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not list(tmp_path.glob("qwen36-demo-*/original/config.json")):
        time.sleep(0.2)
    time.sleep(delay)
    os.killpg(demo.pid, signal.SIGINT)
    try:
        output, _ = demo.communicate(timeout=60)
    finally:
        demo.kill()
    assert demo.returncode == 130, output
    assert "Traceback" not in output
    assert [folder for folder in tmp_path.glob("qwen36-demo-*") if folder.is_dir()] == []
