"""The classes that vLLM's registry asks for by name: vLLM's own, with what the plugin adds."""

from __future__ import annotations

import inspect
import pickle
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("vllm")

from vllm_qwen36_plugin import models as module
from vllm_qwen36_plugin.architectures import MTP_DRAFT, TARGETS
from vllm_qwen36_plugin.mtp_guard.worker import Qwen3_5MTP as CheckedDraft

pytestmark = pytest.mark.engine  # no engine, but vLLM's kernels are imported: some seconds


@pytest.fixture
def models() -> Iterator[Any]:
    """The module as no test has asked it for the draft class yet."""
    made = vars(module).pop(MTP_DRAFT, None)
    yield module
    vars(module).pop(MTP_DRAFT, None)
    if made is not None:
        vars(module)[MTP_DRAFT] = made


@pytest.mark.parametrize("architecture", TARGETS)
def test_a_target_is_built_from_a_subclass_that_has_vllms_name(models: Any, architecture: str) -> None:
    from vllm.model_executor.models import qwen3_5

    stock, ours = getattr(qwen3_5, architecture), getattr(models, architecture)
    assert issubclass(ours, stock)
    assert ours is not stock
    assert (ours.__name__, ours.__doc__) == (stock.__name__, stock.__doc__)
    assert getattr(models, architecture) is ours
    assert pickle.loads(pickle.dumps(ours)) is ours
    assert {"vllm_config", "prefix"} <= set(inspect.signature(ours.__init__).parameters)


def test_a_draft_is_built_from_the_class_with_the_check_and_cheaper_drafts(models: Any) -> None:
    from vllm_qwen36_plugin.draft_head.model import Qwen3_5MTP

    assert models.Qwen3_5MTP is Qwen3_5MTP
    assert issubclass(Qwen3_5MTP, CheckedDraft)


def test_where_cheaper_drafts_cannot_be_imported_the_check_remains(
    models: Any, monkeypatch: pytest.MonkeyPatch, shown: Callable[[], str]
) -> None:
    monkeypatch.setitem(sys.modules, "vllm_qwen36_plugin.draft_head.model", None)
    assert models.Qwen3_5MTP is CheckedDraft
    assert shown().startswith("WARNING vllm-qwen36-plugin: drafts stay as vLLM makes them because")


def test_there_are_no_other_classes(models: Any) -> None:
    with pytest.raises(AttributeError, match="Qwen3_7ForCausalLM"):
        _ = models.Qwen3_7ForCausalLM
