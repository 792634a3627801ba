"""Pack what gptqmodel leaves in BF16, and leave the vision tower out of its shards."""

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
from gptq_hybrid.recipes import Packaging

if TYPE_CHECKING:
    import torch

# Channels rounded at a time; a multiple of what fills a word of qzeros.
_CHANNELS = 8192


def pack_linears(
    tensors: Iterable[tuple[Path, LinearSpec]], bits: int, group_size: int
) -> dict[str, torch.Tensor]:
    """Round linears of safetensors files to nearest.

    Scales are BF16 numbers in float16 tensors, so that serving in BF16 does not round them again. Computed on a GPU
    where there is one, 8,192 channels at a time.

    Args:
        tensors: each linear with the file that holds its weight.
        bits: of the packed values.
        group_size: columns that share a scale.

    Returns:
        ``qweight``, ``scales``, ``qzeros`` and ``g_idx`` of each linear, by tensor name, on the CPU.
    """
    import torch
    from safetensors import safe_open

    from gptq_hybrid.packing import pack, quantize_rtn

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    out: dict[str, torch.Tensor] = {}
    for path, linear in tensors:
        pieces: list[dict[str, torch.Tensor]] = []
        with safe_open(path, framework="pt") as file:
            channels = file.get_slice(linear.weight.name)
            for start in range(0, linear.out_features, _CHANNELS):
                weight = channels[start : start + _CHANNELS].to(device)
                codes, scales = quantize_rtn(weight, bits, group_size, scale_dtype=torch.bfloat16)
                packed = pack(codes, scales.to(torch.float16), bits)
                pieces.append({part: tensor.cpu() for part, tensor in packed.items()})
        for part in ("qweight", "scales", "qzeros"):
            out[f"{linear.name}.{part}"] = torch.cat([piece[part] for piece in pieces], dim=1)
        out[f"{linear.name}.g_idx"] = pieces[0]["g_idx"]
    return out


def write_packed_mtp(
    folder: Path, source: Checkpoint, head: list[TensorInfo], bits: int, group_size: int
) -> None:
    """Write ``mtp.safetensors``: linears packed, the rest byte for byte from the source."""
    by_name = {info.name: info for info in head}
    linears = layout_for(source.config).mtp_linears
    names = {linear.weight.name for linear in linears}
    rest = [(source.files, info) for info in head if info.name not in names]
    packed = pack_linears(
        ((source.path / by_name[linear.weight.name].file, linear) for linear in linears), bits, group_size
    )
    with _in_file(folder, packed) as (files, infos):
        write_verbatim(
            folder / MTP_FILE, [*rest, *((files, info) for info in infos)], metadata={"format": "pt"}
        )


def repackage_shards(folder: Path, source: Checkpoint, packaging: Packaging, group_size: int) -> None:
    """Rewrite those of gptqmodel's shards in ``folder`` that hold the vision tower or the output head.

    Raises:
        HybridError: the source has no output head where its config calls for one.
    """
    layout = layout_for(source.config)
    dropped = {spec.name for spec in layout.vision} if packaging.text_only else set()
    packed: dict[str, torch.Tensor] = {}
    head = layout.output_head if packaging.lm_head_bits < 16 else None
    if head is not None:
        info = {**source.stray, **source.loaded}.get(head.weight.name)
        if info is None:
            raise HybridError(f"{source.path} has no {head.weight.name}", remedy="Fetch the original again.")
        packed = pack_linears([(source.path / info.file, head)], packaging.lm_head_bits, group_size)
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
    """Rewrite shards without ``dropped``; ``added`` goes where the weight of ``into`` was."""
    files = LocalFiles(folder)
    shards = Checkpoint(files, {})
    _ = shards.loaded
    for name, header in list(shards.headers.items()):
        if dropped.isdisjoint(header.tensors):
            continue
        rest = [(files, info) for tensor, info in header.tensors.items() if tensor not in dropped]
        if into is not None and into.weight.name in header.tensors:
            rest += added
        path = folder / name
        if rest:
            new = path.with_suffix(".new")
            write_verbatim(new, rest, metadata=dict(header.metadata) or {"format": "pt"})
            new.replace(path)
        else:
            path.unlink()


def replace_tensors(folder: str | Path, tensors: dict[str, torch.Tensor]) -> None:
    """Rewrite those shards in ``folder`` that hold ``tensors``, with these in their places.

    All else, headers' metadata included, stays as it is. A shard that is a hard link becomes a file of its own.

    Raises:
        HybridError: a tensor is not in ``folder``, or has another dtype or shape there.
    """
    folder = Path(folder)
    files = LocalFiles(folder)
    shards = Checkpoint(files, {})
    left = set(tensors) - shards.loaded.keys()
    if left:
        raise HybridError(f"{folder} holds no {min(left)}", remedy="Give the checkpoint that was tuned.")
    for name, header in list(shards.headers.items()):
        own = {tensor: tensors[tensor].contiguous() for tensor in header.tensors if tensor in tensors}
        if not own:
            continue
        with _in_file(folder, own) as (new_files, infos):
            new = {info.name: info for info in infos}
            for info in new.values():
                old = header.tensors[info.name]
                if (info.dtype, info.shape) != (old.dtype, old.shape):
                    raise HybridError(
                        f"{info.name} would become {info.dtype} {info.shape}; it is {old.dtype} {old.shape}"
                    )
            path = folder / name
            rewritten = path.with_suffix(".new")
            write_verbatim(
                rewritten,
                [(new_files, new[t]) if t in new else (files, info) for t, info in header.tensors.items()],
                metadata=dict(header.metadata) or {"format": "pt"},
            )
            rewritten.replace(path)


@contextmanager
def _in_file(folder: Path, tensors: dict[str, torch.Tensor]) -> Iterator[tuple[LocalFiles, list[TensorInfo]]]:
    """Put the tensors into a safetensors file of their own, in a temporary folder beside ``folder``."""
    from safetensors.torch import save_file

    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.packed-") as scratch:
        files = LocalFiles(Path(scratch))
        if not tensors:
            yield files, []
            return
        path = Path(scratch, "packed.safetensors")
        save_file(tensors, path)
        yield files, list(read_header(path).values())


def packs_anything(layout: TensorLayout, packaging: Packaging) -> bool:
    """Whether gptqmodel's shards have to be rewritten for this packaging."""
    return packaging.lm_head_bits < 16 or (packaging.text_only and bool(layout.vision))
