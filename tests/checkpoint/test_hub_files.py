"""Models on a hub: a loopback server with the hub's API and errors stands in for huggingface.co."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest

from gptq_hybrid.checkpoint.files import LocalFiles, Range, is_hub_id, open_files
from gptq_hybrid.checkpoint.files import hub as hub_module
from gptq_hybrid.checkpoint.files.http import HttpFiles
from gptq_hybrid.checkpoint.files.hub import open_hub
from gptq_hybrid.common.errors import CheckpointError

from .range_server import RangeServer, serving

SHA = "0123456789abcdef0123456789abcdef01234567"
API = "/api/models/me/model"


@pytest.fixture(autouse=True)
def no_token_and_no_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Use neither this machine's token nor its cache."""
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[RangeServer]:
    folder = tmp_path / "files"
    (folder / "original").mkdir(parents=True)
    (folder / "config.json").write_text('{"a": 1}')
    (folder / "original" / "config.json").write_text("{}")
    with serving(folder) as server:
        server.root = f"/me/model/resolve/{SHA}/"
        server.answers[API] = server.answers[f"{API}/revision/v1"] = model("me/model", folder)
        yield server


def model(repo: str, folder: Path) -> tuple[int, dict[str, str], bytes]:
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    info = {"id": repo, "sha": SHA, "siblings": [{"rfilename": name} for name in names]}
    return 200, {"Content-Type": "application/json"}, json.dumps(info).encode()


def refused(hub: RangeServer, repo_id: str = "me/model", timeout: float = 5.0) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        open_hub(repo_id, endpoint=hub.url, timeout=timeout)
    assert caught.value.message.startswith(f"{repo_id}: ")
    assert caught.value.remedy
    return caught.value


@pytest.mark.parametrize(
    "text",
    ["a/b", "Qwen/Qwen3.6-27B", "a/b@main", "a/b@v1.0", "a/b@refs/pr/1", f"me/x_y-z@{SHA}", "_a/" + "b" * 96],
)
def test_hub_ids(text: str) -> None:
    assert is_hub_id(text)
    huggingface_hub.utils.validate_repo_id(text.partition("@")[0])


@pytest.mark.parametrize(
    "text",
    [
        "", "gpt2", "./a", "/a/b", "../b", "a/b/c", "a/b@", "a/b@-x", "a/b@x y", "a/b@..", "a/b@/x", "a/b@x/",
        "a--b/c", "a/b..c", "a/.b", "a/b.git", "a/b-", "-a/b", "a b/c", "ü/b", "a/" + "b" * 97, "a\\b", "a/b\n",
        "https://h/x",
    ],
)  # fmt: skip
def test_what_is_no_hub_id(text: str) -> None:
    assert not is_hub_id(text)


@pytest.mark.parametrize("repo_id", ["me/model", "me/model@v1"])
def test_a_model_is_listed_once_and_read_at_one_commit(hub: RangeServer, repo_id: str) -> None:
    files = open_hub(repo_id, endpoint=hub.url)
    assert files.location == repo_id
    assert (files.folder, files.far) == (None, True)
    assert files.names() == ("config.json",)
    assert files.read(Range("config.json", 0, 1000)) == b'{"a": 1}'
    assert files.read(Range("original/config.json")) == b"{}"
    assert files.size("model.safetensors.index.json") is None
    listing, *reads = [request.path for request in hub.requests]
    assert listing == (API if repo_id == "me/model" else f"{API}/revision/v1")
    assert reads == [f"/me/model/resolve/{SHA}/{name}" for name in ("config.json", "original/config.json")]
    assert "authorization" not in hub.requests[-1].headers


def test_a_revision_may_hold_slashes(hub: RangeServer) -> None:
    hub.answers[f"{API}/revision/refs%2Fpr%2F1"] = hub.answers[API]
    assert open_hub("me/model@refs/pr/1", endpoint=hub.url).size("config.json") == 8


def test_a_renamed_model_is_read_under_its_new_name(hub: RangeServer) -> None:
    hub.answers["/api/models/me/old"] = hub.answers[API]
    files = open_hub("me/old", endpoint=hub.url)
    assert files.location == "me/old"
    assert files.read(Range("config.json", 0, 4)) == b'{"a"'


def test_the_token_is_sent_with_every_request(hub: RangeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_abc")
    open_hub("me/model", endpoint=hub.url).read(Range("config.json", 0, 4))
    assert [request.headers["authorization"] for request in hub.requests] == ["Bearer hf_abc"] * 2


def test_a_file_of_a_gated_model_says_what_to_do(hub: RangeServer) -> None:
    hub.faults.statuses["config.json"] = [403]
    with pytest.raises(CheckpointError, match=r"^me/model/config\.json: needs authorisation") as caught:
        open_hub("me/model", endpoint=hub.url).read(Range("config.json", 0, 4))
    assert "HF_TOKEN" in str(caught.value.remedy)
    assert "licence" in str(caught.value.remedy)


@pytest.mark.parametrize(
    ("status", "code", "says", "remedy"),
    [
        (404, "RevisionNotFound", "no revision 'v1'", "commits"),
        (404, "RepoNotFound", "no such public model", "spelling"),
        (401, "", "needs authorisation (HTTP 401)", "spelling"),
        (403, "GatedRepo", "gated", "licence"),
        (403, "", "needs authorisation (HTTP 403)", "token"),
        (503, "", "HTTP 503", "HF_HUB_OFFLINE=1"),
    ],
)
def test_each_refusal_of_the_hub_is_told_apart(
    hub: RangeServer, status: int, code: str, says: str, remedy: str
) -> None:
    headers = {"X-Error-Code": code} if code else {}
    hub.answers[f"{API}/revision/v1"] = (status, headers, b"no")
    error = refused(hub, "me/model@v1")
    assert says in error.message
    assert remedy in str(error.remedy)


@pytest.mark.parametrize("body", [b"<html>", b"[]", b"{}", b'{"id": "a/b", "siblings": [1]}'])
def test_an_answer_that_is_not_a_hubs(hub: RangeServer, body: bytes) -> None:
    hub.answers[API] = (200, {"Content-Type": "application/json"}, body)
    assert "does not answer as a hub does" in refused(hub).message


def test_a_hub_that_drips_is_left_at_the_deadline(hub: RangeServer) -> None:
    hub.faults.drips[""] = "body"
    begun = time.monotonic()
    assert "did not answer within 0.5 s" in refused(hub, timeout=0.5).message
    assert time.monotonic() - begun < 2.0


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:1", "http://no-such-host.invalid"])
def test_without_a_network_the_cached_copy_is_offered(endpoint: str) -> None:
    with pytest.raises(CheckpointError, match="cannot be reached") as caught:
        open_hub("me/model", endpoint=endpoint, timeout=5.0)
    assert "HF_HUB_OFFLINE=1" in str(caught.value.remedy)


@pytest.mark.parametrize("endpoint", ["http://[bad", "nowhere", "ftp://host"])
def test_an_endpoint_that_is_no_address(endpoint: str) -> None:
    with pytest.raises(CheckpointError, match="not an http:// or https:// address"):
        open_hub("me/model", endpoint=endpoint)


def test_offline_the_cached_snapshot_is_read(hub: RangeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert "not in the cache" in refused(hub).message
    assert "--revision v1" in str(refused(hub, "me/model@v1").remedy)
    cached = Path(huggingface_hub.constants.HF_HUB_CACHE) / "models--me--model"
    snapshot = cached / "snapshots" / SHA
    for folder in (snapshot, cached / "refs", cached / "blobs"):
        folder.mkdir(parents=True)
    (cached / "refs" / "main").write_text(SHA)
    (cached / "blobs" / "b").write_text("{}")
    (snapshot / "config.json").symlink_to("../../blobs/b")
    for repo_id in ("me/model", f"me/model@{SHA}"):
        files = open_hub(repo_id, endpoint=hub.url)
        assert files.folder == snapshot
        assert files.read(Range("config.json")) == b"{}"
    assert "not in the cache" in refused(hub, "me/model@v1").message
    assert hub.requests == []


def test_a_folder_goes_before_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "me" / "model").mkdir(parents=True)
    files = open_files("me/model")
    assert isinstance(files, LocalFiles)
    assert files.location == "me/model"
    assert open_files(tmp_path).folder == tmp_path


@pytest.mark.parametrize(
    "text", ["./nowhere", "/no/where", "../x", "~/x", "nowhere", "C:", "", "x" * 5000, "a/file"]
)
def test_a_path_that_is_not_there_is_not_a_folder(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "file").touch()
    with pytest.raises(CheckpointError, match="is not a folder") as caught:
        open_files(text)
    assert "OWNER/NAME" in str(caught.value.remedy)


@pytest.mark.parametrize("text", ["a/b/c", "s3://bucket/x", "me/mo del"])
def test_what_is_nothing_of_the_three_is_refused(text: str) -> None:
    with pytest.raises(CheckpointError, match=r"is neither a folder, a hub id \(OWNER/NAME\) nor a URL"):
        open_files(text)


@pytest.mark.parametrize(
    ("url", "hub_id"),
    [
        ("https://huggingface.co/me/model", "me/model"),
        ("https://hf.co/me/model/?x=1", "me/model"),
        ("https://huggingface.co/me/model/tree/v1", "me/model@v1"),
        ("https://huggingface.co/me/model/tree/refs%2Fpr%2F1", "me/model@refs/pr/1"),
        ("https://huggingface.co/me/model/resolve/main", None),
        ("https://example.org/me/model", None),
    ],
)
def test_the_page_of_a_model_is_its_hub_id(
    monkeypatch: pytest.MonkeyPatch, url: str, hub_id: str | None
) -> None:
    monkeypatch.setattr(hub_module, "open_hub", lambda repo_id, **_: repo_id)
    files = open_files(url)
    if hub_id is None:
        assert isinstance(files, HttpFiles)
        assert files.location == url
    else:
        assert files == hub_id


@pytest.mark.parametrize(
    "path", ["", "me", "datasets/me/x", "me/model/tree/main/sub", "me/model/blob/main/config.json"]
)
def test_other_pages_of_the_hub_are_refused(path: str) -> None:
    with pytest.raises(CheckpointError, match="is not the page of a model"):
        open_files(f"https://huggingface.co/{path}")


def test_hf_endpoint_is_honoured_and_nothing_is_imported_before_it_is_used(hub: RangeServer) -> None:
    code = """if True:
        import sys
        from gptq_hybrid.checkpoint.files import Range, open_files
        assert not {"httpx", "huggingface_hub"} & sys.modules.keys()
        print(open_files("me/model").read(Range("config.json", 0, 100)).decode())
        """
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_TOKEN": "hf_x"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (0, '{"a": 1}\n'), done.stderr
    # huggingface_hub may make more requests of its own.
    ours = [request for request in hub.requests if "/me/model" in request.path]
    assert [request.headers["authorization"] for request in ours] == ["Bearer hf_x"] * 2
