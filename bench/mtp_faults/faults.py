"""Copies of a checkpoint, each with one thing wrong with its MTP head."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

INDEX = "model.safetensors.index.json"
MTP_FILE = "mtp.safetensors"
Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Fault:
    """``name`` is the row of the table, ``description`` what was done to the intact copy."""

    name: str
    description: str
    apply: Callable[[Path], None]


def intact_copy(source: Path, target: Path) -> None:
    """``source`` with the head in a file of its own that the index names: the layout that must work."""
    target.mkdir(parents=True)
    weight_map: dict[str, str] = {}
    head: Tensors = {}
    for path in sorted(source.iterdir()):
        if path.suffix != ".safetensors":
            if path.name != INDEX:
                shutil.copyfile(path, target / path.name)
            continue
        tensors = load_file(path)
        head |= {name: tensor for name, tensor in tensors.items() if name.startswith("mtp.")}
        rest = {name: tensor for name, tensor in tensors.items() if not name.startswith("mtp.")}
        if rest:
            save_file(rest, target / path.name, metadata={"format": "pt"})
            weight_map |= dict.fromkeys(rest, path.name)
    if not head:
        raise ValueError(f"{source} has no MTP tensors to begin with")
    save_file(head, target / MTP_FILE, metadata={"format": "pt"})
    weight_map |= dict.fromkeys(head, MTP_FILE)
    _write_index(target, weight_map)


def faulty_copy(intact: Path, target: Path, fault: Fault) -> None:
    """Hard-link ``intact`` and break the head; files to be changed are replaced, never written through."""
    target.mkdir(parents=True)
    for path in intact.iterdir():
        os.link(path, target / path.name)
    fault.apply(target)


def _write_index(folder: Path, weight_map: dict[str, str]) -> None:
    text = json.dumps({"metadata": {}, "weight_map": weight_map}, indent=1)
    (folder / INDEX).unlink(missing_ok=True)
    (folder / INDEX).write_text(text)


def _read_index(folder: Path) -> dict[str, str]:
    weight_map: dict[str, str] = json.loads((folder / INDEX).read_text())["weight_map"]
    return weight_map


def _rewrite_head(folder: Path, change: Callable[[Tensors], Tensors]) -> None:
    head = {name: tensor.clone() for name, tensor in load_file(folder / MTP_FILE).items()}
    head = {name: tensor.contiguous() for name, tensor in change(head).items()}
    weight_map = {n: f for n, f in _read_index(folder).items() if f != MTP_FILE}
    (folder / MTP_FILE).unlink()
    save_file(head, folder / MTP_FILE, metadata={"format": "pt"})
    _write_index(folder, weight_map | dict.fromkeys(head, MTP_FILE))


def _none(folder: Path) -> None:
    """Nothing."""


def _unindex(folder: Path) -> None:
    _write_index(folder, {n: f for n, f in _read_index(folder).items() if f != MTP_FILE})


def _absent(folder: Path) -> None:
    _unindex(folder)
    (folder / MTP_FILE).unlink()


def _drop(name: str) -> Callable[[Path], None]:
    return lambda folder: _rewrite_head(folder, lambda head: {k: v for k, v in head.items() if k != name})


def _widen(tensor: torch.Tensor, dim: int) -> torch.Tensor:
    """Twice as many rows or columns, foreign ones first."""
    torch.manual_seed(0)
    return torch.cat([(torch.randn(tensor.shape) * tensor.float().std()).to(tensor.dtype), tensor], dim=dim)


def _wider_mlp(folder: Path) -> None:
    dims = {"gate_proj": 0, "up_proj": 0, "down_proj": 1}
    widened = {f"mtp.layers.0.mlp.{name}.weight": dim for name, dim in dims.items()}
    _rewrite_head(folder, lambda h: h | {name: _widen(h[name], dim) for name, dim in widened.items()})


def _longer_fc(folder: Path) -> None:
    _rewrite_head(folder, lambda h: h | {"mtp.fc.weight": _widen(h["mtp.fc.weight"], 0)})


def _scaleless_fp8(folder: Path) -> None:
    def change(head: Tensors) -> Tensors:
        for name, tensor in head.items():
            if tensor.dim() == 2:
                scale = tensor.float().abs().max() / 448
                head[name] = (tensor.float() / scale).to(torch.float8_e4m3fn)
        return head

    _rewrite_head(folder, change)


def _missing_file(folder: Path) -> None:
    (folder / MTP_FILE).unlink()


def _truncate(folder: Path) -> None:
    raw = (folder / MTP_FILE).read_bytes()
    (folder / MTP_FILE).unlink()
    (folder / MTP_FILE).write_bytes(raw[: len(raw) // 2])


def _fill(value: float) -> Callable[[Path], None]:
    return lambda folder: _rewrite_head(
        folder, lambda h: {k: torch.full_like(v, value) for k, v in h.items()}
    )


FAULTS = (
    Fault("intact", "separate, indexed mtp.safetensors", _none),
    Fault("unindexed", "mtp.safetensors is there, the index does not name it", _unindex),
    Fault("absent", "no MTP tensor in any file, none in the index", _absent),
    Fault("no-fc", "mtp.fc.weight left out of file and index", _drop("mtp.fc.weight")),
    Fault(
        "no-gate",
        "mlp.gate_proj left out of file and index (up_proj, its partner in one parameter, is there)",
        _drop("mtp.layers.0.mlp.gate_proj.weight"),
    ),
    Fault("shape-fc", "mtp.fc.weight has twice the rows", _longer_fc),
    Fault("shape-mlp", "head of a model with twice the MLP width", _wider_mlp),
    Fault("dtype", "matrices scaled to FP8 E4M3, scales lost", _scaleless_fp8),
    Fault("missing-file", "the index names mtp.safetensors, which is not there", _missing_file),
    Fault("truncated", "mtp.safetensors cut in half", _truncate),
    Fault("zeros", "every MTP tensor is zero", _fill(0.0)),
    Fault("nan", "every MTP tensor is NaN", _fill(float("nan"))),
)
