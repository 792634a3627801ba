"""Real token scores for the simulations: the small model against a plainly rounded copy of itself.

Rounding to nearest, 4 bit, symmetric, groups of 128, of the linears a GPTQ run would quantize (`bench/mini`, BF16
weights, float32 arithmetic, CPU). It is no GPTQ: what matters here is how KLD is spread over tokens and documents.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch

from bench.mini.evaluate import load, texts
from bench.mini.model import MiniModel
from bench.mini.rows import END_OF_TEXT, make_rows
from bench.mini.sources import CHAT, DOMAINS
from gptq_hybrid.evaluate import DocumentScores

_MINI = Path(__file__).parents[1] / "mini"
_MOST = 512  # tokens of a document that are used; a document takes about a second on one core


def rounded(weight: torch.Tensor, bits: int = 4, group: int = 128) -> torch.Tensor:
    """`weight` [out, in] on the nearest point of a symmetric grid, one scale for `group` inputs."""
    top = 2 ** (bits - 1) - 1
    grouped = weight.unflatten(1, (-1, group))
    scale = grouped.abs().amax(-1, keepdim=True).clamp_min(1e-12) / (top + 0.5)
    return ((grouped / scale).round().clamp(-top - 1, top) * scale).flatten(1)


def quantizable(name: str) -> bool:
    """Whether the recipe quantizes the weight of this name; the MTP head stays as it is."""
    kinds = ("q_proj", "k_proj", "v_proj", "o_proj", "in_proj_qkv", "in_proj_z", "out_proj", "gate_proj")
    return not name.startswith("mtp") and name.endswith(
        tuple(f"{kind}.weight" for kind in (*kinds, "up_proj", "down_proj"))
    )


@torch.no_grad()
def forward(model: MiniModel, ids: list[int], end: int) -> tuple[torch.Tensor, np.ndarray]:
    """(log probabilities [T, V], agreement of the drafts with the model's own argmax [T − 2, 2])."""
    tokens = torch.tensor([ids])
    hidden = model.hidden(make_rows(tokens, end))
    logits = model.lm_head(hidden)[0]
    n = len(ids) - 2
    drafts = model.drafts(hidden[:, :n], make_rows(tokens[:, :n], end), tokens[:, 1:-1], tokens[:, 2:])
    agree = [model.lm_head(h)[0].argmax(-1) == logits.argmax(-1)[i : n + i] for i, h in enumerate(drafts, 1)]
    return logits.log_softmax(-1), torch.stack(agree, 1).numpy()


def mini_scores(bits: int = 4, limit: int = 12) -> list[DocumentScores]:
    """Scores of the first `limit` held-out documents of each of the 15 domains of `bench/mini`."""
    torch.set_num_threads(1)
    _, reference, tokenizer = load(_MINI / "checkpoint")
    _, quantized, _ = load(_MINI / "checkpoint")
    changed = 0
    for name, parameter in quantized.named_parameters():
        if quantizable(name):
            parameter.data = rounded(parameter.data, bits)
            changed += 1
    if not changed:
        raise RuntimeError("no weight of the small model was rounded")
    end = tokenizer.convert_tokens_to_ids(END_OF_TEXT)
    found = []
    for domain in dict.fromkeys((*DOMAINS, CHAT)):
        for text in texts(_MINI / "heldout", domain)[:limit]:
            ids = tokenizer(text)["input_ids"][:_MOST]
            if len(ids) < 8:
                continue
            ref, drafts_ref = forward(reference, ids, end)
            log, drafts = forward(quantized, ids, end)
            target = torch.tensor(ids[1:])[:, None]
            found.append(
                DocumentScores(
                    domain,
                    hashlib.sha256(np.asarray(ids, dtype="<i8").tobytes()).hexdigest(),
                    (ref.exp() * (ref - log)).sum(-1)[:-1].float().numpy(),
                    (ref.argmax(-1) == log.argmax(-1))[:-1].numpy(),
                    -ref[:-1].gather(1, target)[:, 0].numpy(),
                    -log[:-1].gather(1, target)[:, 0].numpy(),
                    drafts_ref,
                    drafts,
                )
            )
    return found
