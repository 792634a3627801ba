"""Indexes and files that contradict each other."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from .case import INDEX, MTP_FILE, Workshop, faulty, odd

SHARD = "model-00001-of-00002.safetensors"
LAST = "model-00002-of-00002.safetensors"
NORM = "model.language_model.norm.weight"


def _duplicate(shop: Workshop, *, changed: bool) -> None:
    name = "mtp.norm.weight"
    tensor = load_file(shop.folder / MTP_FILE)[name].clone()
    shop.shard(LAST, lambda tensors: tensors.update({name: tensor + changed}), reindex=False)


def _orphan(shop: Workshop) -> None:
    save_file({"something": torch.zeros(4)}, shop.folder / "leftover.safetensors")


def _truncate(name: str, keep: float) -> object:
    def apply(shop: Workshop) -> None:
        path = shop.path(name)
        raw = path.read_bytes()
        path.write_bytes(raw[: int(len(raw) * keep)])

    return apply


def _append(shop: Workshop) -> None:
    with shop.path(MTP_FILE).open("ab") as file:
        file.write(b"\0" * 100)


def _offsets(first: int, last: int) -> object:
    def change(header: dict) -> None:  # type: ignore[type-arg]
        begin, end = header["mtp.norm.weight"]["data_offsets"]
        header["mtp.norm.weight"]["data_offsets"] = [begin + first, end + last]

    return lambda shop: shop.header(MTP_FILE, change)


def _send(where: str) -> object:
    return lambda shop: shop.index(lambda weight_map: weight_map.update({NORM: where}))


def _link_out(shop: Workshop) -> None:
    path = shop.folder / MTP_FILE
    outside = shop.folder.parent / f"{shop.folder.name}-outside.safetensors"
    path.rename(outside)
    path.symlink_to(outside)


def _in_capitals(shop: Workshop) -> None:
    (shop.folder / MTP_FILE).rename(shop.folder / "mtp.SAFETENSORS")
    shop.index(lambda m: m.update({n: "mtp.SAFETENSORS" for n, file in m.items() if file == MTP_FILE}))


def _into_subfolder(shop: Workshop) -> None:
    (shop.folder / "sub").mkdir()
    (shop.folder / MTP_FILE).rename(shop.folder / "sub" / MTP_FILE)

    def send(weight_map: dict[str, str]) -> None:
        weight_map.update({n: f"sub/{f}" for n, f in weight_map.items() if f == MTP_FILE})

    shop.index(send)


def _lfs(shop: Workshop) -> None:
    shop.path(LAST).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")


def _write(name: str, text: str) -> object:
    return lambda shop: shop.path(name).write_text(text)


def _unnamed(shop: Workshop) -> None:
    shop.index(lambda weight_map: weight_map.pop(NORM))


def _stale(shop: Workshop) -> None:
    shop.index(lambda weight_map: weight_map.update({NORM: MTP_FILE}))


def _gone(shop: Workshop) -> None:
    for path in Path(shop.folder).glob("*.safetensors"):
        path.unlink()
    shop.delete(INDEX)


def _unindexed_body(shop: Workshop) -> None:
    def drop(weight_map: dict[str, str]) -> None:
        for name in [n for n, f in weight_map.items() if f == LAST]:
            del weight_map[name]

    shop.index(drop)


FILE_CASES = (
    faulty("index-not-json", "bf16", "index-unreadable", _write(INDEX, "{")),
    faulty("index-no-weight-map", "bf16", "index-unreadable", _write(INDEX, '{"metadata": {}}')),
    faulty("index-numbers", "bf16", "index-unreadable", _write(INDEX, '{"weight_map": {"a": 1}}')),
    faulty("index-dotdot", "bf16", "file-outside", _send("../elsewhere.safetensors")),
    faulty("index-absolute", "bf16", "file-outside", _send("/etc/passwd")),
    faulty("link-out", "bf16", "file-outside mtp-missing", _link_out),
    faulty("file-in-capitals", "bf16", "file-name", _in_capitals),
    faulty("subfolder", "bf16", "file-in-subfolder", _into_subfolder),
    faulty("shard-absent", "bf16", "index-missing-file weights-missing", lambda s: s.delete(LAST)),
    faulty("shard-cut", "bf16", "shard-unreadable", _truncate(SHARD, 0.5)),
    faulty("shard-cut-in-header", "bf16", "shard-unreadable", _truncate(SHARD, 0.0001)),
    faulty("shard-empty", "bf16", "shard-unreadable", _truncate(LAST, 0)),
    faulty("shard-lfs-pointer", "bf16", "shard-unreadable", _lfs),
    faulty("head-trailing-bytes", "bf16", "shard-unreadable mtp-missing", _append),
    faulty("head-overlap", "bf16", "shard-unreadable", _offsets(-2, -2)),
    faulty("head-span", "bf16", "shard-unreadable", _offsets(0, 2)),
    faulty("head-negative", "bf16", "shard-unreadable", _offsets(-(2**40), 0)),
    faulty("no-files", "bf16", "no-weights weights-missing", _gone),
    faulty(
        "consolidated", "bf16", "consolidated-files", lambda s: s.copy(LAST, "consolidated-00001.safetensors")
    ),
    faulty("duplicate-differs", "bf16", "index-duplicate", lambda s: _duplicate(s, changed=True)),
    odd("duplicate-same", "bf16", "index-duplicate", lambda s: _duplicate(s, changed=False)),
    faulty("body-unindexed", "bf16", "weights-missing", _unindexed_body),
    odd("orphan", "bf16", "index-orphan-file", _orphan),
    odd("unnamed-tensor", "bf16", "index-unnamed-tensor", _unnamed),
    odd("stale-entry", "bf16", "index-stale-entry", _stale),
    odd(
        "total-size",
        "bf16",
        "index-total-size",
        lambda s: s.json(INDEX, lambda i: i["metadata"].update(total_size=1)),
    ),
    odd("no-total-size", "bf16", "", lambda s: s.json(INDEX, lambda i: i.pop("metadata"))),
    odd("no-index", "bf16", "index-absent", lambda s: s.delete(INDEX)),
)
