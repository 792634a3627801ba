"""Divergence of checkpoints from their original along the path that users read: steps of vLLM, and its cache.

    python -m tests.serving.decode_kld OUT.json ORIGINAL CHECKPOINT ...

An engine reads 32 tokens of a held-out document, then decodes the rest of 256 a token a step: a logits processor
takes the logits of each step, and has the document's own token follow. They are held against the original in
float32, in one go. Beside each: the checkpoint's own float32 logits in one go, as `qwen36 eval` has them. The
original is served likewise, which says what serving itself costs.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from bench.arguments import command_line
from bench.engine import place
from bench.results import Json, save
from gptq_hybrid.streaming import make_batches
from tests.serving.state_dtype import documents
from tests.streaming.test_forward import streamed_logits

PROMPT, LENGTH, DOCUMENTS = 32, 256, 3
_RESAMPLED = 2000


def divergences(reference: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """KLD in nats, ``[...]``, of logits from reference logits, both ``[..., vocabulary]``."""
    expected = reference.float().log_softmax(-1)
    return (expected.exp() * (expected - logits.float().log_softmax(-1))).sum(-1)


def whole(checkpoint: Path, ids: torch.Tensor) -> torch.Tensor:
    """Logits in one go, float32 ``[documents, steps, vocabulary]``, at the steps that are decoded."""
    rows = streamed_logits(checkpoint, make_batches(ids.tolist(), 4096))
    return torch.stack([rows[number][PROMPT - 1 : -1] for number in range(len(ids))])


def served(checkpoint: Path, ids: torch.Tensor) -> torch.Tensor:
    """The same from steps of an engine in this process, float32."""
    from vllm import LLM, SamplingParams
    from vllm.v1.sample.logits_processor import AdapterLogitsProcessor

    taken: dict[int, list[torch.Tensor]] = {number: [] for number in range(len(ids))}

    class Follows(AdapterLogitsProcessor):  # type: ignore[misc]
        def is_argmax_invariant(self) -> bool:
            return False

        def new_req_logits_processor(self, params: Any) -> Any:
            number = params.extra_args["document"]

            def follow(output: list[int], logits: torch.Tensor) -> torch.Tensor:
                assert len(output) == len(taken[number])
                taken[number].append(logits.float().cpu().clone())
                token = int(ids[number, PROMPT + len(output)])
                return torch.full_like(logits, float("-inf")).index_fill_(
                    0, torch.tensor([token], device=logits.device), 0.0
                )

            return follow

    engine: dict[str, Any] = {}
    if torch.cuda.is_available():
        engine = {"gdn_prefill_backend": "triton", "attention_backend": "TRITON_ATTN"}
        engine |= {"gpu_memory_utilization": 0.1, "kv_cache_memory_bytes": 1 << 30}
    llm = LLM(
        str(checkpoint),
        dtype="bfloat16",
        max_model_len=512,
        max_num_seqs=16,
        enforce_eager=True,
        enable_prefix_caching=False,
        limit_mm_per_prompt={"image": 0, "video": 0},
        logits_processors=[Follows],
        **engine,
    )
    sampling = [
        SamplingParams(
            temperature=0.0, max_tokens=LENGTH - PROMPT, ignore_eos=True, extra_args={"document": number}
        )
        for number in taken
    ]
    prompts = [{"prompt_token_ids": row[:PROMPT].tolist()} for row in ids]
    outputs = llm.generate(prompts, sampling, use_tqdm=False)
    assert all(
        list(o.outputs[0].token_ids) == row[PROMPT:].tolist() for o, row in zip(outputs, ids, strict=True)
    )
    return torch.stack([torch.stack(taken[number]) for number in taken])


def interval(values: torch.Tensor) -> list[float]:
    """Mean over documents, and 95 % of a bootstrap over them."""
    generator = torch.Generator().manual_seed(0)
    drawn = values[torch.randint(len(values), (_RESAMPLED, len(values)), generator=generator)].mean(-1)
    return [round(float(x), 6) for x in (values.mean(), *drawn.quantile(torch.tensor([0.025, 0.975])))]


def measure(original: Path, checkpoint: Path, ids: torch.Tensor) -> Json:
    """Divergence from the original by decoding and in one go, and what of a step differs between the two."""
    reference = whole(original, ids)
    steps, once = served(checkpoint, ids), whole(checkpoint, ids)
    by_step, at_once = divergences(reference, steps), divergences(reference, once)
    gc.collect()
    return {
        "checkpoint": checkpoint.name,
        "decoded": interval(by_step.mean(-1)),
        "in_one_go": interval(at_once.mean(-1)),
        "more": interval((by_step - at_once).mean(-1)),
        "last_quarter": interval(by_step[:, -by_step.shape[1] // 4 :].mean(-1)),
    }


def main() -> None:
    """A process for each checkpoint."""
    parser = command_line(__doc__, "out", "original")
    parser.add_argument("checkpoints", type=Path, nargs="*")
    parser.add_argument("--one", type=Path, help="this checkpoint only, in this process")
    parser.add_argument("--length", type=int, default=LENGTH, help="tokens of a document")
    parser.add_argument("--documents", type=int, default=DOCUMENTS, help="of a domain, at most")
    args = parser.parse_args()
    ids = documents(args.original, args.length, args.documents)
    if args.one:
        os.environ |= {"VLLM_PLUGINS": "", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "HF_HUB_OFFLINE": "1"}
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
        if not torch.cuda.is_available():
            from vllm_qwen36_plugin.cpu.packed_weights import offer

            offer()  # vLLM has a 4-bit kernel for AVX-512 only
        args.out.write_text(
            json.dumps(measure(args.original, args.one, documents(args.original, LENGTH, DOCUMENTS)))
        )
        return
    rows: list[Json] = []
    for checkpoint in (args.original, *args.checkpoints):
        with tempfile.TemporaryDirectory() as folder:
            part = Path(folder, "part.json")
            command = [sys.executable, "-m", "tests.serving.decode_kld", str(part), str(args.original)]
            sizes = ["--length", str(args.length), "--documents", str(args.documents)]
            subprocess.run([*command, *sizes, "--one", str(checkpoint)], check=True)
            rows.append(json.loads(part.read_text()))
    save(
        args.out, {"environment": place(), "documents": len(ids), "steps": args.length - PROMPT, "rows": rows}
    )


if __name__ == "__main__":
    main()
