"""How vLLM comes to choose the kernel: the lists it is put into, and the model classes that put it there."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("triton")
pytest.importorskip("vllm")

from vllm_qwen36_plugin.errors import CompatError
from vllm_qwen36_plugin.upstream.linear_kernels import offer_first, stock_choice

pytestmark = pytest.mark.engine  # no engine, but vLLM's kernels are imported: some seconds

Shown = Callable[[], str]
MODELS = "vllm_qwen36_plugin.prefill.models"


class Kernel:
    """Some kernel."""


@pytest.fixture
def lists(monkeypatch: pytest.MonkeyPatch) -> Any:
    """vLLM's lists, as copies."""
    from vllm.model_executor.kernels import linear
    from vllm.platforms import PlatformEnum

    kernels = {platform: list(found) for platform, found in linear._POSSIBLE_KERNELS.items()}
    backends = {name: set(found) for name, found in linear._LINEAR_BACKEND_KERNEL_MAP.items()}
    monkeypatch.setattr(linear, "_POSSIBLE_KERNELS", kernels)
    monkeypatch.setattr(linear, "_LINEAR_BACKEND_KERNEL_MAP", backends)
    return SimpleNamespace(cuda=kernels[PlatformEnum.CUDA], cpu=kernels[PlatformEnum.CPU], backends=backends)


def test_it_goes_ahead_of_vllms_own_once(lists: Any) -> None:
    stock = list(lists.cuda)
    offer_first("CUDA", Kernel)
    offer_first("CUDA", Kernel, ("marlin", "machete"))
    assert lists.cuda == [Kernel, *stock]
    assert Kernel not in lists.cpu


def test_a_user_who_asks_for_the_stock_kernel_by_name_still_gets_it_with_ours_in_front(lists: Any) -> None:
    from vllm.model_executor.kernels import linear

    offer_first("CUDA", Kernel, ("marlin", "machete"))
    for backend in ("marlin", "machete"):
        assert Kernel in lists.backends[backend]
        left = linear._filter_kernels_by_backend(backend, lists.cuda)
        assert left[0] is Kernel
        assert [kernel.__name__.lower() for kernel in left[1:]] == [f"{backend}linearkernel"]
    assert sum(Kernel in found for found in lists.backends.values()) == 2


def test_backends_this_vllm_does_not_have_are_left_out(lists: Any) -> None:
    before = set(lists.backends)
    offer_first("CUDA", Kernel, ("warp",))
    assert set(lists.backends) == before


def test_a_vllm_before_backends_is_offered_it_all_the_same(
    lists: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm.model_executor.kernels import linear

    monkeypatch.delattr(linear, "_LINEAR_BACKEND_KERNEL_MAP")
    offer_first("CUDA", Kernel, ("marlin",))
    assert lists.cuda[0] is Kernel


@pytest.mark.parametrize("found", [None, [], {}])
def test_lists_of_another_shape_are_a_compat_error(monkeypatch: pytest.MonkeyPatch, found: Any) -> None:
    from vllm.model_executor.kernels import linear

    monkeypatch.setattr(linear, "_POSSIBLE_KERNELS", found)
    with pytest.raises(CompatError, match="_POSSIBLE_KERNELS has no list for CUDA"):
        offer_first("CUDA", Kernel)


def test_an_unknown_platform_is_a_compat_error(lists: Any) -> None:
    with pytest.raises(CompatError, match="no list for ABACUS"):
        offer_first("ABACUS", Kernel)


def test_the_stock_choice_is_vllms_own(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.model_executor.kernels import linear

    config = object()
    monkeypatch.setattr(linear, "choose_mp_linear_kernel", lambda asked: Kernel if asked is config else None)
    assert stock_choice(config) is Kernel


def test_no_kernel_at_all_is_none_and_other_errors_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.model_executor.kernels import linear

    def fails(error: Exception) -> Callable[[Any], None]:
        def choose(config: Any) -> None:
            raise error

        return choose

    monkeypatch.setattr(linear, "choose_mp_linear_kernel", fails(ValueError("Failed to find a kernel")))
    assert stock_choice(object()) is None
    monkeypatch.setattr(linear, "choose_mp_linear_kernel", fails(AttributeError("group_size")))
    with pytest.raises(AttributeError):
        stock_choice(object())
    monkeypatch.delattr(linear, "choose_mp_linear_kernel")
    with pytest.raises(CompatError, match="choice of a linear kernel"):
        stock_choice(object())


@pytest.fixture
def imported(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], Any]]:
    """Imports the module that vLLM's registry imports, anew."""
    monkeypatch.delitem(sys.modules, MODELS, raising=False)
    yield lambda: importlib.import_module(MODELS)
    sys.modules.pop(MODELS, None)


def test_importing_the_model_classes_offers_the_kernel_and_they_are_vllms_own(
    lists: Any, imported: Callable[[], Any], shown: Shown
) -> None:
    from vllm.model_executor.models.qwen3_5 import Qwen3_5ForConditionalGeneration as Stock

    from vllm_qwen36_plugin.prefill.kernel import RowDispatchKernel

    assert imported().Qwen3_5ForConditionalGeneration is Stock
    assert lists.cuda[0] is RowDispatchKernel
    assert RowDispatchKernel in lists.backends["marlin"] & lists.backends["machete"]
    assert shown() == ""
    with pytest.raises(AttributeError):
        imported().NoSuchModel  # noqa: B018


def test_a_vllm_that_has_changed_serves_the_model_without_it(
    lists: Any, imported: Callable[[], Any], shown: Shown, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm.model_executor.kernels import linear
    from vllm.model_executor.models.qwen3_5 import Qwen3_5ForConditionalGeneration as Stock

    monkeypatch.setattr(linear, "_POSSIBLE_KERNELS", {})
    assert imported().Qwen3_5ForConditionalGeneration is Stock
    (line,) = shown().splitlines()
    assert line.startswith("WARNING vllm-qwen36-plugin: prefill is off because vllm.model_executor")
