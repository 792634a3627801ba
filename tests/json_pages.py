"""The part of a stand-in for a server that answers with JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any


class JsonPages(BaseHTTPRequestHandler):
    """Quiet, keeps connections open, and sends texts or what JSON can hold."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def send(self, value: Any, status: int = 200) -> None:
        """Send a text as it is, and anything else as JSON."""
        raw = (value if isinstance(value, str) else json.dumps(value)).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def do_GET(self) -> None:
        self.get()

    def do_POST(self) -> None:
        self.post(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def get(self) -> None:
        """Answer for ``self.path``."""
        raise NotImplementedError(self.path)

    def post(self, body: Any) -> None:
        """Answer to what was posted."""
        raise NotImplementedError(self.path, body)


@contextmanager
def served(pages: type[JsonPages]) -> Iterator[str]:
    """Serve on a free port until the block ends; yield the address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), pages)
    thread = Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
