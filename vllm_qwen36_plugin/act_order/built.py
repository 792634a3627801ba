"""How the act-order config comes to know the model that is built from it: by a subclass of vLLM's model class."""

from __future__ import annotations

from functools import wraps
from typing import Any


def introduced(stock: type) -> type:
    """``stock`` under its own name, whose instances make themselves known to an act-order config once built."""
    build: Any = stock.__init__  # type: ignore[misc]

    # vLLM looks at the signature, and passes by name.
    @wraps(build)
    def build_and_tell(self: Any, *args: Any, **kwargs: Any) -> None:
        build(self, *args, **kwargs)
        siblings = getattr(getattr(kwargs.get("vllm_config"), "quant_config", None), "siblings", None)
        if siblings is not None:
            siblings.meet(self)

    return type(stock.__name__, (stock,), {"__init__": build_and_tell, "__doc__": stock.__doc__})
