"""Putting the definition where gptqmodel looks: ``MODEL_MAP``, read at every ``GPTQModel.load``."""

from __future__ import annotations

from gptq_hybrid.upstream import prepare_environment
from gptq_hybrid.upstream.gptqmodel import installed_version, moved

MODEL_TYPES = ("qwen3_5", "qwen3_5_text")


def register_definitions() -> None:
    """See :func:`gptq_hybrid.register`."""
    prepare_environment()
    installed_version()
    from gptqmodel.models import auto

    from ._hybrid import HybridDefinition, hybrid_of

    table = getattr(auto, "MODEL_MAP", None)
    if not isinstance(table, dict):
        raise moved("gptqmodel.models.auto.MODEL_MAP is expected to be a dict")
    for model_type in MODEL_TYPES:
        upstream = table.get(model_type)
        if upstream is None:
            raise moved(f"MODEL_MAP has no {model_type!r} (transformers 5.2 or later is needed)")
        if not issubclass(upstream, HybridDefinition):
            table[model_type] = hybrid_of(upstream, model_type)
