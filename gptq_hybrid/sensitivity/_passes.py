"""Variants by groups through the layers, then the two heads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from gptq_hybrid.evaluate.passes import own_drafts
from gptq_hybrid.streaming import Batch, CheckpointWeights, MtpHead, OutputHead, Overlay, States, TextStack

from ._forms import Form
from ._plan import capacity, groups_of
from ._scores import Scorer, Sums
from ._units import Unit
from ._walk import Variant, carry, final, replacement

Keep = Callable[[str, Mapping[str, NDArray[np.float64]]], None]
HeadVariant = tuple[str, Form, Unit]


class Passes:
    """Runs variants of one reference over the same batches.

    Args:
        documents: how many there are in ``batches``.
        drafts: MTP drafts a position.
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
        self.most = capacity(memory, state_bytes)

    def run(
        self,
        layers: Sequence[Variant],
        heads: Sequence[HeadVariant],
        drafts: Sequence[HeadVariant],
        *,
        reference_drafts: str | None,
        keep: Keep,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Compute all that is asked for and give each result to ``keep`` as soon as it is there.

        ``reference_drafts``: the name to keep the reference's own drafts under, if they are wanted.
        """
        depth = self.stack.depth
        whole = [variant for variant in layers if len(variant.units) > 1]
        groups = groups_of([v for v in layers if len(v.units) == 1], self.most, depth)
        starts = [group[0].first for group in groups]
        # Each group takes the reference along to where the next one starts.
        ends = [*starts[1:], groups[-1][-1].first] if groups else []
        total = depth * (1 + len(whole)) + sum(depth - v.first for group in groups for v in group)
        total += sum(end - start for start, end in zip(starts, ends, strict=True))
        total += starts[0] if starts else 0
        done = 0

        def step() -> None:
            nonlocal done
            done += 1
            if on_progress is not None:
                on_progress(done, total)

        embedded = [self.stack.embed(batch.tokens).cpu() for batch in self.batches]
        carried = carry(self.stack, embedded, 0, whole[: self.most], until=depth, on_layer=step)
        reference = final(self.stack, carried.reference)
        head = OutputHead(self.stack)
        scorer = Scorer(self.batches, self.documents, reference, head)
        self._keep_scores(scorer, carried.variants, head, keep)
        for variant in whole[self.most :]:
            carried = carry(self.stack, embedded, 0, [variant], until=0, on_layer=step)
            self._keep_scores(scorer, carried.variants, head, keep)
        if groups:
            # An interrupted scan goes on at a later layer: the reference alone is run up to it.
            at = carry(self.stack, embedded, 0, [], until=starts[0], on_layer=step).reference
            del embedded
            for group, start, end in zip(groups, starts, ends, strict=True):
                carried = carry(self.stack, at, start, group, until=end, on_layer=step)
                at = carried.reference
                self._keep_scores(scorer, carried.variants, head, keep)
        for key, form, unit in heads:
            own = OutputHead(TextStack(self._with(form, unit), self.stack.device, self.stack.dtype))
            keep(key, _arrays(scorer.score({key: (reference, own)})[key]))
            del own
        if reference_drafts is not None:
            keep(reference_drafts, self._accepted(MtpHead(self.stack), head, reference))
        for key, form, unit in drafts:
            draft_head = MtpHead(self.stack, self._with(form, unit))
            keep(key, self._accepted(draft_head, head, reference))

    def _keep_scores(
        self, scorer: Scorer, variants: Mapping[str, States], head: OutputHead, keep: Keep
    ) -> None:
        found = scorer.score({key: (states, head) for key, states in variants.items()})
        for key, sums in found.items():
            keep(key, _arrays(sums))

    def _with(self, form: Form, unit: Unit) -> Overlay:
        """The reference's weights with ``unit`` in ``form``, as tensors on the device."""
        linears = {linear.weight.name: linear for linear in unit.linears}

        def replace(name: str, tensor: torch.Tensor) -> torch.Tensor:
            linear = linears.get(name)
            return tensor if linear is None else replacement(self.stack, form, linear, tensor)

        return Overlay(self.weights, replace)

    def _accepted(
        self, draft_head: MtpHead, head: OutputHead, reference: States
    ) -> dict[str, NDArray[np.float64]]:
        """Per document: drafts that a verifier would have accepted, and the positions drafted from."""
        accepted, positions = np.zeros(self.documents), np.zeros(self.documents)
        for number, agreed in own_drafts(draft_head, head, self.batches, reference, self.drafts).items():
            leading = np.logical_and.accumulate(agreed.numpy(), axis=1)
            accepted[number], positions[number] = leading.sum(), len(leading)
        return {"accepted": accepted, "positions": positions}


def _arrays(sums: Sums) -> dict[str, NDArray[np.float64]]:
    return {"kld": sums.kld, "top1": sums.top1}
