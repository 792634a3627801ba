"""Which rows of a step may belong to decoding, from the lengths that vLLM has on the host.

Changes: ``GDNAttentionMetadataBuilder.build`` also writes ``qwen36_rows`` on the metadata it returns.
Why: an op sees the step's metadata through the forward context, and the lengths of requests there are on the GPU
alone. Counts of decode tokens are there, but not whether those tokens come first; with FlashInfer requests that
verify drafts and chunks of prompts come in any order, and a step whose requests have drafts counts those without
as prompts.
Versions: the method has the same parameters in 0.19.1 to 0.33.0, and both model runners call it in each step.
Checks: the method and its parameters. Metadata that nothing was written on is taken to be decoding.
May go: when vLLM's forward context says which rows belong to prompts.
"""

from __future__ import annotations

import inspect
from functools import wraps
from typing import Any, NamedTuple

from vllm_qwen36_plugin.errors import CompatError

_NAME = "qwen36_rows"
_PARAMETERS = ("self", "common_prefix_len", "common_attn_metadata")


class Rows(NamedTuple):
    """Rows of a step.

    Attributes:
        before_prompts: rows before which every row that may belong to decoding or to verifying drafts lies.
        all: rows of the step, without padding.
    """

    before_prompts: int
    all: int


def publish_rows() -> None:
    """Have the metadata of Gated-DeltaNet layers say which rows belong to prompts. Idempotent.

    Raises:
        CompatError: the builder is not what it was in vLLM 0.19.1 to 0.33.0.
    """
    try:
        from vllm.v1.attention.backends.gdn_attn import GDNAttentionMetadataBuilder as Builder
    except ImportError as error:
        raise CompatError(f"vLLM's metadata of Gated-DeltaNet layers cannot be imported: {error}") from error
    build = getattr(Builder, "build", None)
    if getattr(build, _NAME, False):
        return
    if not callable(build) or tuple(inspect.signature(build).parameters)[:3] != _PARAMETERS:
        raise CompatError("GDNAttentionMetadataBuilder.build takes other parameters than in vLLM 0.33.0")

    @wraps(build)
    def build_and_publish(
        self: Any, common_prefix_len: int, common_attn_metadata: Any, *args: Any, **kwargs: Any
    ) -> Any:
        metadata = build(self, common_prefix_len, common_attn_metadata, *args, **kwargs)
        setattr(metadata, _NAME, _rows(common_attn_metadata, self.num_spec))
        return metadata

    setattr(build_and_publish, _NAME, True)
    Builder.build = build_and_publish


def rows_in(attn_metadata: Any) -> Rows | None:
    """Find what was published for the step with this metadata (a forward context's); None if nothing was."""
    if not isinstance(attn_metadata, dict):
        return None
    for metadata in attn_metadata.values():
        rows = getattr(metadata, _NAME, None)
        if rows is not None:
            return rows  # type: ignore[no-any-return]
    return None


def _rows(common: Any, drafts: int) -> Rows:
    """Find the end of the last request that has no more tokens than a token and its drafts.

    So the last tokens of a prompt may count as decoding, and never the other way round.
    """
    if common.max_query_len <= 1 + drafts:
        return Rows(common.num_actual_tokens, common.num_actual_tokens)
    ends = common.query_start_loc_cpu.numpy()
    lengths = ends[1:] - ends[:-1]
    # Requests of no tokens pad the batch.
    short = ends[1:][(lengths > 0) & (lengths <= 1 + drafts)]
    return Rows(int(short[-1]) if len(short) else 0, int(ends[-1]))
