"""vLLM's own code divides a pretended amount of memory: in this process, on a CPU, without weights.

Its config, model classes (on `meta`), ``Platform.update_block_size_for_backend`` and
``EngineCore._initialize_kv_caches`` are run. What stands in for a GPU: FlashAttention as the backend of attention,
which sets the unit of blocks, and the worker that says how much memory is free.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

from bench.results import Json

os.environ |= {"VLLM_PLUGINS": "", "HF_HUB_OFFLINE": "1"}
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")


def arguments(setting: Json) -> Json:
    """The arguments of vLLM that a setting stands for."""
    drafts = setting["drafts"]
    return {
        "enforce_eager": True,
        "max_model_len": setting["length"],
        "kv_cache_dtype": setting["kv"],
        "enable_prefix_caching": setting["prefix"],
        "mamba_ssm_cache_dtype": setting.get("state", "auto"),
        "limit_mm_per_prompt": {"image": 0, "video": 0},
        "speculative_config": {"method": "mtp", "num_speculative_tokens": drafts} if drafts else None,
    }


def divided(folder: Path, setting: Json) -> Json:
    """Blocks and tokens that vLLM makes of ``setting["bytes"]``."""
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.engine.core import EngineCore

    made = EngineArgs(model=str(folder), load_format="dummy", skip_tokenizer_init=True, **arguments(setting))
    config = made.create_engine_config()
    worker = MagicMock()
    worker.get_kv_cache_specs.return_value = [_specs(config)]
    worker.determine_available_memory.return_value = [setting["bytes"]]
    worker.get_supported_kv_cache_layouts.return_value = _layouts()
    core = SimpleNamespace(model_executor=worker, collective_rpc=worker)
    found = EngineCore._initialize_kv_caches(core, config)
    cache = config.cache_config
    return {
        "blocks": found.num_blocks,
        "tokens": getattr(cache, "kv_cache_size_tokens", None),
        "block_tokens": cache.block_size,
    }


def _specs(config: Any) -> dict[str, Any]:
    """The caches that the layers of target and draft ask for."""
    import torch
    from vllm.config import set_current_vllm_config
    from vllm.model_executor.model_loader.utils import initialize_model
    from vllm.platforms.interface import Platform
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend
    from vllm.v1.attention.backends.flash_attn import FlashAttentionBackend
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    _groups(config)
    CPUAttentionBackend.supports_kv_cache_dtype = classmethod(lambda cls, dtype: True)
    drafting = config.speculative_config
    with set_current_vllm_config(config):
        torch.set_default_dtype(torch.bfloat16)
        with torch.device("meta"):
            initialize_model(vllm_config=config, model_config=config.model_config)
            if drafting:
                initialize_model(vllm_config=config, model_config=drafting.draft_model_config)
        torch.set_default_dtype(torch.float32)
        if hasattr(Platform, "_find_non_ssm_backends"):
            Platform._find_non_ssm_backends = classmethod(lambda cls, config: [FlashAttentionBackend])
        else:
            Platform._find_non_ssm_backend = classmethod(lambda cls, config: FlashAttentionBackend)
        Platform.update_block_size_for_backend(config)
        runner = SimpleNamespace(
            vllm_config=config, shared_kv_cache_layers={}, cache_config=config.cache_config
        )
        return GPUModelRunner.get_kv_cache_spec(runner)


def _layouts() -> Any:
    """Names of all layouts of a block, for each worker; vLLM takes the first that a hybrid allows."""
    from vllm.v1 import kv_cache_interface

    return [[layout.name for layout in getattr(kv_cache_interface, "KVCacheLayout", ())]]


def _groups(config: Any) -> None:
    """Process groups of one process, which parallel layers ask for; once."""
    from vllm.config import set_current_vllm_config
    from vllm.distributed import init_distributed_environment, initialize_model_parallel, parallel_state

    if not parallel_state.model_parallel_is_initialized():
        with set_current_vllm_config(config):
            store = tempfile.mkdtemp(prefix="plan-")
            init_distributed_environment(1, 0, f"file://{store}/rendezvous", 0, "gloo")
            initialize_model_parallel(1)
