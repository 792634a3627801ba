"""How vLLM comes to choose the kernel: the lists it is put into, and the model classes that put it there."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("triton")
pytest.importorskip("vllm")

from vllm_qwen36_plugin.errors import CompatError
from vllm_qwen36_plugin.prefill.offer import offer, offer_kernel
from vllm_qwen36_plugin.upstream.linear_kernels import offer_first, stock_choice

pytestmark = pytest.mark.engine  # no engine, but vLLM's kernels are imported: some seconds

Shown = Callable[[], str]
MODELS = "vllm_qwen36_plugin.models"


class Kernel:
    """Some kernel."""


@pytest.fixture
def lists(monkeypatch: pytest.MonkeyPatch) -> Any:
    """vLLM's lists, as copies."""
    from vllm.model_executor.kernels import linear
    from vllm.platforms import PlatformEnum

    kernels = {platform: list(listed) for platform, listed in linear._POSSIBLE_KERNELS.items()}
    backends = {name: set(listed) for name, listed in linear._LINEAR_BACKEND_KERNEL_MAP.items()}
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
    assert sum(Kernel in listed for listed in lists.backends.values()) == 2


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


@pytest.mark.parametrize("value", [None, [], {}])
def test_lists_of_another_shape_are_a_compat_error(monkeypatch: pytest.MonkeyPatch, value: Any) -> None:
    from vllm.model_executor.kernels import linear

    monkeypatch.setattr(linear, "_POSSIBLE_KERNELS", value)
    with pytest.raises(CompatError, match="_POSSIBLE_KERNELS has no list for CUDA"):
        offer_first("CUDA", Kernel)


def test_an_unknown_platform_is_a_compat_error(lists: Any) -> None:
    with pytest.raises(CompatError, match="no list for ABACUS"):
        offer_first("ABACUS", Kernel)


def test_the_stock_choice_is_vllms_own(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.model_executor.kernels import linear

    config = object()
    monkeypatch.setattr(linear, "choose_mp_linear_kernel", lambda c: Kernel if c is config else None)
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


def test_offering_puts_the_kernel_first_and_logs_nothing(lists: Any, shown: Shown) -> None:
    from vllm_qwen36_plugin.prefill.kernel import PrefillLinearKernel

    offer()
    assert lists.cuda[0] is PrefillLinearKernel
    assert PrefillLinearKernel in lists.backends["marlin"] & lists.backends["machete"]
    assert shown() == ""


def test_a_vllm_that_has_changed_serves_the_model_without_it(
    lists: Any, shown: Shown, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm.model_executor.kernels import linear

    monkeypatch.setattr(linear, "_POSSIBLE_KERNELS", {})
    offer()
    (line,) = shown().splitlines()
    assert line.startswith("WARNING vllm-qwen36-plugin: prefill is off because vllm.model_executor")
    with pytest.raises(CompatError):
        offer_kernel()


def test_a_kernel_that_cannot_be_imported_is_no_error_either(
    lists: Any, shown: Shown, monkeypatch: pytest.MonkeyPatch
) -> None:
    stock = list(lists.cuda)
    monkeypatch.setitem(sys.modules, "vllm_qwen36_plugin.prefill.kernel", None)
    offer()
    assert lists.cuda == stock
    assert "prefill is off because" in shown()


@pytest.mark.parametrize("cuda", [True, False])
def test_the_model_classes_offer_it_on_cuda(
    lists: Any, shown: Shown, monkeypatch: pytest.MonkeyPatch, cuda: bool
) -> None:
    """They are vLLM's own classes; vLLM's registry imports their module when it builds a model."""
    from vllm.model_executor.models.qwen3_5 import Qwen3_5ForConditionalGeneration as Stock
    from vllm.platforms import current_platform

    from vllm_qwen36_plugin.prefill.kernel import PrefillLinearKernel

    monkeypatch.setattr(type(current_platform), "is_cpu", lambda self: False)
    monkeypatch.setattr(type(current_platform), "is_cuda", lambda self: cuda)
    monkeypatch.delitem(sys.modules, MODELS, raising=False)
    module = importlib.import_module(MODELS)
    sys.modules.pop(MODELS, None)
    assert issubclass(module.Qwen3_5ForConditionalGeneration, Stock)
    assert (PrefillLinearKernel in lists.cuda) is cuda
    with pytest.raises(AttributeError):
        module.NoSuchModel  # noqa: B018
