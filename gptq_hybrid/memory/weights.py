"""Bytes of a checkpoint's weights, by the part of the model that they are."""

from __future__ import annotations

from dataclasses import asdict, astuple, dataclass

from gptq_hybrid.checkpoint import Checkpoint, layout_for


@dataclass(frozen=True, slots=True)
class WeightBytes:
    """Bytes as stored, of the tensors that a loader finds.

    Attributes:
        linears: of the layers, with scales, zero points and ``g_idx`` if they are packed.
        embedding: the input embedding.
        output_head: ``lm_head``; 0 where it is the embedding.
        mtp: the MTP head.
        vision: the vision tower.
        rest: norms, convolutions and whatever else.
    """

    linears: int = 0
    embedding: int = 0
    output_head: int = 0
    mtp: int = 0
    vision: int = 0
    rest: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return sum(astuple(self))

    def served(self, *, drafts: bool, images: bool) -> int:
        """Bytes that stay on the device.

        Without drafts vLLM loads no MTP head. It skips the tower where ``--limit-mm-per-prompt`` allows neither
        images nor videos (``_mark_tower_model``, read in 0.32.0).
        """
        return self.total - (0 if drafts else self.mtp) - (0 if images else self.vision)

    def rank(self, ranks: int) -> WeightBytes:
        """The share of one of ``ranks`` GPUs: all is divided but ``rest``, which each has whole."""
        divided = {name: -(-part // ranks) for name, part in asdict(self).items()}
        return WeightBytes(**divided | {"rest": self.rest})


def weight_bytes(checkpoint: Checkpoint) -> WeightBytes:
    """Add up the tensors of a checkpoint by part; reads headers alone.

    Raises:
        UnsupportedArchitectureError: no family recognises its config.
        CheckpointError: its config has an absurd dimension.
    """
    layout = layout_for(checkpoint.config).as_named_in(checkpoint.loaded)
    linears = {linear.name for linear in layout.quantized}
    vision = {spec.name for spec in layout.vision}
    sums = dict.fromkeys(WeightBytes.__dataclass_fields__, 0)
    for name, info in checkpoint.loaded.items():
        if name.startswith("mtp."):
            part = "mtp"
        elif name in vision or ".visual." in name or name.startswith("visual."):
            part = "vision"
        elif name.startswith("lm_head."):
            part = "output_head"
        elif name.endswith("embed_tokens.weight"):
            part = "embedding"
        else:
            part = "linears" if name.rpartition(".")[0] in linears else "rest"
        sums[part] += info.nbytes
    return WeightBytes(**sums)
