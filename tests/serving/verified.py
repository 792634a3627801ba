"""vLLM in this process on a CPU: texts with the head for verification attached, and the same without.

    python -m tests.serving.verified CHECKPOINT OUT.json

OUT holds, by kind of request: both texts as token ids, and how many rows the head settled.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any


def kinds() -> dict[str, list[dict[str, Any]]]:
    """The requests of a batch, as vLLM's sampling parameters."""
    greedy: dict[str, Any] = {"temperature": 0.0, "max_tokens": 32}
    return {
        "one": [greedy],
        "several": [greedy | {"max_tokens": new} for new in (8, 20, 32, 14)],
        "log-probabilities": [greedy | {"logprobs": 2}],
        "penalties": [greedy | {"presence_penalty": 1.5}],
        "sampled": [{"temperature": 1.0, "seed": 5, "max_tokens": 12}],
        "one of two sampled": [greedy, {"temperature": 1.0, "seed": 5, "max_tokens": 32}],
        "not the likeliest": [greedy | {"allowed_token_ids": list(range(100, 400))}],
    }


def main(checkpoint: Path, out: Path) -> None:
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "HF_HUB_OFFLINE": "1"}
    import bench.mini.engine as engine
    from bench.mini import evaluate

    llm = engine.start(
        checkpoint,
        additional_config={"qwen36": {"draft": "w4", "draft_vocab": 0, "verify": "copy"}},
        max_num_seqs=8,
    )
    from vllm import SamplingParams

    from vllm_qwen36_plugin.verify_head.head import VerifyHead, attach, attached

    rows = [0]
    settle = VerifyHead.logits

    def counted(self: VerifyHead, hidden: Any) -> Any:
        rows[0] += len(hidden)
        return settle(self, hidden)

    VerifyHead.logits = counted  # type: ignore[method-assign]
    runner = llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker.model_runner
    lm_head = runner.model.language_model.lm_head
    head = attached(lm_head)
    tokenizer = llm.get_tokenizer()
    prompts = [
        {"prompt_token_ids": evaluate.prompts(tokenizer, checkpoint.parent / "heldout", domain)[0]}
        for domain in ("en", "python", "zh", "de")
    ]

    def text(requests: list[dict[str, Any]]) -> list[list[int]]:
        sampling = [SamplingParams(**request) for request in requests]
        outputs = llm.generate(prompts[: len(sampling)], sampling, use_tqdm=False)
        return [list(output.outputs[0].token_ids) for output in outputs]

    result: dict[str, Any] = {"attached": head is not None}
    for name, requests in kinds().items():
        rows[0] = 0
        attach(lm_head, head)
        settled = text(requests)
        count = rows[0]
        attach(lm_head, None)
        result[name] = {"settled": settled, "stock": text(requests), "rows": count}
    out.write_text(json.dumps(result))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
