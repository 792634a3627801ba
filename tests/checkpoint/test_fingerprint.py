"""A fingerprint tells checkpoints apart by samples of their weights, whatever folder they are in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from gptq_hybrid.checkpoint import Checkpoint
from gptq_hybrid.checkpoint.fingerprint import checkpoint_fingerprint, file_fingerprints
from gptq_hybrid.demo.builder import DemoCheckpoint

SHARD = "model-00002-of-00002.safetensors"


def test_a_fine_tune_with_the_same_header_is_another_checkpoint(
    original: DemoCheckpoint, damaged: Callable[[Path], Path]
) -> None:
    copy = damaged(original.path)
    before, whole = file_fingerprints(original.path), checkpoint_fingerprint(Checkpoint.open(original.path))
    assert file_fingerprints(copy) == before
    assert checkpoint_fingerprint(Checkpoint.open(copy)) == whole
    content = bytearray((copy / SHARD).read_bytes())
    # All weights moved a little, as by training; size and header stay.
    start = 8 + int.from_bytes(content[:8], "little")
    content[start:] = bytes(byte ^ 1 for byte in content[start:])
    (copy / SHARD).write_bytes(content)
    after = file_fingerprints(copy)
    assert [name for name in before if after[name] != before[name]] == [SHARD]
    assert checkpoint_fingerprint(Checkpoint.open(copy)) != whole


def test_config_and_index_count(original: DemoCheckpoint, damaged: Callable[[Path], Path]) -> None:
    copy = damaged(original.path)
    before = file_fingerprints(copy)
    assert {"config.json", "model.safetensors.index.json", SHARD} < before.keys()
    config = (copy / "config.json").read_text()
    (copy / "config.json").write_text(config.replace('"eos_token_id"', '"other_token_id"', 1))
    assert file_fingerprints(copy)["config.json"] != before["config.json"]
    assert checkpoint_fingerprint(Checkpoint.open(copy)) != checkpoint_fingerprint(
        Checkpoint.open(original.path)
    )


def test_links_into_the_cache_of_the_hub_are_as_good_as_files(
    original: DemoCheckpoint, tmp_path: Path
) -> None:
    snapshot = tmp_path / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    for path in original.path.iterdir():
        (snapshot / path.name).symlink_to(path)
    assert file_fingerprints(snapshot) == file_fingerprints(original.path)


def test_a_header_that_claims_more_than_the_file_holds_is_read_to_its_end(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes((1 << 40).to_bytes(8, "little") + b"{}")
    assert file_fingerprints(tmp_path)["model.safetensors"].startswith("10 bytes, ")
