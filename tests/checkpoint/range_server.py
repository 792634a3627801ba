"""A folder on 127.0.0.1, served in ranges: every request is recorded, and every fault can be switched on."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

_PIECE = 64 << 10


@dataclass
class Request:
    method: str
    path: str
    headers: dict[str, str]

    @property
    def range(self) -> str | None:
        return self.headers.get("range")


@dataclass
class Faults:
    """Faults by file name; each answer uses up one of ``statuses`` or ``cuts``."""

    no_ranges: bool = False
    framing: str = "length"  # or "chunked", or "close"
    no_head: int = 0  # the status that HEAD is answered with
    statuses: dict[str, list[int]] = field(default_factory=dict)
    retry_after: str = ""
    cuts: dict[str, int] = field(default_factory=dict)
    drips: dict[str, str] = field(default_factory=dict)  # "headers" or "body"
    content_ranges: dict[str, str] = field(default_factory=dict)
    longer: set[str] = field(default_factory=set)
    encoding: str = ""
    redirects: dict[str, str] = field(default_factory=dict)
    etags: dict[str, list[str]] = field(default_factory=dict)  # the last one stays


class RangeServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.requests: list[Request] = []
        self.connections = 0
        self.sent = 0
        self.faults = Faults()
        # Whole answers (status, headers, body) by path without its query; for a hub's API, say.
        self.answers: dict[str, tuple[int, dict[str, str], bytes]] = {}
        # Files are served below this path, which is not part of their name.
        self.root = "/"
        self.lock = threading.Lock()
        self.stopping = threading.Event()

    def handle_error(self, *_: object) -> None:
        """Stay silent: several tests are about a client that goes away."""


class _Handler(BaseHTTPRequestHandler):
    server: RangeServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def setup(self) -> None:
        super().setup()
        with self.server.lock:
            self.server.connections += 1

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        server, faults = self.server, self.server.faults
        path = self.path.partition("?")[0]
        headers = {key.lower(): value for key, value in self.headers.items()}
        server.requests.append(Request(self.command, self.path, headers))
        if path in server.answers:
            status, extra, body = server.answers[path]
            return self.respond(status, extra, body)
        name = unquote(path).removeprefix(server.root)
        if name in faults.redirects:
            return self.respond(302, {"Location": faults.redirects[name]}, b"over there")
        if faults.statuses.get(name):
            after = {"Retry-After": faults.retry_after} if faults.retry_after else {}
            return self.respond(faults.statuses[name].pop(0), after, b"no")
        if self.command == "HEAD" and faults.no_head:
            return self.respond(faults.no_head, {}, b"")
        file = server.folder / name
        if not path.startswith(server.root) or not file.is_file():
            return self.respond(404, {}, b"absent")
        return self.ranged(name, file.read_bytes(), headers.get("range"))

    def ranged(self, name: str, data: bytes, requested: str | None) -> None:
        faults = self.server.faults
        extra = {"Content-Encoding": faults.encoding} if faults.encoding else {}
        if tags := faults.etags.get(name):
            extra["ETag"] = tags.pop(0) if len(tags) > 1 and self.command == "GET" else tags[0]
        if requested is None or faults.no_ranges:
            return self.respond(200, extra, data, name)
        first, _, last = requested.removeprefix("bytes=").partition("-")
        begin, end = int(first), min(int(last) + 1 if last else len(data), len(data))
        if begin >= end:
            return self.respond(416, {"Content-Range": f"bytes */{len(data)}"}, b"")
        content_range = faults.content_ranges.get(name, f"bytes {begin}-{end - 1}/{len(data)}")
        more = 7 if name in faults.longer else 0
        return self.respond(206, {"Content-Range": content_range, **extra}, data[begin : end + more], name)

    def respond(self, status: int, headers: dict[str, str], body: bytes, name: str = "") -> None:
        faults = self.server.faults
        self.send_response(status)
        size = {
            "length": {"Content-Length": str(len(body))},
            "chunked": {"Transfer-Encoding": "chunked"},
            "close": {"Connection": "close"},
        }[faults.framing]
        for key, value in {**size, **headers}.items():
            self.send_header(key, value)
        if faults.drips.get(name) == "headers":
            return self.drip(b"X-Slow: " + b"." * 10_000)
        self.end_headers()
        if self.command == "HEAD":
            return None
        if faults.drips.get(name) == "body":
            return self.drip(body)
        if faults.cuts.get(name, 0) > 0:
            faults.cuts[name] -= 1
            body, self.close_connection = body[: len(body) // 2], True
        for at in range(0, len(body), _PIECE):
            piece = body[at : at + _PIECE]
            self.write(b"%x\r\n%b\r\n" % (len(piece), piece) if faults.framing == "chunked" else piece)
        if faults.framing == "chunked" and not self.close_connection:
            self.write(b"0\r\n\r\n")
        return None

    def drip(self, data: bytes) -> None:
        self.close_connection = True
        self.flush_headers()
        for at in range(len(data)):
            if self.server.stopping.wait(0.05):
                return
            self.write(data[at : at + 1])

    def write(self, data: bytes) -> None:
        # Counted before it is sent: a client with the last byte may look at once.
        with self.server.lock:
            self.server.sent += len(data)
        self.wfile.write(data)


@contextmanager
def serving(folder: Path) -> Iterator[RangeServer]:
    with RangeServer(folder) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.stopping.set()
            server.shutdown()
            thread.join()
