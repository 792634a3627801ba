"""What is known of a started engine before anything is timed: card, memory, KV cache, what the plugin found."""

from __future__ import annotations

from typing import Any

from bench.results import Json


def environment() -> dict[str, str]:
    """Card, driver, versions."""
    import torch

    from gptq_hybrid.evaluate import _environment
    from vllm_qwen36_plugin.prefill import measure

    found = _environment.environment("cuda:0" if torch.cuda.is_available() else "cpu")
    found["triton"] = measure.versions()["triton"]
    if torch.cuda.is_available():
        found["driver"] = measure.card(torch.device("cuda:0"), 0).driver
    return found


def engine_facts(llm: Any, after_preparation: dict[str, int]) -> Json:
    """KV cache, memory and modes of a started engine; a figure is missing where this vLLM does not have it."""
    config = llm.llm_engine.vllm_config
    core = llm.llm_engine.engine_core.engine_core
    worker = core.model_executor.driver_worker.worker
    memory = {
        "weights": getattr(worker.model_runner, "model_memory_usage", None),
        "peak_activation": getattr(worker, "peak_activation_memory", None),
        "non_torch": getattr(worker, "non_torch_memory", None),
        "cuda_graphs": getattr(worker, "cudagraph_memory_estimate", None),
    }
    return {
        "quantization": str(config.model_config.quantization),
        "cudagraph_mode": str(config.compilation_config.cudagraph_mode),
        "compile_seconds": round(config.compilation_config.compilation_time, 1),
        "kv_cache": {
            "bytes": int(core.available_gpu_memory_for_kv_cache),
            "blocks": config.cache_config.num_gpu_blocks,
            "tokens": getattr(config.cache_config, "kv_cache_size_tokens", None),
        },
        "memory": {name: int(value) for name, value in memory.items() if value is not None}
        | {f"{name}_after_preparation": value for name, value in after_preparation.items()},
    }


def plugin_facts(model: Any) -> Json:
    """What the plugin found and took at start: its line, its profile, its bytes."""
    from vllm_qwen36_plugin.prefill import banner, dispatch, prepare, profile, scratch
    from vllm_qwen36_plugin.prefill.kernel import FP8_SCALES

    preparation = prepare._current[-1]
    linears = dispatch.linears()
    line = banner.table_line(linears, preparation.settings, preparation.known_from)
    print(line, flush=True)
    scales = [getattr(module, FP8_SCALES, None) for module in model.modules()]
    return {
        "measuring": round(preparation.spent, 2),
        "banner": line,
        "orders": {linear.shape.key: list(linear.order) for linear in linears},
        "profile": profile.to_json(preparation.known) if preparation.known else None,
        "scratch_bytes": scratch.reserved(next(model.parameters()).device),
        "fp8_scale_bytes": sum(scale.numel() * scale.element_size() for scale in scales if scale is not None),
    }
