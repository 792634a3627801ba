"""An act-order checkpoint in vLLM's CPU build with the plugin, against the same weights in transformers.

    python -m bench.act_order.agreement CHECKPOINT OUT.json      # made from bench/mini with the recipe `reference`

The reference is transformers' forward pass in float32 on the weights that gptqmodel itself dequantizes; the
yardstick is the same in BF16, in which alone vLLM's CPU build computes this architecture. Prompts are held-out
text of the mini model. Greedy tokens: where they differ, by how much the reference prefers its own token, beside
the standard deviation of what BF16 changes about the logits there. Also recorded: what stock vLLM says of the
checkpoint, and what becomes of the log-probabilities where ``g_idx`` is ignored.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from bench.mini.engine import divergence, serve, together
from bench.results import save

_MINI = Path(__file__).parents[1] / "mini"
_PROMPT, NEW, A_DOMAIN = 64, 32, 10


def prompts(tokenizer: Any, a_domain: int) -> dict[str, list[list[int]]]:
    """The first tokens of so many held-out documents of each domain."""
    found = {}
    for file in sorted((_MINI / "heldout").glob("*.jsonl")):
        rows = [json.loads(line) for line in file.open(encoding="utf-8")]
        ids = [tokenizer(row["text"])["input_ids"] for row in rows if "text" in row]
        kept = [x[:_PROMPT] for x in ids if len(x) > _PROMPT][:a_domain]
        if kept:
            found[file.stem] = kept
    return found


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
        model = AutoModelForImageTextToText.from_pretrained(_MINI / "checkpoint", dtype=dtype).eval()
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


def engine_log_probabilities(checkpoint: Path, given: list[list[int]]) -> list[list[float]]:
    """What vLLM gives each prompt's tokens."""
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    from vllm import LLM, SamplingParams

    llm = LLM(
        model=str(checkpoint), dtype="bfloat16", max_model_len=512, enforce_eager=True,
        enable_prefix_caching=False, limit_mm_per_prompt={"image": 0, "video": 0},
    )  # fmt: skip
    sampling = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0)
    outputs = llm.generate([{"prompt_token_ids": ids} for ids in given], sampling, use_tqdm=False)
    return [
        [entry[token].logprob for entry, token in zip(out.prompt_logprobs[1:], ids[1:], strict=True)]
        for out, ids in zip(outputs, given, strict=True)
    ]


def stock_message(checkpoint: Path) -> dict[str, Any]:
    """What `vllm serve` without plugins says, and its exit code."""
    environment = {**os.environ, "VLLM_PLUGINS": "", "VLLM_CPU_KVCACHE_SPACE": "1"}
    command = [str(Path(sys.executable).parent / "vllm"), "serve", str(checkpoint), "--max-model-len", "512"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if "desc_act" in line]
    return {"exit": done.returncode, "says": lines[-1] if lines else ""}


def _child(task: str, checkpoint: Path, given: Path) -> Any:
    """One engine a process: the `task` of this script, its result as JSON."""
    out = given.with_name(f"{task}.json")
    command = [sys.executable, "-m", "bench.act_order.agreement", str(checkpoint), str(out), "--task", task]
    subprocess.run([*command, "--prompts", str(given)], check=True)
    return json.loads(out.read_text())


def _run_task(task: str, checkpoint: Path, out: Path, given: Path) -> None:
    found: dict[str, list[list[int]]] = json.loads(given.read_text())
    result: Any
    if task == "tokens":
        served = serve(checkpoint, found, NEW)
        whole = together(list(served.values()))
        result = {"tokens": whole.tokens, "acceptance_length": whole.length}
    else:
        result = engine_log_probabilities(checkpoint, [ids for rows in found.values() for ids in rows])
    out.write_text(json.dumps(result))


def errors(found: list[torch.Tensor], exact: list[torch.Tensor]) -> dict[str, float]:
    """Of log-probabilities, in nats."""
    difference = torch.cat(found) - torch.cat(exact)
    return {"rms": difference.square().mean().sqrt().item(), "largest": difference.abs().max().item()}


def compare(checkpoint: Path, work: Path) -> dict[str, Any]:
    """All of it; engines first, as each is a process of its own."""
    from transformers import AutoTokenizer

    given = work / "prompts.json"
    by_domain = prompts(AutoTokenizer.from_pretrained(_MINI / "checkpoint"), A_DOMAIN)
    given.write_text(json.dumps(by_domain))
    flat = [ids for rows in by_domain.values() for ids in rows]
    denied = work / "denied"
    _deny_act_order(checkpoint, denied)
    engine = _child("tokens", checkpoint, given)
    ours = _child("logprobs", checkpoint, given)
    ignored = _child("logprobs", denied, given)
    exact, rounded = dense_models(checkpoint)
    reference = [log_probabilities(exact, ids) for ids in flat]
    parted, bf16_equal = [], 0
    for ids, tokens in zip(flat, engine["tokens"], strict=True):
        new = len(tokens) - len(ids)
        out = continued(exact, ids, new)
        bf16_equal += continued(rounded, ids, new) == out
        apart = divergence(exact, rounded, out, tokens)
        if apart is not None:
            parted.append({key: round(value, 5) for key, value in apart.items()})
    return {
        "environment": {name: version(name) for name in ("vllm", "gptqmodel", "torch", "transformers")}
        | {"device": "cpu"},
        "prompts": len(flat),
        "prompt_tokens": _PROMPT,
        "new_tokens": NEW,
        "log_probability_error": {
            "vllm with the plugin": errors([torch.tensor(row) for row in ours], reference),
            "transformers in BF16": errors([log_probabilities(rounded, ids) for ids in flat], reference),
            "vllm, g_idx ignored": errors([torch.tensor(row) for row in ignored], reference),
        },
        "greedy": {
            "equal": len(flat) - len(parted),
            "equal in transformers in BF16": bf16_equal,
            "parted": parted,
        },
        "acceptance_length": engine["acceptance_length"],
        "stock": stock_message(checkpoint),
    }


def _deny_act_order(source: Path, target: Path) -> None:
    """The same files with the flag off: what stock vLLM loads without a word."""
    target.mkdir()
    for file in source.iterdir():
        if file.name in {"config.json", "quantize_config.json"}:
            text = file.read_text(encoding="utf-8")
            changed = text.replace('"desc_act": true', '"desc_act": false')
            if changed == text:
                raise ValueError(f"{file} says nothing of desc_act")
            (target / file.name).write_text(changed, encoding="utf-8")
        else:
            (target / file.name).symlink_to(file.resolve())


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--task", choices=("tokens", "logprobs"), help=argparse.SUPPRESS)
    parser.add_argument("--prompts", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.task:
        # The checkpoint whose order is denied is there to show what comes of it; the plugin would refuse it.
        if args.checkpoint.name == "denied":
            os.environ |= {"VLLM_PLUGINS": "", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
            from vllm_qwen36_plugin._register import _install_cpu_int4

            _install_cpu_int4()
        _run_task(args.task, args.checkpoint, args.out, args.prompts)
        return
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        result = compare(args.checkpoint, Path(folder))
    save(args.out, result)
    print(json.dumps({k: v for k, v in result.items() if k != "greedy"}, indent=1))
    print(result["greedy"]["equal"], "of", result["prompts"], "equal")


if __name__ == "__main__":
    main()
