"""Files behind a range server: only requested bytes are sent, and no fault ends in a hang or a traceback."""

from __future__ import annotations

import base64
import socket
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import httpx
import pytest

from gptq_hybrid.checkpoint.files import LocalFiles, Range
from gptq_hybrid.checkpoint.files.http import HttpFiles
from gptq_hybrid.common.errors import CheckpointError

from .range_server import RangeServer, serving

DATA = bytes(range(256)) * 400
SIZE = len(DATA)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RangeServer]:
    (tmp_path / "a.bin").write_bytes(DATA)
    (tmp_path / "empty").touch()
    (tmp_path / "config.json").write_text("{}")
    with serving(tmp_path) as running:
        yield running


@pytest.fixture
def files(server: RangeServer) -> Iterator[HttpFiles]:
    with HttpFiles(server.url + "/", timeout=5.0) as opened:
        yield opened


def refused(
    files: HttpFiles, name: str = "a.bin", begin: int = 0, count: int | None = 1000
) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        files.read(Range(name, begin, count))
    assert str(caught.value).startswith(f"{files.location}/{name}: ")
    return caught.value


@pytest.mark.parametrize(
    ("begin", "count"),
    [
        (0, 10),
        (1000, 70_000),
        (SIZE - 5, 5),
        (SIZE - 5, 500),
        (SIZE - 5, None),
        (0, 32 << 20),
        (0, None),
        (5, 0),
    ],
)
def test_a_range_is_what_the_folder_would_give(
    server: RangeServer, files: HttpFiles, begin: int, count: int | None
) -> None:
    part = Range("a.bin", begin, count)
    data = files.read(part)
    assert data == LocalFiles(server.folder).read(part)
    assert server.sent == files.reads.bytes == len(data)
    assert len(server.requests) == files.reads.requests == 1
    assert server.requests[0].headers["accept-encoding"] == "identity"


@pytest.mark.parametrize("begin", [SIZE, SIZE + 1, 10**12])
def test_nothing_lies_at_or_after_the_end(server: RangeServer, files: HttpFiles, begin: int) -> None:
    assert files.read(Range("a.bin", begin, 10)) == b""
    assert files.read(Range("a.bin", begin)) == b""
    assert files.size("a.bin") == SIZE
    assert server.sent == 0


def test_an_empty_file_reads_as_nothing(server: RangeServer, files: HttpFiles) -> None:
    assert files.read(Range("empty", 0, 100)) == b""
    assert files.size("empty") == 0
    assert len(server.requests) == 1


def test_a_size_costs_one_head_or_the_read_before_it(server: RangeServer, files: HttpFiles) -> None:
    assert [files.size("a.bin"), files.size("a.bin"), files.size("nope"), files.size("nope")] == [
        SIZE,
        SIZE,
        None,
        None,
    ]
    assert [(r.method, r.path) for r in server.requests] == [("HEAD", "/a.bin"), ("HEAD", "/nope")]
    files.read(Range("config.json", 0, 2))
    assert files.size("config.json") == 2
    assert len(server.requests) == 3
    assert refused(files, "nope").message.endswith("does not exist")
    assert len(server.requests) == 3
    assert refused(files, "gone").message.endswith("does not exist")
    assert files.size("gone") is None
    assert len(server.requests) == 4


@pytest.mark.parametrize("status", [403, 405, 501])
def test_a_size_without_head_costs_one_byte(server: RangeServer, files: HttpFiles, status: int) -> None:
    server.faults.no_head = status
    assert files.size("a.bin") == SIZE
    assert server.sent == 1
    assert files.size("empty") == 0
    assert files.size("nope") is None


def test_a_listing_spares_requests_for_what_is_not_in_it(server: RangeServer) -> None:
    with HttpFiles(server.url, listing=["sub/x", "config.json", "a.bin"]) as files:
        assert files.names() == ("a.bin", "config.json")
        assert files.size("nope") is None
        assert "does not exist" in refused(files, "nope").message
        assert server.requests == []
        assert files.size("a.bin") == SIZE
    assert HttpFiles(server.url).names() is None


@pytest.mark.parametrize("name", ["what?.bin", "50%.bin", "a#b", "%2e%2e", "a b", "ü", "sub/x", "a;b=c&d+e"])
def test_names_are_quoted(server: RangeServer, files: HttpFiles, name: str) -> None:
    (server.folder / "sub").mkdir()
    (server.folder / name).write_bytes(name.encode())
    assert files.read(Range(name)) == name.encode()


@pytest.mark.parametrize(
    "name", ["../a.bin", "/a.bin", "x/../../a.bin", "..\\a", "http://127.0.0.1/a", "", ".", "./"]
)
def test_names_that_lead_out_are_not_asked_for(server: RangeServer, files: HttpFiles, name: str) -> None:
    assert files.refusal(name)
    assert files.size(name) is None
    assert "leads out" in refused(files, name).message
    assert server.requests == []


def test_a_name_that_is_no_text_is_absent(files: HttpFiles) -> None:
    assert files.size("\ud800.safetensors") is None


def test_a_server_without_ranges_is_not_downloaded_from(server: RangeServer, files: HttpFiles) -> None:
    (server.folder / "big").write_bytes(bytes(64 << 20))
    server.faults.no_ranges = True
    assert files.read(Range("config.json", 0, 1000)) == b"{}"
    for begin, count in [(0, 1000), (1000, None), (1000, 10)]:
        error = refused(files, "big", begin, count)
        assert "does not answer range requests (HTTP 200)" in error.message
        assert "Download" in str(error.remedy)
    assert files.reads.bytes == 2
    assert server.sent < 32 << 20  # what the sockets' buffers took, three times
    assert files.size("big") == 64 << 20


def test_a_small_file_in_chunks_is_read_whole_and_a_cut_one_is_noticed(
    server: RangeServer, files: HttpFiles
) -> None:
    server.faults.no_ranges, server.faults.framing = True, "chunked"
    server.faults.cuts["a.bin"] = 1
    assert files.read(Range("a.bin", 0, 32 << 20)) == DATA
    assert files.size("a.bin") == SIZE
    assert len(server.requests) == 2
    assert "more than the 1 bytes" in refused(files, "config.json", 0, 1).message


def test_a_body_whose_end_nothing_tells_is_refused(server: RangeServer, files: HttpFiles) -> None:
    server.faults.no_ranges, server.faults.framing = True, "close"
    assert "does not answer range requests" in refused(files, "a.bin", 0, 32 << 20).message


@pytest.mark.parametrize("status", [401, 403])
def test_a_file_that_needs_authorisation_says_so(server: RangeServer, files: HttpFiles, status: int) -> None:
    server.faults.statuses["a.bin"] = [status]
    error = refused(files)
    assert f"needs authorisation (HTTP {status})" in error.message
    assert error.remedy
    assert len(server.requests) == 1


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_passing_failure_is_tried_again(server: RangeServer, files: HttpFiles, status: int) -> None:
    server.faults.statuses["a.bin"] = [status] * 2
    server.faults.retry_after = "0"
    assert files.read(Range("a.bin", 5, 5)) == DATA[5:10]
    assert len(server.requests) == files.reads.requests == 3
    assert server.connections == 1


def test_a_lasting_failure_ends_after_three_attempts(server: RangeServer, files: HttpFiles) -> None:
    server.faults.statuses["a.bin"] = [502] * 9
    error = refused(files)
    assert "HTTP 502 (3 attempts)" in error.message
    assert len(server.requests) == 3


def test_a_server_that_asks_for_a_long_pause_is_not_waited_for(server: RangeServer) -> None:
    server.faults.statuses["a.bin"], server.faults.retry_after = [429] * 3, "6"
    with HttpFiles(server.url, timeout=30.0) as files:
        assert "HTTP 429" in refused(files).message
    assert len(server.requests) == 1


def test_a_connection_cut_once_is_made_good(server: RangeServer, files: HttpFiles) -> None:
    server.faults.cuts["a.bin"] = 1
    assert files.read(Range("a.bin", 0, 50_000)) == DATA[:50_000]
    assert files.reads.bytes == server.sent == 75_000


def test_a_connection_cut_always_is_an_error(server: RangeServer, files: HttpFiles) -> None:
    server.faults.cuts["a.bin"] = 99
    error = refused(files)
    assert "cannot be read" in error.message
    assert "3 attempts" in error.message
    assert len(server.requests) == 3


@pytest.mark.parametrize("what", ["headers", "body"])
def test_a_server_that_drips_is_left_at_the_deadline(server: RangeServer, what: str) -> None:
    server.faults.drips["a.bin"] = what
    with HttpFiles(server.url, timeout=0.5) as files:
        files.size("config.json")
        begun = time.monotonic()
        assert "did not arrive within 0.5 s" in refused(files).message
        assert time.monotonic() - begun < 1.5
        assert len(server.requests) == 2
        if what == "body":  # twenty bytes a second, were they still read
            before = server.sent
            time.sleep(0.5)
            assert server.sent - before <= 4


def test_many_reads_of_a_server_that_hangs_wait_once(server: RangeServer) -> None:
    server.faults.drips["a.bin"] = "body"
    with HttpFiles(server.url, timeout=0.5) as files:
        files.size("config.json")
        begun = time.monotonic()
        errors = files.read_many([Range("a.bin", at, 100) for at in range(500)])
        assert time.monotonic() - begun < 3.0
    assert all(isinstance(error, CheckpointError) for error in errors)
    assert "was not read after this: " in str(errors[-1])
    assert len(server.requests) <= 9


CONTENT_RANGES = ["bytes 1-1000/102400", "bytes 0-99/102400", "bytes 0-999/*", "0-999", ""]


@pytest.mark.parametrize("content_range", CONTENT_RANGES)
def test_another_range_than_asked_for_is_refused(
    server: RangeServer, files: HttpFiles, content_range: str
) -> None:
    server.faults.content_ranges["a.bin"] = content_range
    assert "was asked for bytes=0-999 and sent" in refused(files).message
    assert len(server.requests) == 1


def test_a_body_longer_than_announced_is_refused(server: RangeServer, files: HttpFiles) -> None:
    server.faults.longer.add("a.bin")
    assert "sends more than the 1000 bytes asked for" in refused(files).message


def test_a_compressed_body_is_refused(server: RangeServer, files: HttpFiles) -> None:
    server.faults.encoding = "gzip"
    assert "encoding 'gzip'" in refused(files).message


def test_a_file_replaced_between_two_reads_is_noticed(server: RangeServer, files: HttpFiles) -> None:
    files.read(Range("a.bin", 0, 10))
    (server.folder / "a.bin").write_bytes(DATA[:-1])
    assert "changed while it was read" in refused(files).message


def test_many_reads_keep_their_order_and_their_failures(server: RangeServer, files: HttpFiles) -> None:
    parts = [Range("a.bin", 100 * at, 100) for at in range(60)]
    parts[7] = Range("nope", 0, 10)
    pieces = files.read_many(parts)
    assert isinstance(pieces[7], CheckpointError)
    assert [data for data in pieces if isinstance(data, bytes)] == [
        DATA[p.begin : p.begin + 100] for p in parts if p.name == "a.bin"
    ]
    assert files.reads.requests == len(server.requests) == 60
    assert files.reads.bytes == 5900
    assert server.connections <= 8


def test_one_read_after_another_keeps_its_connection(server: RangeServer, files: HttpFiles) -> None:
    for name in ("a.bin", "nope", "config.json", "empty"):
        files.size(name)
        files.read_many([Range(name, 0, 2)])
    assert server.connections == 1


def test_secrets_are_not_sent_to_another_host(server: RangeServer, tmp_path: Path) -> None:
    secret = {"Authorization": "Bearer abc", "X-Key": "def"}
    with serving(tmp_path) as other, HttpFiles(server.url, headers=secret) as files:
        server.faults.redirects = {"far": f"{other.url}/a.bin", "near": "/a.bin"}
        assert files.read(Range("far", 3, 3)) == files.read(Range("near", 3, 3)) == DATA[3:6]
        request = other.requests[0]
        assert request.range == "bytes=3-5"
        assert not {"authorization", "x-key"} & request.headers.keys()
        assert all(secret["X-Key"] == r.headers["x-key"] for r in server.requests)
        assert all(secret["Authorization"] == r.headers["authorization"] for r in server.requests)
    assert len(server.requests) == 3
    assert server.connections == 1


@pytest.mark.parametrize("target", ["ftp://127.0.0.1/a.bin", "file:///etc/passwd", "/loop"])
def test_redirects_elsewhere_or_in_a_circle_are_refused(
    server: RangeServer, files: HttpFiles, target: str
) -> None:
    server.faults.redirects = {"a.bin": target, "loop": target}
    assert "is redirected" in refused(files).message
    assert len(server.requests) <= 8


def test_a_redirect_from_https_to_http_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    addresses: list[str] = []

    def downgrade(request: httpx.Request) -> httpx.Response:
        addresses.append(str(request.url))
        return httpx.Response(302, headers={"Location": "http://example.org/a.bin"})

    monkeypatch.setattr(httpx, "Client", partial(httpx.Client, transport=httpx.MockTransport(downgrade)))
    assert "from https to http" in refused(HttpFiles("https://example.org")).message
    assert addresses == ["https://example.org/a.bin"]


def test_credentials_in_the_address_are_used_and_not_shown(server: RangeServer) -> None:
    with HttpFiles(server.url.replace("//", "//me:pass@")) as files:
        assert files.location == server.url
        assert "pass" not in str(refused(files, "nope"))
    sent = server.requests[0].headers["authorization"].removeprefix("Basic ")
    assert base64.b64decode(sent) == b"me:pass"


def test_a_malformed_token_is_not_shown(server: RangeServer) -> None:
    files = HttpFiles(server.url, headers={"Authorization": "Bearer hf_secret\n"})
    assert "hf_secret" not in str(refused(files))


@pytest.mark.parametrize("host", ["127.0.0.1:{port}", "no-such-host.invalid", "a" * 70 + ".invalid"])
def test_a_server_that_is_not_there_is_one_clear_message(host: str) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://{host.format(port=unused.getsockname()[1])}"
        begun = time.monotonic()
        error = refused(HttpFiles(url, timeout=3.0))
    assert "connection" in str(error.remedy)
    assert len(str(error).splitlines()) == 2
    assert time.monotonic() - begun < 6.5


@pytest.mark.parametrize(
    "url", ["ftp://host/x", "http://", "http://h:99999/x", "http://h/x?token=1", "http://[bad"]
)
def test_what_is_not_the_address_of_a_folder_is_refused(url: str) -> None:
    with pytest.raises(CheckpointError, match="address"):
        HttpFiles(url)


@pytest.mark.parametrize("mtp", ["inline", "separate"])
def test_a_checkpoint_reads_as_it_does_from_its_folder(build: Callable[..., object], mtp: str) -> None:
    from gptq_hybrid.checkpoint import Checkpoint

    path: Path = build(mtp=mtp).path  # type: ignore[attr-defined]
    local = Checkpoint.read(LocalFiles(path))
    with serving(path) as server, HttpFiles(server.url) as files:
        far = Checkpoint.read(files)
        assert far.loaded == local.loaded
        assert far.config == local.config
        assert not far.header_errors
        some = [(info, 0, 16) for info in list(local.loaded.values())[:20]]
        assert far.read_parts(some) == local.read_parts(some)
        shards = len(local.referenced)
        json_bytes = sum(file.stat().st_size for file in path.glob("*.json"))
        weights = sum(file.stat().st_size for file in path.glob("*.safetensors"))
        # config, index, two reads a header, the probes, and the parts above.
        assert files.reads.requests == len(server.requests) <= 2 + 2 * shards + 4 + len(some)
        assert files.reads.bytes == server.sent <= json_bytes + shards * (64 << 10) < weights
