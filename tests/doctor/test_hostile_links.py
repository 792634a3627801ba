"""Links out of a checkpoint are not read through, except those of a hub's cache into its blobs."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from gptq_hybrid.checkpoint import INDEX_NAME, MTP_FILE
from tests.corpus import Workshop

from .hostile import link_to, refused, run_here, send

SENTINEL = "sentinel8f14e45f"


@pytest.fixture
def outside(shop: Workshop) -> Path:
    """A folder beside the checkpoint, with files that must stay unread."""
    folder = shop.folder.parent / "outside"
    folder.mkdir()
    header = json.dumps({SENTINEL: {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}}).encode()
    (folder / MTP_FILE).write_bytes(struct.pack("<Q", len(header)) + header)
    (folder / "config.json").write_text(json.dumps({"model_type": SENTINEL}))
    (folder / INDEX_NAME).write_text(json.dumps({"weight_map": {SENTINEL: SENTINEL}}))
    (folder / "chat_template.jinja").write_text("{% " + SENTINEL + " %}{{")
    (folder / "tokenizer_config.json").write_text(SENTINEL)
    return folder


@pytest.mark.parametrize("name", [MTP_FILE, "config.json", INDEX_NAME])
def test_a_file_outside_is_not_read_through_a_link(shop: Workshop, outside: Path, name: str) -> None:
    link_to(str(outside / name), name)(shop)
    findings = refused(shop.folder)
    assert SENTINEL not in json.dumps(findings)
    assert any("symbolic link" in finding["message"] for finding in findings)
    # The control: had it been read, it would show.
    assert SENTINEL in run_here(shop.folder, "--json", "--follow-symlinks").out


def test_a_template_outside_is_not_read_through_a_link(shop: Workshop, outside: Path) -> None:
    link_to(str(outside / "chat_template.jinja"), "chat_template.jinja")(shop)
    ended = run_here(shop.folder, "--json")
    assert "symbolic link" in ended.out
    assert SENTINEL not in ended.out
    assert SENTINEL in run_here(shop.folder, "--json", "--follow-symlinks").out


def test_a_file_outside_is_not_read_through_a_linked_folder(shop: Workshop, outside: Path) -> None:
    (shop.folder / "sub").symlink_to(outside)
    send(f"sub/{MTP_FILE}")(shop)
    findings = refused(shop.folder)
    assert SENTINEL not in json.dumps(findings)
    assert "file-outside" in {finding["rule"] for finding in findings}


def cache_of(shop: Workshop, root: Path) -> Path:
    """The checkpoint as a Hugging Face cache holds it: a snapshot of links into ``blobs``."""
    blobs, snapshot = root / "models--o--n" / "blobs", root / "models--o--n" / "snapshots" / "0123abcd"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, path in enumerate(sorted(shop.folder.iterdir())):
        path.rename(blobs / f"{number:064x}")
        (snapshot / path.name).symlink_to(f"../../blobs/{number:064x}")
    return snapshot


def test_a_snapshot_of_the_hub_cache_is_read_through_its_links(shop: Workshop, tmp_path: Path) -> None:
    snapshot = cache_of(shop, tmp_path / "hub")
    ended = run_here(snapshot, "--json")
    [checkpoint] = json.loads(ended.out)["result"]["checkpoints"]
    assert checkpoint.items() >= {"path": str(snapshot), "findings": [], "verdict": "serves"}.items()


def test_a_snapshot_may_not_link_past_its_blobs(shop: Workshop, tmp_path: Path, outside: Path) -> None:
    snapshot = cache_of(shop, tmp_path / "hub")
    (snapshot / MTP_FILE).unlink()
    (snapshot / MTP_FILE).symlink_to(outside / MTP_FILE)
    findings = refused(snapshot)
    assert SENTINEL not in json.dumps(findings)
    assert "file-outside" in {finding["rule"] for finding in findings}
