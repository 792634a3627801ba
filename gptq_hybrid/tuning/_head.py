"""The output head rounded again: to the original's logits, on the final states that the rounded model gives."""

from __future__ import annotations

import torch

from gptq_hybrid.checkpoint.formats.gptq import settings as module_settings
from gptq_hybrid.packing import pack
from gptq_hybrid.streaming import Batch, CheckpointWeights, States, TextStack

from ._codes import best_weight, round_to
from ._sums import Sums, without_padding

# Channels at once: 168 MB in float32 at 5,120 inputs. A multiple of 32, so that each part ends in a whole word.
_CHANNELS = 8192
# Of the stopping part of bench/quality the head took 1.28 % with a pull of 0.001, 1.31 with 0.01, 1.44 with 0.1.
_DAMP = 0.1
_CROSS = "states"


def head_sums(
    stacks: tuple[TextStack, TextStack], batches: list[Batch], states: tuple[States, States]
) -> Sums:
    """Sum over tokens what :func:`head_tensors` needs of the original's and the rounded model's final states.

    Args:
        stacks: of the original and of the rounded model, for their final norms.
        batches: texts.
        states: what the last layers gave, ``[documents, length, hidden]`` for each batch.
    """
    sums, norms = Sums(), [stack.norm() for stack in stacks]
    with torch.inference_mode():
        for place, batch in enumerate(batches):
            a, b = (
                without_padding(batch, norm(side[place].to(stack.device)))
                for stack, norm, side in zip(stacks, norms, states, strict=True)
            )
            sums.add(b, [(_CROSS, a)])
    return sums


def head_tensors(
    source: CheckpointWeights, weights: CheckpointWeights, sums: Sums
) -> dict[str, torch.Tensor]:
    """Return those tensors of the rounded model's output head that change, in the dtypes they had.

    With X the rounded model's final states and Y the original's, the logits W Y are the targets, so
    ``T Xᵀ = W (Y Xᵀ)``: one matrix of the hidden size serves all channels, and no logits are computed.

    Args:
        source: the original.
        weights: of the rounded model. Its head is packed in groups of natural order, or in BF16.
        sums: of :func:`head_sums`.

    Returns:
        ``qweight`` and ``scales`` of a packed head, else its ``weight``; nothing where it is the embedding.
    """
    spec, hessian = weights.layout.output_head, sums.hessian
    if spec is None or hessian is None:
        return {}
    original, cross = source.read(spec.weight.name), sums.products[_CROSS]
    packed = f"{spec.name}.qweight" in weights.checkpoint.loaded
    stored = weights.read(f"{spec.name}.scales" if packed else spec.weight.name)
    bits = module_settings(weights.checkpoint.quantization_config or {}, spec.name)[0]
    pieces: list[dict[str, torch.Tensor]] = []
    with torch.inference_mode():
        for start in range(0, spec.out_features, _CHANNELS):
            weight = original[start : start + _CHANNELS].to(hessian.device).float()
            aim = best_weight(weight, hessian, weight @ cross, _DAMP)
            if packed:
                rounded = round_to(aim, hessian, bits, spec.in_features // int(stored.shape[0]))
                parts = pack(rounded.codes, rounded.scales.to(stored.dtype), bits)
                pieces.append({part: parts[part].cpu() for part in ("qweight", "scales")})
            else:
                pieces.append({"weight": aim.to(stored.dtype).cpu()})
    axis = 1 if packed else 0
    return {
        f"{spec.name}.{part}": torch.cat([piece[part] for piece in pieces], dim=axis) for part in pieces[0]
    }
