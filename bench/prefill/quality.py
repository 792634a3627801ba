"""What ``prefill=fp8`` and ``a8`` cost in quality: the trained mini model, with the evaluation of ``qwen36 eval``.

    python -m bench.prefill.quality WORK OUT.json [--samples 64] [--documents 12]

`bench/mini/checkpoint` is quantized as the recipe `static-mse` says (WORK keeps it), then run over held-out
documents and held against the BF16 original, in float32 arithmetic on the CPU:

    w4a16         the checkpoint as it is
    fp8-weights   its packed linears with weights in e4m3, a scale a column
    fp8           and rows in e4m3, a scale a row: what `routes.fp8` computes
    a8, a8-e4m3   weights as they are, rows in int8, behind the plugin's guard, or in e4m3; in groups of 128
    a8-x10        `a8` with a channel of each group ten times larger, and its weights as much smaller
    fp8-context   `fp8` for the first 256 rows of a document, `w4a16` for the rest of them

Under ``everywhere`` every row goes one way, context and scored rows alike: an upper bound. A server takes
`routes.fp8` for prompts of some hundred rows only, and decodes with the packed weights: that is ``context``, scored
behind the 256 rows only. Left out of both: what a GPU's tensor cores drop while they add up, and that a server
keeps activations and scales in BF16.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from bench.arguments import command_line
from bench.prefill.report import quality_table
from bench.quality.experiments import HELD_OUT, MINI
from bench.quality.grid import BY_NAME
from bench.results import Json, save
from gptq_hybrid.checkpoint.fingerprint import checkpoint_fingerprint
from gptq_hybrid.common.atomic import write_json_atomic
from gptq_hybrid.common.machine import environment
from gptq_hybrid.evaluate import DocumentScores, as_json, build_evaluation
from gptq_hybrid.evaluate.passes import Pass, compare_drafts
from gptq_hybrid.evaluate.tokens import score_documents
from gptq_hybrid.packing import dequantize_symmetric
from gptq_hybrid.streaming import (
    Batch,
    CheckpointWeights,
    LayerStream,
    MtpHead,
    OutputHead,
    TextStack,
    make_batches,
)
from vllm_qwen36_plugin.prefill.activations import GROUP, reference_groups, values_of
from vllm_qwen36_plugin.prefill.guard import LIMIT
from vllm_qwen36_plugin.prefill.routes import FP8, fp8_scales

Way = Literal["w4a16", "a8", "a8-x10", "a8-e4m3", "fp8-weights", "fp8", "fp8-context"]
# `build_evaluation` compares each with those behind it, the earlier less the later.
EVERYWHERE: tuple[Way, ...] = ("fp8", "fp8-weights", "a8-e4m3", "a8-x10", "a8", "w4a16")
BEHIND: tuple[Way, ...] = ("fp8-context", "w4a16")
RECIPE, EXPERIMENT = "static-mse", "small-mse"
CONTEXT, _LEAST_BEHIND = 256, 32  # rows, and tokens that must follow for a document to count
_BITS, _DRAFTS, _MAX_LENGTH, _BATCH = 4, 2, 1024, 4096
_MOST = 448.0  # largest finite e4m3
# vLLM's least scale of a row (min_scaling_factor): with it, rows of zeros are divided by something.
_LEAST_SCALE = 1 / (_MOST * 512)


def quantize_rows(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """``[…, k]`` in e4m3 and float32 ``[…, 1]``, as vLLM's ``dynamic_per_token_scaled_fp8_quant`` does it.

    But for NaN: it spreads over its row here, while vLLM's fmin and fmax take it for 448.
    """
    wide = x.float()
    scales = (wide.abs().amax(dim=-1, keepdim=True) / _MOST).clamp(min=_LEAST_SCALE)
    return (wide / scales).clamp(-_MOST, _MOST).to(FP8), scales


class Linear(nn.Module):
    """A packed linear that computes ``way``, of int32 ``words`` ``[k / 8, n]`` and ``scales`` ``[groups, n]``."""

    def __init__(self, words: torch.Tensor, scales: torch.Tensor, way: Way) -> None:
        super().__init__()
        self.way, self.keeps = way, None if way in ("a8", "a8-x10") else False
        inverse, self.column = fp8_scales(scales, _BITS)
        # One product in float32, rounded once, as the expansion kernel has it.
        self.values = dequantize_symmetric(words, scales.float() * inverse, _BITS).to(FP8).float()
        self.dense = dequantize_symmetric(words, scales.float(), _BITS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[documents, length, k]`` to ``[documents, length, n]``, in the dtype of ``x``."""
        if self.way == "w4a16":
            return self._packed(x)
        if self.way == "fp8-weights":
            return (F.linear(x.float(), self.values) * self.column).to(x.dtype)
        if self.way == "fp8":
            return self._fp8(x)
        if self.way in ("a8", "a8-x10", "a8-e4m3"):
            return self._a8(x)
        return torch.cat([self._fp8(x[:, :CONTEXT]), self._packed(x[:, CONTEXT:])], dim=1)

    def _packed(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x.float(), self.dense).to(x.dtype)

    def _a8(self, x: torch.Tensor) -> torch.Tensor:
        larger = torch.ones(x.shape[-1])
        larger[5::GROUP] = 10 if self.way == "a8-x10" else 1
        dtype = FP8 if self.way == "a8-e4m3" else torch.int8
        rounded = values_of(*reference_groups((x.float() * larger).flatten(0, -2), dtype)).view_as(x)
        result, exact = F.linear(rounded / larger, self.dense).to(x.dtype), self._packed(x)
        if self.keeps is None:
            shares = (result - exact).square().sum(dim=-1) / exact.square().sum(dim=-1)
            self.keeps = bool(shares[shares.isfinite()].mean().sqrt() > LIMIT)
        return exact if self.keeps else result

    def _fp8(self, x: torch.Tensor) -> torch.Tensor:
        rows, scales = quantize_rows(x)
        return (F.linear(rows.float(), self.values) * scales * self.column).to(x.dtype)


class Stack(TextStack):
    """The checkpoint's language model whose packed linears compute ``way``; ``linears`` are these."""

    def __init__(self, weights: CheckpointWeights, way: Way) -> None:
        super().__init__(weights, torch.device("cpu"), torch.float32)
        self.checkpoint_weights, self.way = weights, way
        self.linears: list[Linear] = []

    def layer(self, number: int, tensors: Mapping[str, torch.Tensor] | None = None) -> nn.Module:
        layer = super().layer(number, tensors)
        prefix = f"{self.prefix}.layers.{number}."
        for name in sorted(self.checkpoint_weights.checkpoint.loaded):
            if name.startswith(prefix) and name.endswith(".qweight"):
                module = name.removesuffix(".qweight")
                self.linears.append(Linear(*packed(self.checkpoint_weights, module), self.way))
                layer.set_submodule(module.removeprefix(prefix), self.linears[-1])
        return layer


def packed(weights: CheckpointWeights, module: str) -> tuple[torch.Tensor, torch.Tensor]:
    """int32 words ``[k / 8, n]`` and scales ``[groups, n]`` of a linear that `routes.fp8` can take.

    Raises:
        ValueError: it is asymmetric, or its groups are not contiguous.
    """
    words, scales, zeros, order = (
        weights.read(f"{module}.{part}") for part in ("qweight", "scales", "qzeros", "g_idx")
    )
    rows = words.shape[0] * 32 // _BITS
    # Middle of the range, stored less one, in every nibble.
    if not bool((zeros == 0x77777777).all()):
        raise ValueError(f"{module} is not symmetric: quantize with the recipe {RECIPE}")
    if not torch.equal(order.long(), torch.arange(rows) // (rows // scales.shape[0])):
        raise ValueError(f"{module} has groups that are not contiguous: quantize with the recipe {RECIPE}")
    return words, scales


def checkpoint_of(work: Path, samples: int) -> tuple[Path, Json]:
    """The quantized checkpoint in ``work``, made if it is not there; and what is known of its calibration."""
    from transformers import AutoTokenizer

    from bench.quality.quantizer import quantize, unpack_pool

    folder, facts = work / f"{EXPERIMENT}-{samples}", work / f"{EXPERIMENT}-{samples}.json"
    if not facts.is_file():
        shutil.rmtree(folder, ignore_errors=True)
        text = replace(BY_NAME[EXPERIMENT].text, samples=samples)
        experiment = replace(BY_NAME[EXPERIMENT], text=text)
        made = quantize(experiment, MINI, folder, unpack_pool(work), AutoTokenizer.from_pretrained(MINI))
        write_json_atomic(facts, made)
    return folder, json.loads(facts.read_text(encoding="utf-8"))


def passed(stack: TextStack, batches: Sequence[Batch]) -> tuple[Pass, OutputHead]:
    """All layers and the MTP head over all documents; ``run_pass`` builds its stack itself."""
    stream, head = LayerStream(stack, batches), OutputHead(stack)
    stream.run()
    hidden = stream.final()
    return Pass(hidden, compare_drafts(MtpHead(stack), head, batches, hidden, _DRAFTS)), head


def behind(scores: Sequence[DocumentScores], context: int, least: int) -> list[DocumentScores]:
    """What was scored at rows from ``context`` on; documents with fewer than ``least`` of them are left out."""
    return [
        replace(
            s,
            **{n: getattr(s, n)[context:] for n in ("kld", "top1", "nll_ref", "nll", "drafts_ref", "drafts")},
        )
        for s in scores
        if len(s.kld) >= context + least
    ]


def measure(work: Path, samples: int, limit: int | None) -> Json:
    """Quantize, run every way, compare."""
    from transformers import AutoTokenizer

    from gptq_hybrid.calibration import encode_documents, load_documents

    folder, facts = checkpoint_of(work, samples)
    tokenizer = AutoTokenizer.from_pretrained(MINI)
    documents = encode_documents(load_documents([str(HELD_OUT)], limit=limit), tokenizer, _MAX_LENGTH)
    batches = make_batches([document.input_ids for document in documents], _BATCH)
    original, weights = CheckpointWeights(MINI), CheckpointWeights(folder)
    reference = passed(TextStack(original, torch.device("cpu"), torch.float32), batches)
    scores: dict[Way, list[DocumentScores]] = {}
    replaced, kept = set(), {}
    for way in dict.fromkeys((*EVERYWHERE, *BEHIND)):
        stack = Stack(weights, way)
        scores[way] = score_documents(documents, batches, reference, passed(stack, batches), drafts=_DRAFTS)
        replaced.add(len(stack.linears))
        kept[way] = sum(bool(linear.keeps) for linear in stack.linears)
        print(f"{way}: {len(stack.linears)} linears, {kept[way]} keep 16 bits", flush=True)
    if replaced != {len(weights.layout.quantized)}:
        raise RuntimeError(
            f"{replaced} linears computed the way asked for, of {len(weights.layout.quantized)}"
        )
    digest = hashlib.sha256("".join(sorted(document.key for document in documents)).encode()).hexdigest()
    parts: dict[str, dict[str, list[DocumentScores]]] = {
        "everywhere": {way: scores[way] for way in EVERYWHERE},
        "context": {way: behind(scores[way], CONTEXT, _LEAST_BEHIND) for way in BEHIND},
    }
    result: Json = {
        "environment": environment("cpu"),
        "settings": {
            "recipe": RECIPE,
            "samples": samples,
            "calibration_rows": facts["calibration_rows"],
            "calibration_tokens": facts["calibration_tokens"],
            "linears": len(weights.layout.quantized),
            "documents": len(documents),
            "documents_sha256": digest,
            "tokens": sum(len(document.input_ids) for document in documents),
            "limit": limit,
            "max_length": _MAX_LENGTH,
            "context": CONTEXT,
            "drafts": _DRAFTS,
            "dtype": "float32",
            "keep_16_bits": kept,
        },
        "fingerprints": {
            "bf16": checkpoint_fingerprint(original.checkpoint),
            "w4a16": checkpoint_fingerprint(weights.checkpoint),
        },
    }
    return result | {
        name: summary(as_json(build_evaluation(part, reference="bf16"))) for name, part in parts.items()
    }


def summary(part: Json) -> Json:
    """What the page needs of an evaluation: each way over all domains, less `w4a16`, and by domain."""
    figures = ("documents", "tokens", "kld_mean", "top1", "perplexity_ratio")
    result: Json = {"ways": {}, "less_w4a16": {}, "domains": {}}
    for entry in part["checkpoints"]:
        row, acceptance = entry["overall"], entry["overall"]["acceptance"]
        length = acceptance["length"]["value"] if acceptance else None
        result["ways"][entry["name"]] = {key: row[key] for key in figures} | {"acceptance_length": length}
    for pair in (pair for pair in part["comparisons"] if pair["b"] == "w4a16"):
        result["less_w4a16"][pair["a"]] = {
            d["measure"]: {**d["difference"], "p": d["p"]}
            for d in pair["overall"]["differences"]
            if d["measure"] in ("kld_mean", "top1")
        }
    # The first way holds the most in 8 bits.
    first = part["checkpoints"][0]["name"]
    base = {row["domain"]: row["kld_mean"]["value"] for row in _entry(part, "w4a16")["domains"]}
    (pair,) = (pair for pair in part["comparisons"] if (pair["a"], pair["b"]) == (first, "w4a16"))
    for row in pair["domains"]:
        (kld,) = (d for d in row["differences"] if d["measure"] == "kld_mean")
        share = kld["difference"]["value"] / base[row["domain"]]
        result["domains"][row["domain"]] = {"share": share, "p_holm": kld["p_holm"]}
    return result


def _entry(part: Json, name: str) -> Json:
    entry: Json = next(entry for entry in part["checkpoints"] if entry["name"] == name)
    return entry


def rounded(value: Any) -> Any:
    """Every float with six significant digits: what intervals of this many documents support."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, Mapping):
        return {key: rounded(inner) for key, inner in value.items()}
    return [rounded(inner) for inner in value] if isinstance(value, list | tuple) else value


def main() -> None:
    """Command line."""
    parser = command_line(__doc__, "work", "out")
    parser.add_argument("--samples", type=int, default=64, help="rows of calibration that are asked for")
    parser.add_argument("--documents", type=int, default=12, help="most of a domain; 0: all")
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.work.mkdir(parents=True, exist_ok=True)
    result = rounded(measure(args.work, args.samples, args.documents or None))
    save(args.out, result)
    print(quality_table(result))


if __name__ == "__main__":
    main()
