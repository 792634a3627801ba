"""Rules: does vLLM build from ``config.json`` the model whose tensors are there?"""

from __future__ import annotations

from collections.abc import Iterator

from gptq_hybrid.doctor import vllm_releases
from gptq_hybrid.doctor.findings import Fault, Inspection, rule

from .samples import samples

HEAD = "lm_head.weight"


@rule(
    "embeddings-tied",
    scope="serving",
    explanation=(
        "vLLM ties the output head to the embedding if `tie_word_embeddings` of the text config says so. From "
        f"{vllm_releases.UNTIES_SINCE} on a head that is stored counts all the same where the root has it too."
    ),
    remedy="Set `tie_word_embeddings` in the text config, and at the root, to whether an lm_head is left out.",
)
def tied(inspection: Inspection) -> Iterator[Fault]:
    checkpoint = inspection.checkpoint
    said = bool(checkpoint.text_config.get("tie_word_embeddings", False))
    stored = [name for name in checkpoint.loaded if name.startswith("lm_head.")]
    if not said and not stored and checkpoint.config.get("tie_word_embeddings"):
        yield Fault(
            "config.json has `tie_word_embeddings` at its root alone; vLLM goes by text_config, and builds an "
            "lm_head that no file holds",
            tensor=HEAD,
            file="config.json",
        )
    elif inspection.layout.output_head is None and stored and not _same_as_embedding(inspection):
        yield Fault(
            "there is an lm_head, but the config ties the output head to the embedding: vLLM throws the stored "
            "one away",
            tensor=stored[0],
            file="config.json",
        )


def _same_as_embedding(inspection: Inspection) -> bool:
    """Whether the stored head is a copy of the embedding, as far as sampled."""
    loaded = inspection.checkpoint.loaded
    name = next((s.name for s in inspection.layout.plain if s.name.endswith("embed_tokens.weight")), "")
    head, embedding = loaded.get(HEAD), loaded.get(name)
    if head is None or embedding is None or (head.dtype, head.shape) != (embedding.dtype, embedding.shape):
        return False
    one, other = samples(inspection.checkpoint, [head, embedding])
    return one == other


CONFIG_RULES = (tied,)
