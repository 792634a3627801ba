"""The checkpoint in vLLM: greedy decoding with two MTP drafts, what it accepts, and whether its tokens are right.

Used by `evaluate.py --vllm`. One engine in BF16; prompts go to it domain by domain, and the counters that vLLM
keeps of speculative decoding are read in between.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

DRAFTS = 2


@dataclass(frozen=True, slots=True)
class Served:
    """What vLLM gave for the prompts of one domain.

    tokens: token ids of each prompt and its continuation; steps: verification steps, a request's first token not
    among them; accepted: of them, those in which the first draft, the second draft, ... was accepted.
    """

    tokens: list[list[int]]
    steps: int
    accepted: tuple[int, ...]

    @property
    def length(self) -> float:
        """Tokens a step: the accepted drafts and the one that the target itself gives."""
        return 1 + sum(self.accepted) / self.steps


def start(checkpoint: Path, *, drafts: int = DRAFTS, **options: Any) -> Any:
    """The engine in this process, without compilation; ``options`` are vLLM's own."""
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB; read at import
    from vllm import LLM

    if drafts:
        options["speculative_config"] = {"method": "mtp", "num_speculative_tokens": drafts}
    return LLM(
        model=str(checkpoint),
        dtype="bfloat16",
        max_model_len=1024,
        enforce_eager=True,
        enable_prefix_caching=False,  # needs Triton for this architecture
        disable_log_stats=False,
        limit_mm_per_prompt={"image": 0, "video": 0},
        **options,
    )


def serve(llm: Any, prompts_by_domain: dict[str, list[list[int]]], new: int) -> dict[str, Served]:
    """Up to `new` tokens after each prompt (token ids) of each domain, chosen greedily."""
    from vllm import SamplingParams

    sampling = SamplingParams(temperature=0.0, max_tokens=new)
    served, before = {}, counters(llm)
    for domain, prompts in prompts_by_domain.items():
        outputs = llm.generate([{"prompt_token_ids": ids} for ids in prompts], sampling, use_tqdm=False)
        tokens = [[*ids, *output.outputs[0].token_ids] for ids, output in zip(prompts, outputs, strict=True)]
        after = counters(llm)
        steps, *accepted = (b - a for a, b in zip(before, after, strict=True))
        served[domain], before = Served(tokens, steps, tuple(accepted)), after
    return served


def counters(llm: Any) -> list[int]:
    """[steps, accepted first drafts, accepted second drafts, ...] so far; zeros before the first request."""
    metrics = {metric.name: metric for metric in llm.get_metrics()}
    prefix = "vllm:spec_decode_num_"
    if prefix + "drafts" not in metrics:
        raise RuntimeError("vLLM has no counters of speculative decoding: the MTP head is not in use")
    accepted = metrics[prefix + "accepted_tokens_per_pos"].values
    return [int(metrics[prefix + "drafts"].value), *map(int, accepted)]


@torch.no_grad()
def divergence(reference: Any, rounded: Any, ours: list[int], theirs: list[int]) -> dict[str, float] | None:
    """Where two continuations of one prompt part, and how close a call it was; None if they are equal.

    reference, rounded: the transformers model in float32 and in BF16; ours: tokens of the first; theirs: vLLM's.
    `gap`: by how much the logit of our token exceeds that of theirs in float32; `noise`: the standard deviation,
    over the vocabulary, of what BF16 changes about the logits at that place.
    """
    if ours == theirs:
        return None
    place = next(i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b)
    prefix = torch.tensor([ours[:place]])
    exact = reference(input_ids=prefix, logits_to_keep=1).logits[0, -1]
    noise = rounded(input_ids=prefix, logits_to_keep=1).logits[0, -1].float() - exact
    gap = exact[ours[place]] - exact[theirs[place]]
    return {"place": place, "gap": gap.item(), "noise": noise.std().item()}


def summary(served: Served) -> dict[str, Any]:
    """Figures of one domain, or of several put together."""
    first, *_, both = served.accepted
    return {
        "steps": served.steps,
        "acceptance_length": round(served.length, 3),
        "first_draft_accepted": round(first / served.steps, 3),
        "both_drafts_accepted": round(both / served.steps, 3),
    }


def together(parts: list[Served]) -> Served:
    """All domains as one."""
    accepted = tuple(map(sum, zip(*(p.accepted for p in parts), strict=True)))
    return Served([t for p in parts for t in p.tokens], sum(p.steps for p in parts), accepted)
