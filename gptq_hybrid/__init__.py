"""W4A16 GPTQ checkpoints of the Qwen3.5/3.6/3.8 hybrids that keep their MTP head.

``import gptq_hybrid`` is cheap; :func:`register` is what loads gptqmodel and
makes its ordinary API use this project's model definition.
"""

from __future__ import annotations

__version__ = "0.1.0"
__all__ = ["__version__", "register"]


def register() -> None:
    """Make ``GPTQModel.load(...).quantize(...)`` and ``.save(...)`` use the hybrid definition.

    Replaces gptqmodel's entries for ``qwen3_5`` and ``qwen3_5_text`` by subclasses
    of whatever stands there. Calling it again changes nothing; it may be called
    before or after gptqmodel is imported.

    Raises:
        gptq_hybrid.upstream.IncompatibleError: this gptqmodel lacks something the definition builds on.
    """
    from .definition import register_definitions

    register_definitions()
