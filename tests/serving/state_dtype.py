"""What states in 16 bits do to decoding: a model stepped along held-out text, a token at a time.

    python -m tests.serving.state_dtype OUT.json [--checkpoint bench/mini/checkpoint]

No engine: transformers' own modules in float32, whose recurrent states are rounded after every step, as a cache of
`--mamba-ssm-cache-dtype` keeps them. (vLLM's kernels compute in float32 and round what they store.) Prefill keeps
states in float32 throughout, so that nothing of this shows there. Compared is each step with the same step whose
states are float32, along the same text.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bench.arguments import command_line
from bench.engine import place
from bench.results import Json, save
from gptq_hybrid.common.progress import counting_bars
from gptq_hybrid.common.terminal import err
from tests.streaming.rounded import CHECKPOINT, HELDOUT

DTYPES = ("float16", "bfloat16")
# Tokens of a document, and documents of a domain at most.
_LENGTH, _DOCUMENTS = 256, 3


def documents(checkpoint: Path, length: int, most: int) -> torch.Tensor:
    """Token ids ``[documents, length]`` of held-out text of every domain that has so long ones."""
    from transformers import AutoTokenizer

    tokenizer, rows = AutoTokenizer.from_pretrained(checkpoint), []
    for file in sorted(HELDOUT.glob("*.jsonl")):
        texts = [json.loads(line)["text"] for line in file.open(encoding="utf-8")]
        found = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts)
        rows += [ids[:length] for ids in found if len(ids) >= length][:most]
    return torch.tensor(rows)


class Stepped:
    """A model that has read some tokens, its recurrent states in ``dtype``."""

    def __init__(self, model: Any, dtype: torch.dtype) -> None:
        self.model, self.dtype = model, dtype
        self.cache: Any = None
        self.largest = 0.0

    def step(self, ids: torch.Tensor) -> torch.Tensor:
        """Read a token of each row, ``[rows]``; return log-probabilities of the next, ``[rows, vocabulary]``."""
        out = self.model(input_ids=ids[:, None], past_key_values=self.cache, use_cache=True)
        self.cache = out.past_key_values
        for layer in self.cache.layers:
            state = getattr(layer, "recurrent_states", {}).get(0)
            if state is not None:
                self.largest = max(self.largest, float(state.abs().max()))
                state.copy_(state.to(self.dtype))
        return out.logits[:, -1].float().log_softmax(-1)


@torch.inference_mode()
def measure(
    model: Any,
    ids: torch.Tensor,
    names: tuple[str, ...] = DTYPES,
    on_step: Callable[[int], None] = lambda done: None,
) -> Json:
    """By dtype: mean divergence in nats a token, of all steps and of the last quarter; and what else changed."""
    exact = Stepped(model, torch.float32)
    others = {name: Stepped(model, getattr(torch, name)) for name in names}
    divergence: dict[str, list[torch.Tensor]] = {name: [] for name in names}
    agree, loss = dict.fromkeys(names, 0), dict.fromkeys(("float32", *names), 0.0)
    steps = ids.shape[1] - 1
    for at in range(steps):
        reference, following = exact.step(ids[:, at]), ids[:, at + 1 : at + 2]
        loss["float32"] -= float(reference.gather(1, following).mean()) / steps
        for name, other in others.items():
            found = other.step(ids[:, at])
            divergence[name].append((reference.exp() * (reference - found)).sum(-1))
            agree[name] += int((reference.argmax(-1) == found.argmax(-1)).sum())
            loss[name] -= float(found.gather(1, following).mean()) / steps
        on_step(at + 1)
    late = -(-steps // 4)
    return {
        "documents": len(ids),
        "steps": steps,
        "largest_state": exact.largest,
        "loss": loss["float32"],
        "dtypes": {
            name: {
                "kld": float(torch.stack(divergence[name]).mean()),
                "kld_late": float(torch.stack(divergence[name][-late:]).mean()),
                "agree": agree[name] / (steps * len(ids)),
                "loss": loss[name],
            }
            for name in names
        },
    }


def load(checkpoint: Path) -> Any:
    """The model in float32."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()


def main() -> None:
    parser = command_line(__doc__, "out")
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT)
    args = parser.parse_args()
    ids = documents(args.checkpoint, _LENGTH, _DOCUMENTS)
    model = load(args.checkpoint)
    with counting_bars(err()) as progress:
        task = progress.add_task("steps", total=ids.shape[1] - 1)
        measured = measure(model, ids, on_step=lambda done: progress.update(task, completed=done))
    save(args.out, {"environment": place(), **measured})


if __name__ == "__main__":
    main()
