"""Train the mini model on one GPU until a wall-clock limit. Needs torch >= 2.9.

    python -m bench.mini.train PACK OUT --seconds 570    # PACK: tokenizer.py's folder
    python -m bench.mini.train PACK OUT --device cpu --batch 2 --length 128 --steps 3    # does it run at all?

Matrices are trained with Muon, the rest with AdamW, both at a rate that is constant and then falls to zero; the
loss is that of the next token plus those of two draft steps of the MTP head. Writes OUT/weights-*.safetensors
(BF16) and OUT/training.json: settings, and figures on the whole held-out part before rounding to BF16.
"""

from __future__ import annotations

import argparse
import json
import lzma
import math
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from bench.mini.model import DecoderLayer, MiniModel, make_rows

# Shares of the training tokens by domain.
SHARES = {
    "en": 0.20, "de": 0.06, "fr": 0.06, "es": 0.06, "ja": 0.06, "zh": 0.06, "ru": 0.06, "pl": 0.06,
    "python": 0.12, "c": 0.07, "cpp": 0.025, "go": 0.025, "rust": 0.025, "java": 0.025, "chat": 0.10,
}  # fmt: skip
LENGTH, BATCH = 1024, 64
MTP_WEIGHTS = (0.2, 0.1)
MUON_RATE, ADAM_RATE, DECAY = 0.02, 3e-3, 0.05
WARM_UP, COOL_DOWN = 0.01, 0.40  # shares of the run
_RESERVE = 15.0  # seconds at the end for the final evaluation
LOOK_AHEAD = 3  # targets reach three tokens past a row


class Data:
    """Token ids on `device`; batches by domain share, each domain's rows in a new random order every epoch."""

    def __init__(self, pack: Path, seed: int, device: str, batch: int, length: int) -> None:
        self.rows, self.length, self.device = batch, length, device
        self.meta = json.loads((pack / "pack.json").read_text())
        stream = np.frombuffer(lzma.decompress((pack / "tokens.u16.xz").read_bytes()), dtype=np.uint16)
        self.rng = np.random.default_rng(seed)
        self.parts: dict[str, dict[str, Tensor]] = {"train": {}, "heldout": {}}
        start = 0
        for part, domains in self.parts.items():
            for domain, counts in self.meta["domains"].items():
                tokens = stream[start : start + counts[part]["tokens"]].astype(np.int32)
                start += counts[part]["tokens"]
                if part == "train":
                    tokens = self._shuffle(tokens)
                domains[domain] = torch.from_numpy(tokens).to(device)
        self.names = list(SHARES)
        self.queues: dict[str, np.ndarray] = {d: np.empty(0, dtype=np.int64) for d in self.names}
        self.epochs = dict.fromkeys(self.names, 0.0)

    def _shuffle(self, tokens: np.ndarray) -> np.ndarray:
        documents = np.split(tokens, np.flatnonzero(tokens == self.meta["end"])[:-1] + 1)
        return np.concatenate([documents[i] for i in self.rng.permutation(len(documents))])

    def batch(self) -> Tensor:
        """[rows, length + LOOK_AHEAD] token ids."""
        counts = self.rng.multinomial(self.rows, [SHARES[d] for d in self.names])
        rows = []
        for domain, count in zip(self.names, counts, strict=True):
            tokens = self.parts["train"][domain]
            if len(self.queues[domain]) < count:
                first = self.rng.integers(self.length)
                starts = np.arange(first, len(tokens) - self.length - LOOK_AHEAD, self.length)
                self.queues[domain] = self.rng.permutation(starts)
            take, self.queues[domain] = self.queues[domain][:count], self.queues[domain][count:]
            self.epochs[domain] += len(take) * self.length / len(tokens)
            rows.append(self.windows(tokens, torch.from_numpy(take).to(self.device)))
        return torch.cat(rows)

    def windows(self, tokens: Tensor, starts: Tensor) -> Tensor:
        """[len(starts), length + LOOK_AHEAD] token ids from each start on."""
        window = torch.arange(self.length + LOOK_AHEAD, device=self.device)
        return tokens[starts[:, None] + window].long()


def orthogonalize(update: Tensor) -> Tensor:
    """Newton-Schulz iteration toward the nearest orthogonal matrix, for a stack [n, rows, columns] (Muon)."""
    x = update.bfloat16() if update.is_cuda else update  # in BF16, CPUs without AVX-512 take minutes
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for a, b, c in 5 * ((3.4445, -4.7750, 2.0315),):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class Muon:
    """Momentum orthogonalized, matrices of one shape at a time; decoupled weight decay."""

    def __init__(self, parameters: list[torch.nn.Parameter]) -> None:
        self.groups: dict[torch.Size, list[torch.nn.Parameter]] = {}
        for p in parameters:
            self.groups.setdefault(p.shape, []).append(p)
        self.momenta = {s: torch.zeros(len(g), *s, device=g[0].device) for s, g in self.groups.items()}

    @torch.no_grad()
    def step(self, rate: float, decay: float, momentum: float = 0.95) -> None:
        """One update; clears the gradients."""
        for shape, group in self.groups.items():
            gradient = torch.stack([p.grad for p in group])
            buffer = self.momenta[shape]
            buffer.lerp_(gradient, 1 - momentum)
            update = orthogonalize(gradient.lerp(buffer, momentum)).float()
            torch._foreach_mul_(group, 1 - rate * decay)
            scale = rate * max(1.0, shape[0] / shape[1]) ** 0.5
            torch._foreach_add_(group, list(update.unbind()), alpha=-scale)
            for p in group:
                p.grad = None


def head_loss(hidden: Tensor, weight: Tensor, targets: Tensor, valid: Tensor) -> Tensor:
    """Sum of the cross entropies (nats) of valid targets."""
    logits = F.linear(hidden, weight.type_as(hidden)).float()
    losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    return (losses * valid.flatten()).sum()


def losses(model: MiniModel, tokens: Tensor, end: int) -> tuple[Tensor, Tensor]:
    """Cross entropy sums (nats) and counts of [next token, first draft, second draft]."""
    n = tokens.shape[1] - LOOK_AHEAD
    rows = make_rows(tokens[:, :n], end)
    with torch.autocast(tokens.device.type, torch.bfloat16, enabled=tokens.is_cuda):
        hidden = model.hidden(rows)
        shifted = [tokens[:, i : n + i] for i in range(LOOK_AHEAD + 1)]
        outputs = (hidden, *model.drafts(hidden, rows, shifted[1], shifted[2]))
        valid = torch.ones_like(shifted[0], dtype=torch.bool)
        sums, counts = [], []
        for i, output in enumerate(outputs):
            valid = valid & (shifted[i] != end)  # a document does not foretell the next one
            sums.append(head_loss(output, model.lm_head.weight, shifted[i + 1], valid))
            counts.append(valid.sum())
    return torch.stack(sums), torch.stack(counts)


@torch.no_grad()
def evaluate(model: MiniModel, data: Data, limit: int | None = None) -> dict[str, dict[str, float]]:
    """Held-out nats per token by domain and head, and bits per byte; `limit`: rows a domain."""
    result = {}
    for domain, tokens in data.parts["heldout"].items():
        starts = torch.arange(0, len(tokens) - data.length - LOOK_AHEAD, data.length, device=data.device)[
            :limit
        ]
        sums, counts = torch.zeros(3, device=data.device), torch.zeros(3, device=data.device)
        for some in starts.split(data.rows):
            padded = F.pad(some, (0, data.rows - len(some)), value=0)  # one shape: no recompilation
            batch = data.windows(tokens, padded)
            batch[len(some) :] = data.meta["end"]  # rows of end tokens count nothing
            s, c = losses(model, batch, data.meta["end"])
            sums, counts = sums + s, counts + c
        nats = (sums / counts).tolist()
        size = data.meta["domains"][domain]["heldout"]
        entry = {"tokens": int(counts[0]), "nats": nats[0], "draft1_nats": nats[1], "draft2_nats": nats[2]}
        result[domain] = entry | {"bits_per_byte": nats[0] / math.log(2) * size["tokens"] / size["bytes"]}
    return result


def unigram(data: Data) -> dict[str, float]:
    """Held-out nats per token of each domain's own training unigram (add one)."""
    result = {}
    for domain, tokens in data.parts["train"].items():
        counts = torch.bincount(tokens, minlength=data.meta["config"]["vocab_size"]).double() + 1
        log = (counts / counts.sum()).log()
        result[domain] = -log[data.parts["heldout"][domain].long()].mean().item()
    return result


def save(model: MiniModel, out: Path) -> None:
    """The parameters in BF16, split into files of at most 14 MB."""
    from safetensors.torch import save_file

    shards: list[dict[str, Tensor]] = [{}]
    for name, tensor in model.state_dict().items():
        tensor = tensor.detach().to("cpu", torch.bfloat16).contiguous()
        if sum(t.nbytes for t in shards[-1].values()) + tensor.nbytes > 14_000_000:
            shards.append({})
        shards[-1][name] = tensor
    for number, shard in enumerate(shards):
        save_file(shard, out / f"weights-{number}.safetensors", metadata={"format": "pt"})


def compile_parts() -> None:
    """Compile each kind of layer once, the head with its loss, and Muon's iteration."""
    for name in ("recur", "attend"):
        setattr(DecoderLayer, name, torch.compile(getattr(DecoderLayer, name), dynamic=False))
    globals()["head_loss"] = torch.compile(head_loss, dynamic=False)
    globals()["orthogonalize"] = torch.compile(orthogonalize)


class Optimizer:
    """Muon for the matrices inside the model, AdamW for embeddings, head, norms and vectors."""

    def __init__(self, model: MiniModel) -> None:
        named = dict(model.named_parameters())
        vocabulary = model.lm_head.out_features
        matrices = [p for p in named.values() if p.ndim == 2 and min(p.shape) >= 128 and len(p) < vocabulary]
        chosen = {id(p) for p in matrices}
        self.others = [p for p in named.values() if id(p) not in chosen]
        self.muon = Muon(matrices)
        self.adam = torch.optim.AdamW(
            self.others, lr=ADAM_RATE, betas=(0.9, 0.95), eps=1e-10, weight_decay=0.0, fused=True
        )

    def step(self, progress: float) -> None:
        """One update at `progress` (0 to 1) through the run; clears the gradients."""
        torch.nn.utils.clip_grad_norm_(self.others, 1.0)
        factor = min(1.0, progress / WARM_UP + 0.01, (1 - progress) / COOL_DOWN)
        for group in self.adam.param_groups:
            group["lr"] = ADAM_RATE * factor
        self.adam.step()
        self.adam.zero_grad(set_to_none=True)
        self.muon.step(MUON_RATE * factor, DECAY)


def run(model: MiniModel, data: Data, stop: float, steps: int | None) -> tuple[int, float]:
    """Train until the time `stop`, or for `steps`; returns the steps made and their seconds."""
    end: int = data.meta["end"]
    optimizer = Optimizer(model)
    weights = torch.tensor([1.0, *MTP_WEIGHTS], device=data.device)
    tokens = data.rows * data.length  # a step

    def update(progress: float) -> Tensor:
        sums, counts = losses(model, data.batch(), end)
        means = sums / counts
        (means * weights).sum().backward()
        optimizer.step(progress)
        return means.detach()

    if data.device == "cuda":
        for _ in range(3):  # compiles everything; counted as no progress
            update(0.0)
        evaluate(model, data, 1)
        torch.cuda.synchronize()
    start, step, recent = time.time(), 0, []
    while (progress := step / steps if steps else (time.time() - start) / (stop - start)) < 1:
        recent.append(update(progress))
        step += 1
        if step % 200 and step != steps:
            continue
        means = torch.stack(recent).mean(0).tolist()  # waits for the GPU
        recent, elapsed = [], time.time() - start
        rate = step * tokens / elapsed / 1e3
        print(f"{step:6} {elapsed:6.1f} s {rate:7.0f} k tokens/s {[round(m, 3) for m in means]}", flush=True)
        if steps is None and progress > 0.1 and not means[0] < 6.5:
            raise SystemExit(f"a loss of {means[0]} does not fall")
    return step, time.time() - start


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pack", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seconds", type=float, default=500, help="wall clock of everything")
    parser.add_argument("--steps", type=int, help="instead of --seconds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--batch", type=int, default=BATCH, help="rows a step")
    parser.add_argument("--length", type=int, default=LENGTH, help="tokens a row")
    args = parser.parse_args()
    began = time.time()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)
    torch.set_float32_matmul_precision("high")
    torch._dynamo.config.cache_size_limit = 64
    data = Data(args.pack, args.seed, args.device, args.batch, args.length)
    print(f"data ready after {time.time() - began:.0f} s", flush=True)
    on_gpu = args.device == "cuda"
    if on_gpu:
        compile_parts()
    model = MiniModel(data.meta["config"]).to(args.device)
    step, seconds = run(model, data, began + args.seconds - _RESERVE, args.steps)
    save(model, args.out)
    final, base = evaluate(model, data, None if on_gpu else 1), unigram(data)
    for domain, entry in final.items():
        entry["unigram_nats"] = base[domain]
        print(f"{domain:7} perplexity {math.exp(entry['nats']):8.2f}  unigram {math.exp(base[domain]):8.1f}")
    tokens = step * args.batch * args.length
    summary = {
        "gpu": torch.cuda.get_device_name() if on_gpu else None,
        "torch": torch.__version__,
        "parameters": sum(p.numel() for p in model.parameters()),
        "tokens": tokens,
        "steps": step,
        "seconds": round(seconds, 1),
        "tokens_per_second": round(tokens / seconds),
        "total_seconds": round(time.time() - began, 1),
        "peak_memory_gib": round(torch.cuda.max_memory_allocated() / 2**30, 1) if on_gpu else None,
        "settings": {
            "length": args.length, "batch": args.batch, "mtp_weights": MTP_WEIGHTS, "muon_rate": MUON_RATE,
            "adam_rate": ADAM_RATE, "decay": DECAY, "warm_up": WARM_UP, "cool_down": COOL_DOWN, "seed": args.seed,
        },
        "shares": SHARES,
        "epochs": {d: round(e, 2) for d, e in data.epochs.items()},
    }  # fmt: skip
    content = {"summary": summary, "heldout": final}
    (args.out / "training.json").write_text(json.dumps(content, indent=1) + "\n")
    print(json.dumps({k: v for k, v in summary.items() if k not in ("shares", "settings")}))


if __name__ == "__main__":
    main()
