"""Packing what gptqmodel leaves in BF16, and leaving the vision tower out of its shards."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from gptq_hybrid.checkpoint import (
    MTP_FILE,
    Checkpoint,
    LinearSpec,
    TensorInfo,
    TensorLayout,
    layout_for,
    read_header,
    write_verbatim,
)
from gptq_hybrid.checkpoint.files import LocalFiles
from gptq_hybrid.common.errors import HybridError
from gptq_hybrid.recipes.packaging import Packaging, mtp_linears, output_head

if TYPE_CHECKING:
    import torch

# Weights rounded at a time; a multiple of what fills a word of qzeros.
_ROWS = 8192


def pack_linears(
    tensors: Iterable[tuple[Path, LinearSpec]], bits: int, group_size: int
) -> dict[str, torch.Tensor]:
    """Linears of safetensors files rounded to nearest, by tensor name, on the CPU.

    Scales are BF16 numbers in float16 tensors, so that serving in BF16 does not round them again. Works on a
    GPU where there is one, 8,192 outputs at a time.
    """
    import torch
    from safetensors import safe_open

    from gptq_hybrid.packing import pack, quantize_rtn

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    out: dict[str, torch.Tensor] = {}
    for path, linear in tensors:
        pieces: list[dict[str, torch.Tensor]] = []
        with safe_open(path, framework="pt") as file:
            rows = file.get_slice(linear.weight.name)
            for start in range(0, linear.out_features, _ROWS):
                weight = rows[start : start + _ROWS].to(device)
                codes, scales = quantize_rtn(weight, bits, group_size, scale_dtype=torch.bfloat16)
                packed = pack(codes, scales.to(torch.float16), bits)
                pieces.append({part: tensor.cpu() for part, tensor in packed.items()})
        for part in ("qweight", "scales", "qzeros"):
            out[f"{linear.name}.{part}"] = torch.cat([piece[part] for piece in pieces], dim=1)
        out[f"{linear.name}.g_idx"] = pieces[0]["g_idx"]
    return out


def write_packed_mtp(folder: Path, source: Path, head: list[TensorInfo], bits: int, group_size: int) -> None:
    """Write ``mtp.safetensors``: linears packed, the rest byte for byte from the source."""
    checkpoint = Checkpoint.open(source)
    found = {info.name: info for info in head}
    linears = mtp_linears(layout_for(checkpoint.config))
    names = {linear.weight.name for linear in linears}
    rest = [(checkpoint.files, info) for info in head if info.name not in names]
    packed = pack_linears(
        ((checkpoint.path / found[linear.weight.name].file, linear) for linear in linears), bits, group_size
    )
    with _in_file(folder, packed) as (files, infos):
        write_verbatim(
            folder / MTP_FILE, [*rest, *((files, info) for info in infos)], metadata={"format": "pt"}
        )


def repackage_shards(folder: Path, source: Path, packaging: Packaging, group_size: int) -> None:
    """Rewrite those of gptqmodel's shards in ``folder`` that hold the vision tower or the output head.

    Raises:
        HybridError: the source has no output head where its config calls for one.
    """
    original = Checkpoint.open(source)
    layout = layout_for(original.config)
    dropped = {spec.name for spec in layout.vision} if packaging.text_only else set()
    packed: dict[str, torch.Tensor] = {}
    head = output_head(layout) if packaging.lm_head_bits < 16 else None
    if head is not None:
        info = {**original.stray, **original.loaded}.get(head.weight.name)
        if info is None:
            raise HybridError(f"{source} has no {head.weight.name}", remedy="Fetch the original again.")
        packed = pack_linears([(original.path / info.file, head)], packaging.lm_head_bits, group_size)
        dropped.add(head.weight.name)
    if dropped:
        with _in_file(folder, packed) as (files, infos):
            _rewrite(folder, dropped, [(files, info) for info in infos], into=head)


def _rewrite(
    folder: Path,
    dropped: set[str],
    added: list[tuple[LocalFiles, TensorInfo]],
    *,
    into: LinearSpec | None,
) -> None:
    """Write shards anew without ``dropped``; ``added`` goes where the weight of ``into`` was."""
    files = LocalFiles(folder)
    shards = Checkpoint(files, {})
    _ = shards.loaded
    for name, header in list(shards.headers.items()):
        if dropped.isdisjoint(header.tensors):
            continue
        kept = [(files, info) for tensor, info in header.tensors.items() if tensor not in dropped]
        if into is not None and into.weight.name in header.tensors:
            kept += added
        path = folder / name
        if kept:
            new = path.with_suffix(".new")
            write_verbatim(new, kept, metadata=dict(header.metadata) or {"format": "pt"})
            new.replace(path)
        else:
            path.unlink()


@contextmanager
def _in_file(folder: Path, tensors: dict[str, torch.Tensor]) -> Iterator[tuple[LocalFiles, list[TensorInfo]]]:
    """The tensors in a safetensors file of their own, in a folder beside ``folder`` that goes away again."""
    from safetensors.torch import save_file

    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.packed-") as scratch:
        place = Path(scratch)
        if not tensors:
            yield LocalFiles(place), []
            return
        save_file(tensors, place / "packed.safetensors")
        yield LocalFiles(place), list(read_header(place / "packed.safetensors").values())


def packs_anything(layout: TensorLayout, packaging: Packaging) -> bool:
    """Whether gptqmodel's shards have to be rewritten for this packaging."""
    return packaging.lm_head_bits < 16 or (packaging.text_only and bool(layout.vision))
