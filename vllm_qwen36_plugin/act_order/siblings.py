"""What the layers of one model know of each other, and of the model.

vLLM builds linears one by one, finishes them one by one, and tells none of another. An act-order config keeps them
by prefix, and is told of the model by a subclass of vLLM's model class.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any

import torch

from vllm_qwen36_plugin.errors import CompatError
from vllm_qwen36_plugin.log import logger

from .split import StoredRows

# Takes a model whose linears are not finished yet, and the device it will run on.
FoldNorms = Callable[[torch.nn.Module, torch.device], object]


class Siblings:
    """The layers of one model by prefix, so that `gate_up_proj` finds its `down_proj`; and that model.

    vLLM copies its config for every layer; the copies share this one.
    """

    def __init__(self, fold_norms: FoldNorms) -> None:
        """``fold_norms`` makes norms write in order; it knows linear methods, which know this class."""
        self._fold_norms = fold_norms
        self._layers: dict[str, weakref.ref[torch.nn.Module]] = {}
        self._model: weakref.ref[torch.nn.Module] | None = None
        self.stored = StoredRows()

    def __deepcopy__(self, memo: dict[int, Any]) -> Siblings:
        return self

    def __reduce__(self) -> tuple[type[Siblings], tuple[FoldNorms]]:
        return Siblings, (self._fold_norms,)

    def add(self, prefix: str, layer: torch.nn.Module) -> None:
        """Keep a layer under its prefix."""
        self._layers[prefix] = weakref.ref(layer)

    def find(self, prefix: str) -> torch.nn.Module | None:
        """Return the layer of that prefix while it lives."""
        reference = self._layers.get(prefix)
        return reference() if reference else None

    def layers(self) -> Iterator[torch.nn.Module]:
        """Give those that live."""
        for reference in self._layers.values():
            layer = reference()
            if layer is not None:
                yield layer

    def set_model(self, model: torch.nn.Module) -> None:
        """Keep the model until its norms are folded."""
        self._model = weakref.ref(model)

    def fold_norms_once(self, device: torch.device) -> None:
        """Have the model's norms write in order, before the first of its linears is finished; later do nothing.

        Nothing happens for a model that was not built by a class of ours.
        """
        reference, self._model = self._model, None
        model = reference() if reference else None
        if model is None:
            return
        try:
            self._fold_norms(model, device)
        except CompatError as error:
            logger.warning("act order: every linear permutes its input, as %s", error)


def announcing(stock: type) -> type:
    """Subclass a model class of vLLM, under its own name, to tell an act-order config of each model it builds."""
    build: Any = stock.__init__  # type: ignore[misc]

    # vLLM looks at the signature, and passes by name.
    @wraps(build)
    def build_and_announce(self: Any, *args: Any, **kwargs: Any) -> None:
        build(self, *args, **kwargs)
        siblings = getattr(getattr(kwargs.get("vllm_config"), "quant_config", None), "siblings", None)
        if siblings is not None:
            siblings.set_model(self)

    return type(stock.__name__, (stock,), {"__init__": build_and_announce, "__doc__": stock.__doc__})
