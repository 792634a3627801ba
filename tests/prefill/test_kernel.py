"""The kernel that vLLM is offered: which linears it takes, and what it holds."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")
pytest.importorskip("vllm")

from vllm_qwen36_plugin.architectures import MTP_DRAFT, TARGETS  # noqa: E402
from vllm_qwen36_plugin.prefill.kernel import PrefillLinearKernel  # noqa: E402
from vllm_qwen36_plugin.prefill.shape import Shape  # noqa: E402

from .stock import (  # noqa: E402
    MACHETE,
    SHAPE,
    MacheteLinearKernel,
    MarlinLinearKernel,
    config_of,
    kernel_of,
)

pytestmark = pytest.mark.engine  # no engine, but vLLM's linears are imported: some seconds

Shown = Callable[[], str]
Serving = Callable[..., AbstractContextManager[None]]


def answer(shape: Shape = SHAPE, **changes: Any) -> tuple[bool, str | None]:
    return PrefillLinearKernel.can_implement(config_of(shape, **changes))


@pytest.mark.parametrize("mode", ["auto", "exact", "fp8"])
@pytest.mark.parametrize("architecture", TARGETS)
@pytest.mark.parametrize(("shape", "name"), [(SHAPE, "MarlinLinearKernel"), (MACHETE, "MacheteLinearKernel")])
def test_it_takes_the_familys_linears_whose_order_it_knows(
    serving: Serving, stock_is: Any, architecture: str, mode: str, shape: Shape, name: str
) -> None:
    stock_is(name)
    with serving(architecture, prefill=mode):
        for bits in (4, 8):
            for dtype in ("bfloat16", "float16"):
                assert answer(Shape(shape.layout, shape.k, shape.n, bits, shape.group_size, dtype)) == (
                    True,
                    None,
                )


@pytest.mark.parametrize("architecture", ["LlamaForCausalLM", MTP_DRAFT, None])
def test_other_models_keep_vllms_own(serving: Serving, stock_is: Any, architecture: str | None) -> None:
    with serving(architecture):
        takes, reason = answer()
    assert not takes
    assert reason == f"only for {', '.join(TARGETS)}, and not with prefill=off"


def test_so_does_a_model_of_which_nothing_is_known(serving: Serving, stock_is: Any) -> None:
    from vllm.config import set_current_vllm_config

    assert not answer()[0]
    with set_current_vllm_config(SimpleNamespace(model_config=None, additional_config={})):
        assert not answer()[0]


def test_so_does_one_with_prefill_off(serving: Serving, stock_is: Any) -> None:
    with serving(prefill="off"):
        takes, reason = answer()
    assert not takes
    assert "prefill=off" in str(reason)


def test_numbers_that_may_not_depend_on_the_batch_are_left_to_vllm(
    serving: Serving, stock_is: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving():
        assert answer()[0]
        monkeypatch.setenv("VLLM_BATCH_INVARIANT", "1")
        takes, reason = answer()
    assert not takes
    assert "VLLM_BATCH_INVARIANT" in str(reason)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"zero_points": True}, "symmetric"),
        ({"has_g_idx": True}, "contiguous groups"),
        ({"weight_type": "uint4"}, "symmetric 4- and 8-bit weights"),
        ({"act_type": torch.float8_e4m3fn}, "not torch.float8_e4m3fn"),
        ({"act_type": torch.int8}, "not torch.int8"),
        ({"act_type": torch.float32}, "not torch.float32"),
        ({"partition_weight_shape": (128, 248_320)}, "an output head"),
        ({"partition_weight_shape": (128, 65_536)}, "an output head"),
        ({"partition_weight_shape": (128, 96)}, "its tiles are not whole"),
        ({"partition_weight_shape": (136, 128), "group_size": -1}, "its tiles are not whole"),
        ({"partition_weight_shape": (160, 128), "group_size": 128}, "its tiles are not whole"),
    ],
)
def test_what_it_cannot_unpack_it_declines_with_a_reason(
    serving: Serving, stock_is: Any, changes: dict[str, Any], reason: str
) -> None:
    from vllm.scalar_type import scalar_types

    if changes.get("weight_type"):
        changes = {"weight_type": getattr(scalar_types, changes["weight_type"])}
    with serving():
        takes, text = answer(**changes)
    assert not takes
    assert reason in str(text)


@pytest.mark.parametrize(
    ("name", "reason"), [("ExllamaLinearKernel", "ExllamaLinearKernel"), (None, "no kernel")]
)
def test_a_stock_kernel_whose_order_is_not_known_stays_alone(
    serving: Serving, stock_is: Any, name: str | None, reason: str
) -> None:
    stock_is(name)
    with serving():
        assert answer() == (False, f"the layout of {reason} is not known")


def test_machetes_tiles_are_wider(serving: Serving, stock_is: Any) -> None:
    stock_is("MacheteLinearKernel")
    with serving():
        assert answer(SHAPE) == (False, "its tiles are not whole")  # 192 columns, and groups of 32


@pytest.fixture
def among_vllms(serving: Serving, monkeypatch: pytest.MonkeyPatch) -> Any:
    """vLLM's list of this platform's kernels: ours ahead of two stock ones."""
    from vllm.model_executor.kernels import linear
    from vllm.platforms import current_platform

    listed = [PrefillLinearKernel, MacheteLinearKernel, MarlinLinearKernel]
    monkeypatch.setitem(linear._POSSIBLE_KERNELS, current_platform._enum, listed)
    return linear


def test_vllms_own_choice_gives_it_and_it_holds_what_vllm_would_have_chosen(
    serving: Serving, among_vllms: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving():
        assert among_vllms.choose_mp_linear_kernel(config_of(MACHETE)) is PrefillLinearKernel
        assert isinstance(kernel_of(MACHETE).stock, MacheteLinearKernel)
        monkeypatch.setenv("VLLM_DISABLED_KERNELS", "MacheteLinearKernel")
        assert isinstance(kernel_of(SHAPE).stock, MarlinLinearKernel)
        assert kernel_of(SHAPE).shape == SHAPE
        monkeypatch.setenv("VLLM_DISABLED_KERNELS", "PrefillLinearKernel")
        assert among_vllms.choose_mp_linear_kernel(config_of(MACHETE)) is MacheteLinearKernel
    with serving("LlamaForCausalLM"):
        monkeypatch.delenv("VLLM_DISABLED_KERNELS")
        assert among_vllms.choose_mp_linear_kernel(config_of(MACHETE)) is MacheteLinearKernel


def test_a_question_that_fails_leaves_the_next_one_alone(
    serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm_qwen36_plugin.prefill import kernel

    def broken(config: Any) -> None:
        raise RuntimeError("no")

    with serving():
        monkeypatch.setattr(kernel, "stock_choice", broken)
        with pytest.raises(RuntimeError):
            answer()
        monkeypatch.setattr(kernel, "stock_choice", lambda config: MarlinLinearKernel)
        assert answer() == (True, None)


def test_it_is_made_as_any_kernel_of_vllm_is(serving: Serving, stock_is: Any) -> None:
    from vllm.model_executor.kernels.linear.mixed_precision.MPLinearKernel import MPLinearKernel

    assert issubclass(PrefillLinearKernel, MPLinearKernel)
    assert not inspect.isabstract(PrefillLinearKernel)
    # vLLM from 0.32 on orders kernels by these words.
    assert not {"marlin", "humming"} & set(PrefillLinearKernel.__name__.lower().split())
    assert "marlin" not in PrefillLinearKernel.__name__.lower()
    with serving():
        kernel = kernel_of(SHAPE)
    assert (kernel.stock.w_q_name, kernel.stock.w_s_name) == ("qweight", "scales")
    assert kernel.stock.config is kernel.config
