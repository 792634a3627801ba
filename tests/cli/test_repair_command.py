"""`qwen36 repair` says what it did, and its exit code says what is left."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from gptq_hybrid.checkpoint import INDEX_NAME, MTP_FILE
from gptq_hybrid.demo.builder import DemoCheckpoint
from tests.corpus import Workshop
from tests.doctor.folders import snapshot, without_head

from .test_bad_input import qwen36, refused


def test_a_second_run_has_nothing_to_do(separate: Path, tmp_path: Path) -> None:
    shop = Workshop(separate, tmp_path / "case")
    shop.index(lambda entries: [entries.pop(name) for name in list(entries) if name.startswith("mtp.")])
    first = qwen36("repair", shop.folder, cwd=tmp_path)
    assert first.returncode == 0
    assert "name 15 tensors" in first.stdout
    assert f"{INDEX_NAME}.bak" in " ".join(first.stdout.split())
    again = qwen36("repair", shop.folder, cwd=tmp_path)
    assert again.returncode == 0
    assert again.stdout.splitlines() == [
        "Nothing to repair.",
        "Next: make sure that it serves:",
        f"  qwen36 check {shop.folder}",
    ]


def test_a_repaired_checkpoint_ends_with_0(separate: Path, original: DemoCheckpoint, tmp_path: Path) -> None:
    path = without_head(separate, tmp_path / "case")
    ended = qwen36("repair", path, "--mtp-from", original.path, cwd=tmp_path)
    assert ended.returncode == 0, ended
    assert f"15 MTP tensors from {original.path.name} into {MTP_FILE}" in ended.stdout
    assert f"{INDEX_NAME}.bak" in " ".join(ended.stdout.split())
    assert qwen36("check", path, "--vllm", "0.32", cwd=tmp_path).returncode == 0


def test_what_cannot_be_repaired_is_listed_and_ends_with_1(separate: Path, tmp_path: Path) -> None:
    path = without_head(separate, tmp_path / "case")
    shop = Workshop(path, tmp_path / "again")
    shop.json(INDEX_NAME, lambda i: i["metadata"].update(total_size=1))
    ended = qwen36("repair", shop.folder, cwd=tmp_path)
    assert ended.returncode == 1
    assert "total_size" in ended.stdout
    assert "mtp-missing" in ended.stdout
    assert "--mtp-from" in ended.stdout


def test_a_dry_run_prints_the_steps_and_writes_nothing(
    separate: Path, original: DemoCheckpoint, tmp_path: Path
) -> None:
    path = without_head(separate, tmp_path / "case")
    before = snapshot(tmp_path)
    ended = qwen36("repair", path, "--mtp-from", original.path, "--dry-run", cwd=tmp_path)
    assert ended.returncode == 0
    assert "Nothing was written" in ended.stdout
    assert f"into {MTP_FILE}" in ended.stdout
    assert snapshot(tmp_path) == before


def test_a_copy_is_written_where_asked(original: DemoCheckpoint, tmp_path: Path) -> None:
    before = snapshot(original.path)
    ended = qwen36("repair", original.path, "--split-mtp", "--out", "apart", cwd=tmp_path)
    assert ended.returncode == 0, ended
    assert MTP_FILE in json.loads((tmp_path / "apart" / INDEX_NAME).read_text())["weight_map"].values()
    assert snapshot(original.path) == before


def test_bad_input_is_one_error_and_writes_nothing(
    separate: Path, build: Callable[..., DemoCheckpoint], tmp_path: Path
) -> None:
    path = without_head(separate, tmp_path / "case")
    (tmp_path / "junk").mkdir()
    before = snapshot(tmp_path)
    refused(qwen36("repair", "nowhere", cwd=tmp_path), "nowhere", "is not a folder")
    refused(qwen36("repair", path / "config.json", cwd=tmp_path), "is not a folder")
    refused(qwen36("repair", path, "--mtp-from", "junk", cwd=tmp_path), "config.json", "does not exist")
    refused(qwen36("repair", path, "--mtp-from", "./none", cwd=tmp_path), "./none", "is not a folder")
    other = build(hidden_size=384).path
    refused(qwen36("repair", path, "--mtp-from", other, cwd=tmp_path), "[384, 768]", "[256, 512]")
    refused(qwen36("repair", path, "--merge-mtp", cwd=tmp_path), "--out")
    refused(qwen36("repair", path, "--split-mtp", cwd=tmp_path), "--out")
    refused(qwen36("repair", path, "--merge-mtp", "--split-mtp", "--out", "o", cwd=tmp_path), "contradict")
    assert snapshot(tmp_path) == before
