"""Which weights of the drafter lose what in 4 bits: computed along greedy replies of the trained mini model.

    python -m bench.drafts.parts CHECKPOINT OUT.json [--tokens 7000]

CHECKPOINT is bench/mini's, quantized, with a draft_vocab.json. Its target's weights are unpacked, and transformers
continues held-out text greedily in float32: two passages of each document. Along those replies every draft is
computed by the training module ([`../mini/model.py`](../mini/model.py)) with the drafter's weights rounded as the
plugin rounds them, and accepted where it is the reply's next token. Ratios are of tokens a step over BF16 drafts on
the same replies; standard errors by resampling replies. An engine has BF16 sums besides: `acceptance.py` runs one.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from bench.mini import evaluate
from bench.mini.model import MiniModel
from bench.mini.rows import END_OF_TEXT, make_rows
from bench.results import Json, save
from vllm_qwen36_plugin.drafts import rounding
from vllm_qwen36_plugin.packed import dequantize_words

_PROMPT, _NEW, _STARTS, _BATCH = 64, 64, (0, 128), 64
_RESAMPLED = 200
Weights = dict[str, torch.Tensor]
PARTS = ("fc", "head", "qkv", "o", "gate_up", "down")
_LAYER = "mtp.layers.0."


def mixes() -> dict[str, dict[str, str]]:
    """Forms of all parts, by what a drafter with them is called."""
    found = {f"all in {form.upper()}": dict.fromkeys(PARTS, form) for form in ("bf16", "w8", "w4")}
    found |= {f"{part} in W4, the rest in BF16": found["all in BF16"] | {part: "w4"} for part in PARTS}
    for kept in (("fc",), ("fc", "qkv"), ("fc", "head")):
        found[f"{' and '.join(kept)} in W8, the rest in W4"] = found["all in W4"] | dict.fromkeys(kept, "w8")
    return found


def unpacked(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Every weight of the language model and the MTP head, float32."""
    from safetensors.torch import load_file

    found = {}
    for name in ("model.safetensors", "mtp.safetensors"):
        held = load_file(checkpoint / name)
        for key, tensor in held.items():
            module, _, what = key.rpartition(".")
            if key.startswith("model.visual") or what in ("g_idx", "qzeros", "scales"):
                continue
            if what == "qweight":
                words = dequantize_words(tensor, held[f"{module}.scales"], 4)
                found[f"{module}.weight"] = words.float()
            else:
                found[key] = tensor.float()
    return found


@torch.no_grad()
def replies(tokenizer: Any, state: Mapping[str, torch.Tensor], end: int) -> torch.Tensor:
    """Held-out passages and their greedy continuations, ``[replies, tokens]``; those that end are left out."""
    from transformers import Qwen3_5ForConditionalGeneration

    mini = Path(evaluate.__file__).parent
    model = Qwen3_5ForConditionalGeneration.from_pretrained(mini / "checkpoint", dtype=torch.float32).eval()
    for name, parameter in model.named_parameters():
        if name in state:
            parameter.data.copy_(state[name])
    model.generation_config.eos_token_id = None
    given = [
        ids[start : start + _PROMPT]
        for domain in evaluate.DOMAINS
        for ids in (tokenizer(text)["input_ids"] for text in evaluate.texts(mini / "heldout", domain))
        for start in _STARTS
        if len(ids) > start + _PROMPT
    ]
    found = []
    for first in range(0, len(given), _BATCH):
        x = torch.tensor(given[first : first + _BATCH])
        found.append(
            model.generate(
                input_ids=x, attention_mask=torch.ones_like(x), max_new_tokens=_NEW, do_sample=False,
                eos_token_id=None, pad_token_id=end,
            )
        )  # fmt: skip
        print(f"{first + len(x)} of {len(given)} replies", flush=True)
    whole = torch.cat(found)
    return whole[~(whole == end).any(1)]


class Drafter:
    """The mini model with other weights in its drafter, along fixed replies."""

    def __init__(self, model: MiniModel, given: torch.Tensor, end: int) -> None:
        self._model, self._given, self._end = model, given, end
        with torch.no_grad():
            self._hidden = torch.cat(
                [model.hidden(make_rows(x[:, :-2], end, drafting=False)) for x in given.split(_BATCH)]
            )

    def _put(self, weights: Weights) -> None:
        mtp = self._model.mtp
        layer = mtp.layers[0]
        attention, mlp = layer.self_attn, layer.mlp
        q, k, v = (getattr(attention, f"{name}_proj") for name in "qkv")
        of = {
            "fc": (mtp.fc,),
            "qkv": (q, k, v),
            "o": (attention.o_proj,),
            "gate_up": (mlp.gate_proj, mlp.up_proj),
        }
        of["down"] = (mlp.down_proj,)
        for part, linears in of.items():
            sizes = [linear.weight.shape[0] for linear in linears]
            for linear, weight in zip(linears, weights[part].float().split(sizes), strict=True):
                linear.weight.data = weight

    @torch.no_grad()
    def counts(self, weights: Weights, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Steps and accepted drafts of each reply, float64 ``[replies, 2]``: drafts among ``ids``, and of all."""
        self._put(weights)
        head = weights["head"].float()
        few, every = [], []
        for x, hidden in zip(self._given.split(_BATCH), self._hidden.split(_BATCH), strict=True):
            rows = make_rows(x[:, :-2], self._end)
            logits = [states @ head.t() for states in self._model.drafts(hidden, rows, x[:, 1:-1], x[:, 2:])]
            among = [ids[one[..., ids].argmax(-1)].tolist() for one in logits]
            of_all = [one.argmax(-1).tolist() for one in logits]
            few += [_steps(tokens, *both) for tokens, *both in zip(x.tolist(), *among, strict=True)]
            every += [_steps(tokens, *both) for tokens, *both in zip(x.tolist(), *of_all, strict=True)]
        return torch.tensor(few, dtype=torch.float64), torch.tensor(every, dtype=torch.float64)


def _steps(tokens: list[int], first: list[int], second: list[int]) -> tuple[int, int]:
    accepted = evaluate.accepted_drafts(tokens, _PROMPT, first, second)
    return len(accepted), sum(accepted)


def over(counts: torch.Tensor, base: torch.Tensor) -> tuple[float, float]:
    """Tokens a step over those of ``base``, and the standard error of that, replies in pairs."""

    def ratio(rows: torch.Tensor) -> float:
        one, other = (1 + of[rows, 1].sum() / of[rows, 0].sum() for of in (counts, base))
        return float(one / other)

    draw = torch.Generator().manual_seed(0)
    count = len(counts)
    drawn = [ratio(torch.randint(count, (count,), generator=draw)) for _ in range(_RESAMPLED)]
    return ratio(torch.arange(count)), float(torch.tensor(drawn).std())


def measure(args: argparse.Namespace) -> Json:
    """Every mix over few tokens and over all."""
    from transformers import AutoTokenizer

    from gptq_hybrid.evaluate._environment import environment

    tokenizer = AutoTokenizer.from_pretrained(args.checkpoint)
    end = tokenizer.convert_tokens_to_ids(END_OF_TEXT)
    state = unpacked(args.checkpoint)
    model = MiniModel(json.loads((args.checkpoint / "config.json").read_text())["text_config"]).eval()
    model.load_state_dict(state)
    ranked = json.loads((args.checkpoint / "draft_vocab.json").read_text())["ids"]
    # As many as the plugin takes: whole blocks of 64.
    ids = torch.tensor(sorted(ranked[: args.tokens // 64 * 64]))
    own = {"fc": state["mtp.fc.weight"], "head": state["lm_head.weight"]}
    for part, names in {
        "qkv": ("self_attn.q", "self_attn.k", "self_attn.v"), "o": ("self_attn.o",),
        "gate_up": ("mlp.gate", "mlp.up"), "down": ("mlp.down",),
    }.items():  # fmt: skip
        own[part] = torch.cat([state[f"{_LAYER}{name}_proj.weight"] for name in names])
    own = {part: weight.bfloat16() for part, weight in own.items()}

    def rounded(bits: int, group: int) -> Weights:
        packed = {part: rounding.quantize(weight, group, bits) for part, weight in own.items()}
        return {part: dequantize_words(*both, bits).bfloat16() for part, both in packed.items()}

    drafter = Drafter(model, replies(tokenizer, state, end), end)
    few, whole = drafter.counts(own, ids)
    by_form = {"bf16": own, "w4": rounded(4, 32), "w8": rounded(8, 128)}
    result: Json = {
        "environment": environment("cpu"),
        "settings": {"replies": len(whole), "tokens": args.tokens, "new": _NEW},
        "mixes": {},
    }
    for name, forms in mixes().items():
        weights = {part: by_form[form][part] for part, form in forms.items()}
        some, every = drafter.counts(weights, ids)
        result["mixes"][name] = {"forms": forms} | {
            what: [round(value, 5) for value in over(*pair)]
            for what, pair in {
                "few_over_few": (some, few), "few_over_all": (some, whole), "all_over_all": (every, whole),
            }.items()
        }  # fmt: skip
        print(name, result["mixes"][name], flush=True)
        save(args.out, result)
    return result


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--tokens", type=int, default=7000, help="that may be drafted")
    measure(parser.parse_args())


if __name__ == "__main__":
    main()
