"""A data set on 127.0.0.1 behind what `datasets` and `huggingface_hub` ask of a hub."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha1
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPO = "me/data"
_API, _FILES = f"/api/datasets/{REPO}", f"/datasets/{REPO}/resolve/{COMMIT}/"


class DatasetHub(ThreadingHTTPServer):
    """Serves a folder as data set ``me/data`` at one commit, which ``main`` names."""

    daemon_threads = True

    def __init__(self, folder: Path, licence: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.licence = licence
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.paths: list[str] = []

    def files(self) -> list[dict[str, Any]]:
        return [
            {
                "type": "file",
                "path": path.relative_to(self.folder).as_posix(),
                "size": path.stat().st_size,
                "oid": sha1(path.read_bytes()).hexdigest(),
            }
            for path in sorted(self.folder.rglob("*"))
            if path.is_file()
        ]


class _Handler(BaseHTTPRequestHandler):
    server: DatasetHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.paths.append(path)
        if path in (_API, f"{_API}/revision/main", f"{_API}/revision/{COMMIT}"):
            siblings = [{"rfilename": file["path"]} for file in self.server.files()]
            card = {"license": self.server.licence}
            self.send_json(
                {"_id": "1", "id": REPO, "sha": COMMIT, "siblings": siblings, "cardData": card, "tags": []}
            )
        elif path.startswith(f"{_API}/tree/{COMMIT}"):
            self.send_tree(path.removeprefix(f"{_API}/tree/{COMMIT}").strip("/"))
        elif path.startswith(_FILES) and (self.server.folder / path.removeprefix(_FILES)).is_file():
            self.send_file((self.server.folder / path.removeprefix(_FILES)).read_bytes())
        else:
            self.send_json({"error": "absent"}, 404)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        path = urlsplit(self.path).path
        self.server.paths.append(path)
        if not path.startswith(f"{_API}/paths-info/"):
            return self.send_json({"error": "absent"}, 404)
        names = json.loads(body)["paths"] if body.startswith("{") else parse_qs(body)["paths"]
        files = {file["path"]: file for file in self.server.files()}
        folders = {str(parent) for name in files for parent in Path(name).parents}
        entries = [files.get(name) or _folder(name) for name in names if name in files or name in folders]
        return self.send_json(entries)

    def send_tree(self, folder: str) -> None:
        recursive = parse_qs(urlsplit(self.path).query).get("recursive", ["false"])[0].lower() == "true"
        below = {
            file["path"]: file
            for file in self.server.files()
            if not folder or file["path"].startswith(f"{folder}/")
        }
        if not below:
            return self.send_json({"error": "absent"}, 404)
        depth = folder.count("/") + 2 if folder else 1
        folders = {"/".join(path.split("/")[:depth]) for path in below if path.count("/") >= depth}
        files = [file for path, file in below.items() if recursive or path.count("/") < depth]
        return self.send_json([_folder(path) for path in sorted(folders)] + files)

    def send_json(self, value: Any, status: int = 200) -> None:
        self.respond(status, {"Content-Type": "application/json"}, json.dumps(value).encode())

    def send_file(self, data: bytes) -> None:
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{sha1(data).hexdigest()}"', "Accept-Ranges": "bytes"}
        requested = self.headers.get("Range")
        if requested is None:
            return self.respond(200, headers, data)
        first, _, last = requested.removeprefix("bytes=").partition("-")
        end = min(int(last) + 1 if last else len(data), len(data))
        headers["Content-Range"] = f"bytes {first}-{end - 1}/{len(data)}"
        return self.respond(206, headers, data[int(first) : end])

    def respond(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _folder(path: str) -> dict[str, Any]:
    return {"type": "directory", "path": path, "oid": "0" * 40}


@contextmanager
def dataset_hub(folder: Path, licence: str = "mit") -> Iterator[DatasetHub]:
    with DatasetHub(folder, licence) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
