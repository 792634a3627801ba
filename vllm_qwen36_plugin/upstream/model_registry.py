"""vLLM's model registry: which class it builds for an architecture.

Changes: our class under vLLM's name, its entry answering questions with what vLLM knows of its own class.
Why: the worker is where weights arrive; ``register()`` cannot import model code. Inspecting a new class takes 10 s.
Versions: 0.19.1 to 0.33.0; ``register_model`` is public, what it stores is not. 0.19.1 has no Qwen3_5ForCausalLM.
Checks: the registry has a dict of models and ``register_model``, and knows the architecture.
May go: when vLLM checks a quantized draft for missing weights, and lets a plugin in where a model is built.
"""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any

from vllm_qwen36_plugin.errors import CompatError


def known_model_classes() -> frozenset[str]:
    """Return the architectures this vLLM can build.

    Raises:
        CompatError: it has no such registry.
    """
    return frozenset(_registry().models)


def replace_model_class(architecture: str, qualified_name: str) -> None:
    """Have vLLM build ``architecture`` from ``"module:Class"``, imported when it is needed. Idempotent.

    Raises:
        CompatError: this vLLM does not know ``architecture``, or has no such registry.
    """
    registry = _registry()
    models = registry.models
    if architecture not in models:
        raise CompatError(f"this vLLM has no {architecture}")
    if getattr(models[architecture], "qwen36_class", None) == qualified_name:
        return
    # Taken out first: older vLLM warns of an overwritten class, in every process and for every model.
    stock = models.pop(architecture)
    try:
        registry.register_model(architecture, qualified_name)
        models[architecture] = _described_by(stock, models[architecture], qualified_name)
    finally:
        models.setdefault(architecture, stock)


def _registry() -> Any:
    try:
        from vllm.model_executor.models.registry import ModelRegistry
    except ImportError as error:
        raise CompatError(f"vLLM's ModelRegistry cannot be imported: {error}") from error
    usable = callable(getattr(ModelRegistry, "register_model", None))
    if not usable or not isinstance(getattr(ModelRegistry, "models", None), dict):
        raise CompatError("vLLM's ModelRegistry has no `models` dict or no register_model()")
    return ModelRegistry


def _described_by(stock: Any, entry: Any, qualified_name: str) -> Any:
    """Return ``entry``, answering questions about the class (multimodal? hybrid?) with what vLLM knows of its own.

    A subclass has the same answers. Finding them anew starts one more process that imports vLLM, 10 s and
    more before the first start, and files them under a key that does not change with vLLM's version.
    """
    if not is_dataclass(entry) or isinstance(entry, type) or not hasattr(stock, "inspect_model_cls"):
        return entry
    kind: Any = type(entry)
    members = {
        "inspect_model_cls": lambda _: stock.inspect_model_cls(),
        "qwen36_class": qualified_name,
    }
    return type(kind.__name__, (kind,), members)(**{f.name: getattr(entry, f.name) for f in fields(entry)})
