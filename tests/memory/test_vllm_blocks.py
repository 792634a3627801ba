"""vLLM's own code divides a cache into the blocks, and reports the tokens, that are computed here."""

from __future__ import annotations

import itertools
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

import pytest

from gptq_hybrid.checkpoint import Checkpoint
from gptq_hybrid.memory import CacheLayout, cache_layout

from .full_size import write_27b

GIB = 1 << 30


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return Checkpoint.open(write_27b(tmp_path_factory.mktemp("27b") / "static-mse", "static-mse"))


def planning() -> ModuleType:
    """The module that has the functions: 0.33 moved them."""
    from vllm.v1.core import kv_cache_utils

    if hasattr(kv_cache_utils, "get_kv_cache_groups"):
        return kv_cache_utils
    from vllm.v1.core import kv_cache_planning

    planned: ModuleType = kv_cache_planning
    return planned


def config(mode: str, length: int) -> Any:
    """What these functions ask of a ``VllmConfig``."""
    made = MagicMock()
    made.cache_config.mamba_cache_mode = mode
    made.cache_config.num_gpu_blocks_override = None
    made.model_config.max_model_len = length
    made.scheduler_config.disable_hybrid_kv_cache_manager = False
    for name in ("decode_context", "prefill_context", "pipeline"):
        setattr(made.parallel_config, f"{name}_parallel_size", 1)
    made.attention_config.hisparse_config = None
    made.speculative_config = None
    from vllm.v1.kv_cache_interface import KVCacheLayout

    layout = next(layout for layout in KVCacheLayout if not layout.is_block_outermost)
    made.cache_config.get_resolved_kv_cache_layout.return_value = layout
    return made


def reported(
    layout: CacheLayout, kv_dtype: str, mode: str, drafts: int, size: int, length: int
) -> tuple[int, int]:
    """Blocks and tokens of the 27B as vLLM makes them, with the block size that was derived."""
    import torch
    from vllm.model_executor.layers.mamba.mamba_utils import MambaStateShapeCalculator
    from vllm.v1.core.kv_cache_utils import get_max_concurrency_for_kv_cache_config
    from vllm.v1.kv_cache_interface import FullAttentionSpec, MambaSpec

    dtype = torch.bfloat16 if kv_dtype == "auto" else torch.uint8
    attention = FullAttentionSpec(layout.block_tokens, num_kv_heads=4, head_size=256, dtype=dtype)
    shapes = MambaStateShapeCalculator.gated_delta_net_state_shape(1, 16, 48, 128, 128, 4, drafts)
    state = MambaSpec(
        layout.block_tokens if mode == "align" else length,
        shapes=tuple(shapes),
        dtypes=(torch.bfloat16, torch.float32),
        page_size_padded=attention.page_size_bytes,
        mamba_cache_mode=mode,
        num_speculative_blocks=drafts,
    )
    specs = {f"{n}": attention if n % 4 == 3 else state for n in range(64)}
    if drafts:
        specs["mtp"] = attention
    made, room = config(mode, length), planning()
    found = room.get_kv_cache_config_from_groups(made, room.get_kv_cache_groups(made, specs), size)
    return found.num_blocks, int(get_max_concurrency_for_kv_cache_config(made, found) * length)


@pytest.mark.parametrize(("gib", "length"), [(4, 16384), (21.79, 200_000)])
def test_blocks_and_tokens_are_vllm_s(checkpoint: Checkpoint, gib: float, length: int) -> None:
    size = int(gib * GIB)
    for drafts, kv_dtype, mode in itertools.product((0, 1, 2, 4), ("auto", "fp8"), ("align", "none")):
        layout = cache_layout(checkpoint, drafts=drafts, kv_dtype=kv_dtype, prefix_caching=mode == "align")
        own = size // layout.block_bytes, layout.reported_tokens(size, length)
        assert own == reported(layout, kv_dtype, mode, drafts, size, length), (drafts, kv_dtype, mode)
