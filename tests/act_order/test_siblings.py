"""What the layers of one model know of each other: shared by copies of the config, forgotten with the model."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from vllm_qwen36_plugin.act_order.siblings import Siblings, announcing  # noqa: E402
from vllm_qwen36_plugin.errors import CompatError  # noqa: E402

CPU = torch.device("cpu")


class Stock(torch.nn.Module):  # type: ignore[misc]
    """A model class as vLLM calls it."""

    def __init__(self, *, vllm_config: Any, prefix: str = "model") -> None:
        super().__init__()
        self.prefix = prefix


def no_fold(model: torch.nn.Module, device: torch.device) -> None:
    raise AssertionError("there is no model to fold the norms of")


def test_a_model_tells_its_config_of_itself_and_has_its_norms_folded_once() -> None:
    folded: list[Any] = []
    siblings = Siblings(lambda model, device: folded.append((model, device)))
    config = SimpleNamespace(quant_config=SimpleNamespace(siblings=siblings))
    model = announcing(Stock)(vllm_config=config)
    assert (type(model).__name__, model.prefix) == ("Stock", "model")
    siblings.fold_norms_once(CPU)
    siblings.fold_norms_once(CPU)
    assert folded == [(model, CPU)]


@pytest.mark.parametrize("quant_config", [None, object()])
def test_a_model_with_another_config_is_built_as_ever(quant_config: Any) -> None:
    assert announcing(Stock)(vllm_config=SimpleNamespace(quant_config=quant_config)).prefix == "model"


def test_without_a_model_of_ours_or_after_it_is_gone_nothing_is_folded() -> None:
    siblings = Siblings(no_fold)
    siblings.fold_norms_once(CPU)
    siblings.set_model(Stock(vllm_config=None))
    siblings.fold_norms_once(CPU)


def test_a_vllm_that_has_changed_costs_a_warning(shown: Callable[[], str]) -> None:
    def changed(model: torch.nn.Module, device: torch.device) -> None:
        raise CompatError("the decoder layer is gone")

    siblings, model = Siblings(changed), Stock(vllm_config=None)
    siblings.set_model(model)
    siblings.fold_norms_once(CPU)
    assert shown() == "WARNING act order: every linear permutes its input, as the decoder layer is gone"


def test_a_layer_is_found_by_its_prefix_while_it_lives() -> None:
    siblings, layer = Siblings(no_fold), torch.nn.Linear(2, 2)
    siblings.add("model.layers.0.mlp.down_proj", layer)
    assert siblings.find("model.layers.0.mlp.down_proj") is layer
    assert siblings.find("model.layers.1.mlp.down_proj") is None
    del layer
    assert siblings.find("model.layers.0.mlp.down_proj") is None


def test_copies_of_a_config_share_them_and_another_process_starts_anew() -> None:
    siblings, layer = Siblings(no_fold), torch.nn.Linear(2, 2)
    siblings.add("a", layer)
    assert copy.deepcopy(siblings) is siblings
    assert pickle.loads(pickle.dumps(siblings)).find("a") is None
