"""An act-order checkpoint in `vllm serve` on a GPU whose vLLM has act order of its own: the plugin's against that.

    python -m bench.act_order.served CHECKPOINT RAW.json [--ways plugin gptq_marlin stock]   # vLLM up to 0.29
    python -m bench.act_order.served CHECKPOINT RAW.json --summary served.json   # needs gptqmodel; a CPU will do

CHECKPOINT is made from bench/mini with the recipe `reference`. Ways, every one a server of its own, with two MTP
drafts and whatever else the plugin does by default:

    plugin        no flag: which of the two is taken is the plugin's choice
    gptq_marlin   the same with `--quantization gptq_marlin`, which keeps vLLM's act order
    stock         without plugins

Prompts are held-out text of the mini model; RAW.json has the log-probability of each token and every greedy reply.
``--summary`` compares them with transformers on the weights that gptqmodel itself dequantizes, in float32 and, as
the yardstick, in BF16, and writes what the page needs.

With MTP, vLLM 0.26 computes log-probabilities of prompts after it made drafts (``_bookkeeping_sync`` after
``propose_draft_token_ids``), and those of the first prompt of each 64 came out wrong, without plugins too.
Prompts that are off in `stock` are left out of the errors of every way; which are off is kept for each.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from bench.arguments import command_line
from bench.engine import MINI, mini_prompts, place
from bench.results import Json, load, merge, save

WAYS: dict[str, tuple[list[str], dict[str, str]]] = {
    "plugin": ([], {}),
    "gptq_marlin": (["--quantization", "gptq_marlin"], {}),
    "stock": ([], {"VLLM_PLUGINS": ""}),
}
_ARGUMENTS = (
    "--dtype", "bfloat16", "--max-model-len", "512", "--max-num-seqs", "64",
    "--gpu-memory-utilization", "0.1", "--kv-cache-memory-bytes", str(4 << 30),
    "--gdn-prefill-backend", "triton", "--attention-backend", "TRITON_ATTN",
    "--limit-mm-per-prompt", '{"image": 0, "video": 0}',
    "--speculative-config", '{"method": "mtp", "num_speculative_tokens": 2}',
)  # fmt: skip
# A first start on a card tunes kernels for minutes.
_PATIENCE = 400.0
# Of a log-probability: 1e-5 nats is a thousandth of what BF16 changes.
_DIGITS = 5
NEW, A_DOMAIN = 32, 10
BF16 = "transformers in BF16"
# Root mean square of a prompt, nats, above which its log-probabilities are of something else; BF16 makes 0.02.
_OFF = 1.0


def dense_models(checkpoint: Path) -> tuple[Any, Any]:
    """The model with gptqmodel's own dequantized weights, in float32 and in BF16."""
    import gptq_hybrid

    gptq_hybrid.register()
    from gptqmodel import BACKEND, GPTQModel
    from transformers import AutoModelForImageTextToText

    packed = GPTQModel.load(str(checkpoint), device="cpu", backend=BACKEND.TORCH, dtype=torch.float16).model
    weights = {
        n: m.dequantize_weight().T for n, m in packed.named_modules() if hasattr(m, "dequantize_weight")
    }
    models = []
    for dtype in (torch.float32, torch.bfloat16):
        model = AutoModelForImageTextToText.from_pretrained(MINI / "checkpoint", dtype=dtype).eval()
        linears = {n: m for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
        for name, weight in weights.items():
            own = [n for n in linears if n == name or n.endswith("." + name.split(".", 1)[-1])]
            if len(own) != 1:
                raise ValueError(f"{name} of gptqmodel is {own or 'nothing'} in transformers")
            linears[own[0]].weight.data = weight.to(dtype).contiguous()
        models.append(model)
    return models[0], models[1]


@torch.no_grad()
def log_probabilities(model: Any, ids: list[int]) -> torch.Tensor:
    """Of each token but the first, float32 ``[len(ids) - 1]``."""
    logits = model(input_ids=torch.tensor([ids])).logits[0, :-1].float()
    return logits.log_softmax(-1).gather(1, torch.tensor(ids[1:])[:, None])[:, 0]


@torch.no_grad()
def continued(model: Any, ids: list[int], new: int) -> list[int]:
    """A prompt and ``new`` tokens after it, chosen greedily."""
    out = model.generate(torch.tensor([ids]), max_new_tokens=new, do_sample=False, use_cache=True)
    return [int(token) for token in out[0]]


def errors(scored: list[torch.Tensor], exact: list[torch.Tensor]) -> dict[str, float]:
    """Of log-probabilities, in nats."""
    difference = torch.cat(scored) - torch.cat(exact)
    return {"rms": difference.square().mean().sqrt().item(), "largest": difference.abs().max().item()}


def answers(server: Any, prompts: list[list[int]]) -> Json:
    """Of each prompt: vLLM's log-probability of its tokens but the first, and the greedy reply's token ids."""
    ask = {"model": server.model, "prompt": prompts, "temperature": 0}
    scored = server.post("/v1/completions", {**ask, "max_tokens": 1, "prompt_logprobs": 0})["choices"]
    replied = server.post(
        "/v1/completions", {**ask, "max_tokens": NEW, "ignore_eos": True, "return_token_ids": True}
    )["choices"]
    return {
        "log_probabilities": [
            [
                round(row[str(token)]["logprob"], _DIGITS)
                for row, token in zip(c["prompt_logprobs"][1:], ids[1:], strict=True)
            ]
            for c, ids in zip(sorted(scored, key=lambda c: c["index"]), prompts, strict=True)
        ],
        "replies": [c["token_ids"] for c in sorted(replied, key=lambda c: c["index"])],
    }


def said_of(log: str, checkpoint: Path) -> list[str]:
    """The lines of a log that say who serves, from the message on, and nothing of where the checkpoint lies."""
    return [
        line.partition("] ")[2].replace(str(checkpoint), "CHECKPOINT")[:600]
        for line in log.splitlines()
        if "qwen36" in line or "quantization=" in line
    ]


def serve(checkpoint: Path, way: str) -> Json:
    """One way: what it answers, what it accepted, and what its log says of how it is served."""
    from gptq_hybrid.common.vllm_server import vllm_server

    prompts = [ids for rows in mini_prompts(checkpoint, A_DOMAIN).values() for ids in rows]
    flags, variables = WAYS[way]
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "vllm.log")
        with vllm_server(
            [str(checkpoint), *_ARGUMENTS, *flags], log=log, environment=variables, timeout=_PATIENCE
        ) as server:
            answered = answers(server, prompts)
            counted = server.acceptance()
        said = said_of(log.read_text(encoding="utf-8", errors="replace"), checkpoint)
    return {
        "environment": place(),
        "flags": flags,
        "acceptance_length": round(counted.length, 4),
        "log": said,
        **answered,
    }


def compared(checkpoint: Path, result: Json) -> Json:
    """Each way and transformers in BF16 against float32, and ways against each other.

    Raises:
        ValueError: a way was asked other prompts than these.
    """
    prompts = [ids for rows in mini_prompts(checkpoint, A_DOMAIN).values() for ids in rows]
    exact, rounded = dense_models(checkpoint)
    of_model = {
        name: {
            "log_probabilities": [log_probabilities(model, ids).tolist() for ids in prompts],
            "replies": [continued(model, ids, NEW)[len(ids) :] for ids in prompts],
        }
        for name, model in (("exact", exact), (BF16, rounded))
    }
    # Servers are told to go on behind the end of a text, transformers is not.
    ends = set(exact.generation_config.eos_token_id)
    return {
        "prompts": len(prompts),
        "prompt_tokens": len(prompts[0]),
        "ways": against(of_model.pop("exact"), {**of_model, **result["runs"]}, ends),
    }


def against(exact: Mapping[str, Any], runs: Mapping[str, Mapping[str, Any]], ends: Collection[int]) -> Json:
    """Of each run: errors of its log-probabilities in nats, and how many replies are those of ``exact`` and others.

    Replies count up to the first token of ``ends``, that included. Prompts that are off in `stock` are not in the
    errors; ``prompts off`` names those of each run by their place.

    Raises:
        ValueError: a run has other prompts, or another number of tokens in one, than ``exact``.
    """
    reference = [torch.tensor(row) for row in exact["log_probabilities"]]
    replies = {way: [_until(ids, ends) for ids in run["replies"]] for way, run in runs.items()}
    expected = [_until(ids, ends) for ids in exact["replies"]]
    scored = {way: [torch.tensor(row) for row in run["log_probabilities"]] for way, run in runs.items()}
    off: dict[str, list[int]] = {}
    for way, rows in scored.items():
        if [len(row) for row in rows] != [len(row) for row in reference]:
            raise ValueError(f"{way} was asked other prompts than the reference: serve it again")
        pairs = enumerate(zip(rows, reference, strict=True))
        off[way] = [i for i, (row, exact_row) in pairs if errors([row], [exact_row])["rms"] > _OFF]
    sound = [i for i in range(len(reference)) if i not in off.get("stock", [])]
    by_way: Json = {}
    for way, rows in scored.items():
        by_way[way] = {
            "log_probability_error": errors([rows[p] for p in sound], [reference[p] for p in sound]),
            "prompts off": off[way],
            "replies as float32": _alike(replies[way], expected),
            **{
                f"replies as {other}": _alike(replies[way], others)
                for other, others in replies.items()
                if other != way
            },
        }
    return by_way


def summary(result: Json, comparison: Json) -> Json:
    """What the page needs: how each way was served, and the comparison, without every token and log-probability."""
    raw = ("log_probabilities", "replies")
    runs = {way: {k: v for k, v in run.items() if k not in raw} for way, run in result["runs"].items()}
    return {"settings": result["settings"], "runs": runs, "compared": comparison}


def _until(ids: list[int], ends: Collection[int]) -> list[int]:
    last = next((place for place, token in enumerate(ids) if token in ends), len(ids))
    return ids[: last + 1]


def _alike(one: Sequence[list[int]], other: Sequence[list[int]]) -> int:
    return sum(a == b for a, b in zip(one, other, strict=True))


def main() -> None:
    """Command line."""
    parser = command_line(__doc__, "checkpoint", "raw")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument(
        "--summary", type=Path, metavar="OUT.json", help="serve nothing; compare, and write this"
    )
    args = parser.parse_args()
    if args.summary:
        result = load(args.raw)
        if not result:
            parser.error(f"{args.raw} is not there: serve first")
        summed = summary(result, compared(args.checkpoint, result))
        save(args.summary, summed)
        print(json.dumps(summed["compared"], indent=1))
        return
    for way in args.ways:
        run = serve(args.checkpoint, way)
        merge(args.raw, {"new": NEW, "a_domain": A_DOMAIN}, list(WAYS), way, run)
        print(f"{way}: acceptance length {run['acceptance_length']}", *run["log"], sep="\n  ", flush=True)


if __name__ == "__main__":
    main()
