"""The stage before tuning: all linears rounded again, a layer at a time, then the output head."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from gptq_hybrid.calibration import rows_sha256
from gptq_hybrid.checkpoint.fingerprint import checkpoint_fingerprint
from gptq_hybrid.common.atomic import building_directory, building_file
from gptq_hybrid.common.machine import environment
from gptq_hybrid.common.paths import keep_paths
from gptq_hybrid.evaluate.inputs import exact_float32
from gptq_hybrid.evaluate.states import StateStore, list_tensors, name_tensors, state_key
from gptq_hybrid.packing import pack
from gptq_hybrid.streaming import CheckpointWeights, TextStack, make_batches, read_ahead
from gptq_hybrid.writer import replace_tensors

from ._align import LayerAligner
from ._codes import Rounded
from ._head import head_sums, head_tensors
from ._parameters import Packed, Parameters
from ._write import link_files

# Tokens that run through a layer at once, padding included.
_BATCH_TOKENS = 8192
_SIDES = ("original", "rounded")

OnStep = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class AlignRequest:
    """What to round again, on what.

    Attributes:
        source: folder of the BF16 original.
        checkpoint: folder of the packed checkpoint.
        target: folder to write.
        rows: token ids; those that were calibrated on will do.
        tokens: of them, at most.
        work: folder for states; None keeps none.
        save_every: seconds between two savings of the state.
    """

    source: Path
    checkpoint: Path
    target: Path
    rows: Sequence[Sequence[int]]
    tokens: int
    work: Path | None = None
    save_every: float = 60.0

    def __post_init__(self) -> None:
        keep_paths(self, "source", "checkpoint", "target", "work")

    def taken(self) -> list[Sequence[int]]:
        """Return the rows that are used: the first ones, up to the tokens."""
        out: list[Sequence[int]] = []
        for row in self.rows:
            if out and sum(map(len, out)) + len(row) > self.tokens:
                break
            out.append(row)
        return out


def align(
    request: AlignRequest, *, on_layer: OnStep | None = None, stop: Callable[[], bool] = lambda: False
) -> Path | None:
    """Write ``request.target``: the checkpoint with other codes and scales, all of it or nothing.

    An output head in BF16 gets other values; one that is the embedding stays as it is.

    Killed, it goes on after the last layer that was kept. A target that is there is taken as it is.

    Args:
        request: what to round.
        on_layer: called with (layers done, layers).
        stop: asked after each layer; True keeps the state and returns None.

    Raises:
        HybridError: the checkpoint's groups are in another than natural order, or it holds no packed linear.
    """
    if request.target.is_dir():
        return request.target
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    source, weights = CheckpointWeights(request.source), CheckpointWeights(request.checkpoint)
    packed, prefix = Parameters(weights).packed, weights.layout.layers_prefix
    rows = request.taken()
    batches = make_batches(rows, _BATCH_TOKENS)
    stacks = TextStack(source, device, dtype), TextStack(weights, device, dtype)
    store = None
    if request.work is not None:
        settings = {
            "rows": rows_sha256([list(row) for row in rows]),
            "checkpoint": checkpoint_fingerprint(weights.checkpoint),
            "dtype": str(dtype),
            "environment": environment(str(device)),
        }
        store = StateStore(request.work, state_key(source.checkpoint, settings), every=request.save_every)
    saved = store.load() if store is not None else None
    done, depth = (saved.layers if saved is not None else 0), stacks[0].depth
    if saved is None:
        first, second = ([stack.embed(batch.tokens).cpu() for batch in batches] for stack in stacks)
    else:
        first, second = (list_tensors(side, saved.tensors) for side in _SIDES)
    # With a state, layers that are done lie there alone: of the 27B they are 11 GiB.
    tensors: dict[str, torch.Tensor] = {}
    reading = read_ahead(lambda n: [stack.layer_tensors(n) for stack in stacks], range(done, depth))
    with exact_float32(device):
        for number, (dense, own) in reading:
            inside = {
                name.removeprefix(f"{prefix}.{number}."): of
                for name, of in packed.items()
                if name.startswith(f"{prefix}.{number}.")
            }
            found = LayerAligner(
                stacks[0],
                stacks[0].layer(number, dense),
                stacks[1].layer(number, own),
                batches,
                (first, second),
                {name: (of.bits, _group_size(weights, of)) for name, of in inside.items()},
            ).run()
            new: dict[str, torch.Tensor] = {}
            for name, rounded in found.items():
                new |= _tensors(weights, inside[name], rounded)
            stopped = number + 1 < depth and stop()
            if store is None:
                tensors |= new
            else:
                store.path.parent.mkdir(parents=True, exist_ok=True)
                with building_file(_layer_file(store, number)) as temporary:
                    torch.save(new, temporary)
                kept = {**name_tensors(_SIDES[0], first), **name_tensors(_SIDES[1], second)}
                (store.save if stopped else store.save_if_due)(kept, number + 1)
            # The output head belongs to the last layer.
            if on_layer is not None and number + 1 < depth:
                on_layer(number + 1, depth)
            if stopped:
                return None
        sums = head_sums(stacks, batches, (first, second))
        first.clear()
        second.clear()
        head = head_tensors(source, weights, sums)
    if on_layer is not None:
        on_layer(depth, depth)
    if store is not None:
        for number in range(depth):
            tensors |= torch.load(_layer_file(store, number), weights_only=True)
    tensors |= head
    with building_directory(request.target) as built:
        link_files(request.checkpoint, built)
        replace_tensors(built, tensors)
    if store is not None:
        store.remove()
        for number in range(depth):
            _layer_file(store, number).unlink(missing_ok=True)
    return request.target


def _layer_file(store: StateStore, number: int) -> Path:
    return store.path.with_name(f"{store.path.stem}-{number}.pt")


def _group_size(weights: CheckpointWeights, packed: Packed) -> int:
    return packed.linear.in_features // int(weights.read(f"{packed.linear.name}.scales").shape[0])


def _tensors(weights: CheckpointWeights, packed: Packed, rounded: Rounded) -> dict[str, torch.Tensor]:
    """Return the tensors of a linear that change, in the dtypes they had."""
    name = packed.linear.name
    scales = rounded.scales.to(weights.read(f"{name}.scales").dtype)
    parts = pack(rounded.codes, scales, packed.bits)
    return {f"{name}.{part}": parts[part].cpu().contiguous() for part in ("qweight", "scales")}
