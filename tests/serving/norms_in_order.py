"""vLLM in this process on a CPU, norms writing in order as on a GPU: what it gives the tokens of some documents.

    python -m tests.serving.norms_in_order CHECKPOINT DOCUMENTS.json OUT.json

OUT holds the log-probabilities of all tokens but the first, how many norms write in order, and which linears
permute what they read.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any


def look(model: Any) -> dict[str, Any]:
    """What became of the model's norms and linears."""
    from vllm_qwen36_plugin.act_order.norm import NormInOrder

    gathering = [
        name for name, module in model.named_modules() if getattr(module, "act_order", None) is not None
    ]
    return {
        "class": type(model).__module__,
        "in_order": sum(isinstance(module, NormInOrder) for module in model.modules()),
        "gathering": sorted({name.rpartition(".")[2] for name in gathering}),
    }


def main(checkpoint: str, documents: Path, out: Path) -> None:
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_ALLOW_INSECURE_SERIALIZATION": "1"}
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    from vllm import LLM, SamplingParams

    from vllm_qwen36_plugin.act_order import claim

    claim.FOLD_NORMS = "always"
    llm = LLM(
        model=checkpoint,
        dtype="bfloat16",
        max_model_len=512,
        max_num_seqs=8,
        enable_prefix_caching=False,
        limit_mm_per_prompt={"image": 0, "video": 0},
        # Dynamo traces the model, whole; its graph is then run by PyTorch, op by op.
        compilation_config={"mode": 3, "backend": "eager"},
    )
    prompts = [{"prompt_token_ids": ids} for ids in json.loads(documents.read_text())]
    sampling = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0)
    log_probabilities = []
    for output in llm.generate(prompts, sampling, use_tqdm=False):
        ids = output.prompt_token_ids
        rows = zip(output.prompt_logprobs[1:], ids[1:], strict=True)
        log_probabilities.append([row[token].logprob for row, token in rows])
    additional = llm.llm_engine.vllm_config.additional_config
    text = json.dumps(
        {**llm.apply_model(look)[0], "log_probabilities": log_probabilities, "additional": additional}
    )
    out.write_text(text)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
