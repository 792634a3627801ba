"""Run variants through the layers in groups, then the variants of the two heads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from gptq_hybrid.common.errors import HybridError
from gptq_hybrid.evaluate.passes import compare_drafts
from gptq_hybrid.streaming import Batch, CheckpointWeights, MtpHead, OutputHead, Overlay, States, TextStack

from ._precisions import Precision
from ._scores import DocumentSums, Scorer
from ._units import Unit
from ._walk import Variant, apply_final_norm, replace_weight, walk

# Copies of the states besides the variants': the reference's at the current layer, at the next group's first layer
# and at the end, and one that is being computed.
_OTHER_STATES = 4
# Results are written when a group is done, so an interruption costs at most a group. An eighth of the depth makes
# 8 groups of the 27B, which read 288 layers instead of 64: about 240 GB.
_SPANS = 8

SaveResult = Callable[[str, Mapping[str, NDArray[np.float64]]], None]
HeadVariant = tuple[str, Precision, Unit]


class Passes:
    """Runs variants of one reference over the same batches.

    Args:
        documents: how many there are in ``batches``.
        drafts: MTP drafts per position.
        memory: bytes of main memory for hidden states.
    """

    def __init__(
        self,
        weights: CheckpointWeights,
        device: torch.device,
        dtype: torch.dtype,
        batches: Sequence[Batch],
        documents: int,
        drafts: int,
        *,
        memory: int,
    ) -> None:
        self.weights = weights
        self.batches = batches
        self.documents = documents
        self.drafts = drafts
        self.stack = TextStack(weights, device, dtype)
        tokens = sum(batch.tokens.numel() for batch in batches)
        state_bytes = tokens * int(self.stack.config.hidden_size) * dtype.itemsize
        self.capacity = count_fitting(memory, state_bytes)

    def run(
        self,
        layers: Sequence[Variant],
        heads: Sequence[HeadVariant],
        drafts: Sequence[HeadVariant],
        *,
        reference_drafts: str | None,
        save: SaveResult,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Compute all variants and hand each result to ``save`` as soon as it is there.

        Args:
            layers: variants of the decoder layers.
            heads: variants of the output head.
            drafts: variants of the MTP head.
            reference_drafts: the name under which to save the reference's own drafts; None leaves them out.
            save: called with a variant's key and its arrays.
            on_progress: called with the layers done and in all.
        """
        depth = self.stack.depth
        whole = [variant for variant in layers if len(variant.units) > 1]
        groups = group_variants([v for v in layers if len(v.units) == 1], self.capacity, depth)
        starts = [group[0].first for group in groups]
        # Each group takes the reference along to where the next one starts.
        ends = [*starts[1:], groups[-1][-1].first] if groups else []
        total = depth * (1 + len(whole)) + sum(depth - v.first for group in groups for v in group)
        total += sum(end - start for start, end in zip(starts, ends, strict=True))
        total += starts[0] if starts else 0
        done = 0

        def count_layer() -> None:
            nonlocal done
            done += 1
            if on_progress is not None:
                on_progress(done, total)

        embedded = [self.stack.embed(batch.tokens).cpu() for batch in self.batches]
        walked = walk(self.stack, embedded, 0, whole[: self.capacity], until=depth, on_layer=count_layer)
        reference = apply_final_norm(self.stack, walked.reference)
        head = OutputHead(self.stack)
        scorer = Scorer(self.batches, self.documents, reference, head)
        self._save_scores(scorer, walked.variants, head, save)
        for variant in whole[self.capacity :]:
            walked = walk(self.stack, embedded, 0, [variant], until=0, on_layer=count_layer)
            self._save_scores(scorer, walked.variants, head, save)
        if groups:
            # A scan that was interrupted continues at a later layer: up to that only the reference runs.
            states = walk(self.stack, embedded, 0, [], until=starts[0], on_layer=count_layer).reference
            del embedded
            for group, start, end in zip(groups, starts, ends, strict=True):
                walked = walk(self.stack, states, start, group, until=end, on_layer=count_layer)
                states = walked.reference
                self._save_scores(scorer, walked.variants, head, save)
        for key, precision, unit in heads:
            own = OutputHead(TextStack(self._replace(precision, unit), self.stack.device, self.stack.dtype))
            save(key, _arrays(scorer.score({key: (reference, own)})[key]))
            del own
        if reference_drafts is not None:
            save(reference_drafts, self._count_accepted(MtpHead(self.stack), head, reference))
        for key, precision, unit in drafts:
            mtp_head = MtpHead(self.stack, self._replace(precision, unit))
            save(key, self._count_accepted(mtp_head, head, reference))

    def _save_scores(
        self, scorer: Scorer, variants: Mapping[str, States], head: OutputHead, save: SaveResult
    ) -> None:
        scores = scorer.score({key: (states, head) for key, states in variants.items()})
        for key, sums in scores.items():
            save(key, _arrays(sums))

    def _replace(self, precision: Precision, unit: Unit) -> Overlay:
        """Return the reference's weights with ``unit`` in ``precision``."""
        linears = {linear.weight.name: linear for linear in unit.linears}

        def replace(name: str, tensor: torch.Tensor) -> torch.Tensor:
            linear = linears.get(name)
            return tensor if linear is None else replace_weight(self.stack, precision, linear, tensor)

        return Overlay(self.weights, replace)

    def _count_accepted(
        self, mtp_head: MtpHead, head: OutputHead, reference: States
    ) -> dict[str, NDArray[np.float64]]:
        """Count by document the drafts that a verifier would have accepted, and the positions drafted from."""
        accepted, positions = np.zeros(self.documents), np.zeros(self.documents)
        for number, agreed in compare_drafts(mtp_head, head, self.batches, reference, self.drafts).items():
            leading = np.logical_and.accumulate(agreed.numpy(), axis=1)
            accepted[number], positions[number] = leading.sum(), len(leading)
        return {"accepted": accepted, "positions": positions}


def count_fitting(memory: int, state_bytes: int) -> int:
    """Return how many variants' states fit ``memory`` bytes.

    Raises:
        HybridError: not even one does.
    """
    fitting = memory // state_bytes - _OTHER_STATES
    if fitting < 1:
        need = (_OTHER_STATES + 1) * state_bytes / 2**30
        raise HybridError(
            f"hidden states of these documents need {need:.2f} GiB of main memory, "
            f"and the limit is {memory / 2**30:.2f} GiB",
            remedy="Give more with --memory, or fewer or shorter documents with --limit and --max-length.",
        )
    return fitting


def group_variants(variants: Sequence[Variant], most: int, depth: int) -> list[list[Variant]]:
    """Group variants by first layer: at most ``most`` in a group, over at most an eighth of the layers."""
    span = -(-depth // _SPANS)
    groups: list[list[Variant]] = []
    for variant in sorted(variants, key=lambda v: v.first):
        if groups and len(groups[-1]) < most and variant.first - groups[-1][0].first < span:
            groups[-1].append(variant)
        else:
            groups.append([variant])
    return groups


def _arrays(sums: DocumentSums) -> dict[str, NDArray[np.float64]]:
    return {"kld": sums.kld, "top1": sums.top1}
