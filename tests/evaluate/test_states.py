"""Hidden states on disk: whole or absent, and never another checkpoint's."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from gptq_hybrid.checkpoint import Checkpoint
from gptq_hybrid.checkpoint.fingerprint import checkpoint_fingerprint
from gptq_hybrid.common.errors import HybridError
from gptq_hybrid.evaluate.states import StateStore, list_tensors, name_tensors, state_key
from tests.streaming.rounded import CHECKPOINT

KEY = "0123456789abcdef" * 4
TENSORS = name_tensors("hidden", [torch.arange(6.0).reshape(1, 2, 3), torch.ones(2, 1, 3)])
SHARD = "model-00001-of-00002.safetensors"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(CHECKPOINT, tmp_path / "copy"))


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    store = StateStore(tmp_path / "work", KEY)
    assert store.load() is None
    store.save(TENSORS, 3)
    saved = StateStore(tmp_path / "work", KEY).load()
    assert saved is not None
    assert saved.layers == 3
    for one, other in zip(
        list_tensors("hidden", saved.tensors), list_tensors("hidden", TENSORS), strict=True
    ):
        assert torch.equal(one, other)
    store.remove()
    assert store.load() is None
    assert list((tmp_path / "work").iterdir()) == []


def test_more_than_ten_batches_keep_their_order() -> None:
    tensors = [torch.full((1,), float(i)) for i in range(23)]
    assert [
        t.item() for t in list_tensors("hidden", dict(sorted(name_tensors("hidden", tensors).items())))
    ] == list(range(23))


def test_a_later_save_replaces_the_earlier_one(tmp_path: Path) -> None:
    store = StateStore(tmp_path, KEY)
    store.save(TENSORS, 1)
    store.save({name: tensor + 1 for name, tensor in TENSORS.items()}, 2)
    saved = store.load()
    assert saved is not None
    assert saved.layers == 2
    assert torch.equal(saved.tensors["hidden.1"], torch.full((2, 1, 3), 2.0))
    assert [file.name for file in tmp_path.iterdir()] == [store.path.name]


def test_saving_waits_its_time(tmp_path: Path) -> None:
    store = StateStore(tmp_path, KEY, every=3600)
    store.save_if_due(TENSORS, 1)
    assert store.load() is None
    StateStore(tmp_path, KEY, every=0).save_if_due(TENSORS, 1)
    assert store.load() is not None


def test_another_key_or_a_file_cut_short_counts_as_nothing(tmp_path: Path) -> None:
    store = StateStore(tmp_path, KEY)
    store.save(TENSORS, 1)
    # Another key whose first digits, and so the file's name, are the same.
    assert StateStore(tmp_path, KEY[:-1] + "0").load() is None
    store.path.write_bytes(store.path.read_bytes()[:-5])
    assert store.load() is None
    store.path.write_bytes(b"")
    assert store.load() is None


def rewrite(path: Path, change: Callable[[dict[str, torch.Tensor], dict[str, str]], None]) -> None:
    """Change tensors and metadata of a file of states, and leave it a valid file."""
    with safe_open(path, framework="pt") as handle:
        metadata, tensors = dict(handle.metadata()), {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
    change(tensors, metadata)
    save_file(tensors, path, metadata=metadata)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda tensors, _: tensors["hidden.1"].zero_(), "their checksum differs"),
        (lambda tensors, _: tensors["hidden.0"].view(-1)[:2].copy_(torch.tensor([1.0, 0.0])), "differs"),
        (lambda tensors, _: tensors.pop("hidden.1"), "their checksum differs"),
        (lambda tensors, _: tensors.update({"hidden.0": tensors["hidden.0"].reshape(2, 1, 3)}), "differs"),
        (lambda _, metadata: metadata.update(layers="2"), "their checksum differs"),
        (lambda _, metadata: metadata.pop("layers"), "their checksum differs"),
        (lambda _, metadata: metadata.pop("crc32"), "an earlier version saved them"),
    ],
)
def test_states_that_differ_from_their_checksum_or_have_none_are_not_used(
    tmp_path: Path, change: Callable[..., None], why: str
) -> None:
    lines: list[str] = []
    store = StateStore(tmp_path, KEY, on_discard=lines.append)
    store.save(TENSORS, 1)
    rewrite(store.path, lambda *_: None)
    assert store.load() is not None
    assert lines == []
    rewrite(store.path, change)
    assert store.load() is None
    [line] = lines
    assert why in line
    assert str(store.path) in line
    store.save(TENSORS, 1)
    assert store.load() is not None


@pytest.mark.parametrize("zeroed", [slice(0, None), slice(-20, None)])
def test_a_file_whose_bytes_became_zeros_is_not_used(tmp_path: Path, zeroed: slice) -> None:
    lines: list[str] = []
    store = StateStore(tmp_path, KEY, on_discard=lines.append)
    store.save(TENSORS, 1)
    content = bytearray(store.path.read_bytes())
    content[zeroed] = bytes(len(content[zeroed]))
    store.path.write_bytes(content)
    assert store.load() is None
    assert len(lines) == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.uint8])
def test_states_of_any_dtype_and_layout_keep_their_checksum(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = {"a": torch.ones(2, 3, dtype=dtype).T, "b": torch.zeros(0, 3, dtype=dtype)}
    StateStore(tmp_path, KEY).save(tensors, 1)
    saved = StateStore(tmp_path, KEY).load()
    assert saved is not None
    assert torch.equal(saved.tensors["a"], tensors["a"])


def test_what_a_killed_run_left_half_written_is_removed(tmp_path: Path) -> None:
    store = StateStore(tmp_path, KEY)
    store.save(TENSORS, 1)
    left = tmp_path / f".{store.path.name}.0a1b2c3d.tmp"
    left.mkdir()
    (left / ".tmpCw0LWF").write_bytes(b"half, under the name that safetensors gives it")
    others = tmp_path / ".states-of-another.safetensors.0a1b2c3d.tmp"
    others.mkdir()
    (others / "states").write_bytes(b"being written")
    assert store.load() is not None
    assert not left.exists()
    assert (others / "states").exists()


def test_while_states_are_written_nothing_else_is_beside_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a kill at that moment leaves is error again, whatever names safetensors uses on its way."""
    names: list[str] = []

    def cut_off(_: object, target: Path, **__: object) -> None:
        (target.parent / ".tmpCw0LWF").write_bytes(b"half")
        names.extend(file.name for file in tmp_path.iterdir())
        raise OSError("no space left")

    store = StateStore(tmp_path, KEY)
    monkeypatch.setattr("gptq_hybrid.evaluate.states.save_file", cut_off)
    with pytest.raises(HybridError, match="no space left"):
        store.save(TENSORS, 1)
    assert len(names) == 1
    assert names[0].startswith(f".{store.path.name}.")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_an_error_for_people(tmp_path: Path) -> None:
    (tmp_path / "work").write_text("a file")
    with pytest.raises(HybridError, match="cannot be written") as error:
        StateStore(tmp_path / "work", KEY).save(TENSORS, 1)
    assert "--no-keep-states" in str(error.value)


def test_a_fingerprint_is_of_the_content(copy: Path) -> None:
    first = checkpoint_fingerprint(Checkpoint.open(CHECKPOINT))
    assert checkpoint_fingerprint(Checkpoint.open(copy)) == first
    shard = copy / SHARD
    content = bytearray(shard.read_bytes())
    content[-5000:] = bytes(5000)
    shard.write_bytes(content)
    # The last of 64 blocks starts at 63/64 of the file: the change must lie in a block to be names.
    content[len(content) * 63 // 64 + 2000] ^= 1
    shard.write_bytes(content)
    assert checkpoint_fingerprint(Checkpoint.open(copy)) != first
    config = copy / "config.json"
    before = checkpoint_fingerprint(Checkpoint.open(copy))
    config.write_text(config.read_text().replace('"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-05'))
    assert checkpoint_fingerprint(Checkpoint.open(copy)) != before


def test_states_belong_to_the_files_as_they_were_written_and_to_the_settings(copy: Path) -> None:
    settings = {"dtype": "float32", "documents": ["a", "b"]}
    key = state_key(Checkpoint.open(copy), settings)
    assert state_key(Checkpoint.open(copy), dict(reversed(settings.items()))) == key
    assert state_key(Checkpoint.open(copy), {**settings, "dtype": "bfloat16"}) != key
    assert state_key(Checkpoint.open(copy), {**settings, "documents": ["b", "a"]}) != key
    # A change that the blocks of a fingerprint miss is caught by the time of writing.
    os.utime(copy / SHARD, ns=(1, 1))
    assert state_key(Checkpoint.open(copy), settings) != key
