"""Values no model can compute with are found wherever they stand, in samples or by reading every byte."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from gptq_hybrid.checkpoint import MTP_FILE, Checkpoint
from gptq_hybrid.checkpoint.headers import read_header
from gptq_hybrid.demo.builder import DemoCheckpoint
from gptq_hybrid.doctor import check
from gptq_hybrid.doctor.deep import read_deeply
from gptq_hybrid.doctor.findings import Inspection
from gptq_hybrid.doctor.rules import samples
from gptq_hybrid.doctor.values import Role, Scan, Values, has_non_finite, what_is_wrong
from tests.checkpoint.range_server import serving
from tests.corpus import Workshop

EMBEDDING = "model.language_model.embed_tokens.weight"
SPELLED = {
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
}


def raw(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("dtype", SPELLED, ids=str)
@given(st.lists(st.floats(width=32), min_size=1, max_size=300))
def test_non_finite_values_are_told_as_torch_tells_them(dtype: torch.dtype, numbers: list[float]) -> None:
    tensor = torch.tensor(numbers).to(dtype)
    assert has_non_finite(SPELLED[dtype], raw(tensor)) is not bool(tensor.double().isfinite().all())


@pytest.mark.parametrize("at", [0, 999, 1999])
def test_one_nan_among_many_large_numbers_is_seen(at: int) -> None:
    tensor = torch.full((2000,), 3e38).bfloat16()
    assert not has_non_finite("BF16", raw(tensor))
    tensor[at] = torch.nan
    assert has_non_finite("BF16", raw(tensor))


@given(st.lists(st.lists(st.sampled_from([0, 1, 1 << 20]), max_size=5), max_size=4))
def test_pieces_add_up_to_the_whole(pieces: list[list[int]]) -> None:
    scan, whole = Scan("I32"), [number for piece in pieces for number in piece]
    for piece in pieces:
        scan.add(raw(torch.tensor(piece, dtype=torch.int32)) if piece else b"")
    assert scan.values == Values(False, False, bool(whole) and len(set(whole)) == 1)


@pytest.mark.parametrize(
    ("role", "values", "wrong"),
    [
        (Role.VECTOR, Values(False, True, True), None),
        (Role.VECTOR, Values(True, False, False), "holds NaN or infinite values"),
        (Role.SCALES, Values(False, False, True), None),
        (Role.SCALES, Values(False, True, True), "holds only zeros"),
        (Role.GAIN, Values(False, True, True), "holds only zeros"),
        (Role.GAIN, Values(False, False, True), None),
        (Role.MATRIX, Values(False, False, True), "holds one value over and over"),
        (Role.MATRIX, Values(False, False, False), None),
    ],
)
def test_what_is_wrong_depends_on_the_role(role: Role, values: Values, wrong: str | None) -> None:
    assert what_is_wrong(role, values) == wrong


def seen(folder: Path, tensor: torch.Tensor) -> Values:
    """What is seen in samples of a tensor that lies on a disk."""
    save_file({"t": tensor}, folder / "t.safetensors")
    (folder / "config.json").write_text("{}")
    info = read_header(folder / "t.safetensors")["t"]
    inspection = Inspection(Checkpoint.open(folder), None, None)  # type: ignore[arg-type]
    return samples.values(inspection, [info])[0]


@pytest.mark.parametrize("at", [0, 4096, 100_003, (1 << 18) - 1])
def test_a_mebibyte_is_read_whole(tmp_path: Path, at: int) -> None:
    tensor = torch.randn(1 << 18)
    tensor[at] = torch.nan
    assert seen(tmp_path, tensor).non_finite


def test_a_larger_tensor_is_read_in_pieces_over_its_whole_length(tmp_path: Path) -> None:
    tensor = torch.randn(64, 1 << 16)
    for part in (tensor[:4], tensor[30:35], tensor[60:]):
        kept = part.clone()
        part.fill_(torch.inf)
        assert seen(tmp_path, tensor).non_finite
        part.copy_(kept)
    assert seen(tmp_path, tensor) == Values(False, False, False)


def test_few_values_in_a_large_tensor_of_zeros_are_mostly_seen_at_a_second_look(tmp_path: Path) -> None:
    tensor = torch.zeros(1 << 22)
    assert seen(tmp_path, tensor).zero
    tensor[:: 1 << 15] = 1.0
    assert not seen(tmp_path, tensor).zero


def late_nan(shop: Workshop) -> None:
    """A NaN that samples miss: in an embedding of 4 MiB, behind its first piece."""
    shop.config(lambda c: c["text_config"].update(vocab_size=16384))
    for name in (EMBEDDING, "lm_head.weight"):
        shop.tensor(name, lambda t: torch.randn(16384, t.shape[1]).to(t.dtype))
    shop.tensor(
        EMBEDDING,
        lambda t: t.index_put((torch.tensor(20), torch.tensor(20)), torch.tensor(torch.nan, dtype=t.dtype)),
    )


def test_a_deep_check_finds_what_samples_miss(shop: Workshop) -> None:
    late_nan(shop)
    assert check(shop.folder, vllm="0.32.0").verdict == "serves"
    done: list[tuple[int, int]] = []
    report = check(shop.folder, vllm="0.32.0", deep=True, on_progress=lambda *at: done.append(at))
    assert [(f.rule, f.tensor) for f in report.errors] == [("weights-values", EMBEDDING)]
    total = sum(path.stat().st_size for path in shop.folder.glob("*.safetensors"))
    assert done[-1] == (total, total)
    with serving(shop.folder) as server:
        far = check(server.url, vllm="0.32.0", deep=True)
    assert [(f.rule, f.tensor) for f in far.errors] == [("weights-values", EMBEDDING)]


def test_a_deep_reading_has_every_tensor_and_the_digest_of_every_file(
    build: Callable[..., DemoCheckpoint],
) -> None:
    checkpoint = Checkpoint.open(build(mtp="separate").path)
    reading = read_deeply(checkpoint)
    assert {name for _, name in reading.values} == set(checkpoint.loaded)
    assert reading.digests == {
        name: sha256((checkpoint.path / name).read_bytes()).hexdigest() for name in checkpoint.referenced
    }


def test_a_good_checkpoint_passes_a_deep_check(build: Callable[..., DemoCheckpoint]) -> None:
    assert check(build(mtp="separate").path, vllm="0.32.0", deep=True).findings == ()


def test_bytes_that_rotted_differ_from_the_note_of_the_download(shop: Workshop) -> None:
    """As ``hf download --local-dir`` leaves it; one bit of a mantissa is no value that a check could doubt."""
    notes = shop.folder / ".cache" / "huggingface" / "download"
    notes.mkdir(parents=True)
    path = shop.path(MTP_FILE)
    content = bytearray(path.read_bytes())
    when = path.stat().st_mtime
    (notes / f"{MTP_FILE}.metadata").write_text(f"{'0' * 40}\n{sha256(content).hexdigest()}\n{when}\n")
    assert check(shop.folder, vllm="0.32.0", deep=True).findings == ()
    content[-2] ^= 1
    path.write_bytes(content)
    os.utime(path, (when, when))
    assert check(shop.folder, vllm="0.32.0").findings == ()
    (finding,) = check(shop.folder, vllm="0.32.0", deep=True).findings
    assert (finding.rule, finding.file) == ("file-digest", MTP_FILE)
    # Changed after the download, so that the note is about another file.
    os.utime(path, (when + 60, when + 60))
    assert check(shop.folder, vllm="0.32.0", deep=True).findings == ()


def test_a_snapshot_in_the_cache_is_compared_with_the_names_of_its_blobs(
    shop: Workshop, tmp_path: Path
) -> None:
    blobs, snapshot = tmp_path / "models--a--b" / "blobs", tmp_path / "models--a--b" / "snapshots" / "1"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for path in shop.folder.iterdir():
        content = path.read_bytes()
        blob = blobs / sha256(content).hexdigest()
        blob.write_bytes(content)
        (snapshot / path.name).symlink_to(blob)
    assert check(snapshot, vllm="0.32.0", deep=True).findings == ()
    blob = (snapshot / MTP_FILE).resolve()
    blob.write_bytes(blob.read_bytes()[:-1] + b"\0")
    assert [f.rule for f in check(snapshot, vllm="0.32.0", deep=True).findings] == ["file-digest"]


def test_the_command_says_how_far_it_is_off_a_terminal_too(shop: Workshop) -> None:
    command = [str(Path(sys.executable).with_name("qwen36")), "check", str(shop.folder), "--deep", "--json"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert json.loads(ended.stdout)["result"]["checkpoints"][0]["verdict"] == "serves"
    assert "MiB of" in ended.stderr
