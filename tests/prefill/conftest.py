"""What the tests of `prefill` share: a clean table for each, Triton's kernel on a CPU, a GPU that is none."""

from __future__ import annotations

import importlib.util
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.log_lines import lines_from

Shown = Callable[[], str]


@pytest.fixture
def shown() -> Iterator[Shown]:
    """What a user was shown so far."""
    with lines_from(logging.INFO) as lines:
        yield lines


@pytest.fixture
def clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No model loaded, no warning given yet, and a cache of the test's own."""
    pytest.importorskip("torch")
    from vllm_qwen36_plugin.prefill import prepare

    monkeypatch.setenv("QWEN36_CACHE", str(tmp_path / "cache"))
    prepare.reset()
    yield
    prepare.reset()


@pytest.fixture(scope="session")
def interpreted() -> Any:
    """`expand` on a CPU: a copy of its module whose kernel Triton interprets, as ``interpreted.expand``.

    `triton.jit` decides by TRITON_INTERPRET when it decorates. The variable is set while the copy is imported
    and while it runs, so the module that everything else imports stays one to be compiled.

    Triton 3.7's interpreter rounds no float32 as a GPU does: to bfloat16 it truncates, to e4m3 it rounds half
    up and can lose the carry out of the mantissa (1.97 becomes 1). Its conversion is replaced by torch's.
    """
    pytest.importorskip("torch")
    pytest.importorskip("triton")
    from vllm_qwen36_plugin.prefill import expand

    return _interpreted(expand, "expand")


@pytest.fixture(scope="session")
def interpreted_activations() -> Any:
    """`activations` likewise, as ``interpreted_activations.quantize_tokens``."""
    pytest.importorskip("torch")
    pytest.importorskip("triton")
    from vllm_qwen36_plugin.prefill import activations

    return _interpreted(activations, "quantize_tokens")


@pytest.fixture(scope="session")
def interpreted_groups() -> Any:
    """`activations` likewise, as ``interpreted_groups.quantize_groups``."""
    pytest.importorskip("torch")
    pytest.importorskip("triton")
    from vllm_qwen36_plugin.prefill import activations

    return _interpreted(activations, "quantize_groups")


@pytest.fixture(scope="session")
def interpreted_words() -> Any:
    """`eight_bit_words` likewise, as ``interpreted_words.rearrange``."""
    pytest.importorskip("torch")
    pytest.importorskip("triton")
    from vllm_qwen36_plugin.prefill import eight_bit_words

    return _interpreted(eight_bit_words, "rearrange")


def _interpreted(stock: Any, function: str) -> Any:
    from triton.runtime import interpreter

    name = f"{stock.__name__}_interpreted"
    spec = importlib.util.spec_from_file_location(name, stock.__file__)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        patch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
    call = getattr(module, function)

    def run(*args: Any, **kwargs: Any) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TRITON_INTERPRET", "1")
            patch.setattr(interpreter, "_convert_float", _convert_float)
            return call(*args, **kwargs)

    vars(module)[function] = run
    return module


def _convert_float(data: Any, source: Any, target: Any, rounding: Any) -> Any:
    import numpy as np
    import torch
    import triton.language as tl

    types = {
        tl.float32: (torch.float32, np.float32),
        tl.bfloat16: (torch.bfloat16, np.uint16),
        tl.float8e4nv: (torch.float8_e4m3fn, np.uint8),
    }
    (wide, _), (narrow, stored) = types[source], types[target]
    values = torch.from_numpy(np.ascontiguousarray(data)).view(wide).to(narrow)
    unsigned = {1: torch.uint8, 2: torch.uint16, 4: torch.int32}[values.element_size()]
    return values.view(unsigned).numpy().view(stored)


@pytest.fixture
def gpu(clean: None, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A `FakeGpu`, with every route run on the CPU."""
    import torch

    from vllm_qwen36_plugin.prefill import measure, prepare, routes
    from vllm_qwen36_plugin.prefill.expand import reference
    from vllm_qwen36_plugin.upstream import decode_rows, scaled_mm

    from . import fake_gpu as stand_in

    fake = stand_in.FakeGpu()
    monkeypatch.setattr(measure, "card", fake.card)
    monkeypatch.setattr(measure, "time_routes", fake.time_routes)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: stand_in.NAME)
    monkeypatch.setattr(prepare, "shipped_profiles", lambda: fake.shipped)
    monkeypatch.setattr(prepare, "fp8_possible", lambda device: fake.fp8)
    monkeypatch.setattr(decode_rows, "publish_rows", lambda: None)
    monkeypatch.setattr(routes, "quantize_tokens", fake.quantize_tokens)
    monkeypatch.setattr(scaled_mm, "multiply", fake.multiply)
    monkeypatch.setattr(scaled_mm, "works", lambda device, dtype, gemm: gemm in fake.gemms)
    monkeypatch.setattr(scaled_mm, "writes_strided", lambda device, dtype, gemm: True)
    monkeypatch.setattr(routes, "expand", reference)
    return fake


@pytest.fixture
def serving(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., AbstractContextManager[None]]:
    """A context in which vLLM builds and loads a model."""
    from vllm.config import KernelConfig, set_current_vllm_config
    from vllm.model_executor import parameter

    from vllm_qwen36_plugin.architectures import TARGETS

    monkeypatch.setattr(parameter, "get_tensor_model_parallel_rank", lambda: 0)
    monkeypatch.setattr(parameter, "get_tensor_model_parallel_world_size", lambda: 1)

    @contextmanager
    def serve(architecture: str | None = TARGETS[0], *, tokens: int = 8192, **options: Any) -> Iterator[None]:
        config = SimpleNamespace(
            model_config=SimpleNamespace(
                hf_config=SimpleNamespace(architectures=architecture and [architecture])
            ),
            additional_config={"qwen36": options},
            scheduler_config=SimpleNamespace(max_num_batched_tokens=tokens),
            kernel_config=KernelConfig(),
        )
        with set_current_vllm_config(config):
            yield

    return serve


@pytest.fixture
def stock_is(monkeypatch: pytest.MonkeyPatch) -> Callable[[str | None], None]:
    """Says which kernel vLLM would choose."""
    from vllm_qwen36_plugin.prefill import kernel

    from . import stock

    def choose(name: str | None) -> None:
        monkeypatch.setattr(kernel, "stock_choice", lambda config: name and getattr(stock, name))

    choose("MarlinLinearKernel")
    return choose


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch, clean: None) -> Iterator[Callable[..., Any]]:
    """A server with these options, on a GPU; it measures only if asked to."""
    import torch
    from vllm.model_executor import parameter

    from vllm_qwen36_plugin.prefill import dispatch, humming, prepare, room
    from vllm_qwen36_plugin.prefill.kernel import PrefillLinearKernel
    from vllm_qwen36_plugin.upstream.linear_kernels import offer_first

    from . import real_gpu

    monkeypatch.setattr(parameter, "get_tensor_model_parallel_rank", lambda: 0)
    monkeypatch.setattr(parameter, "get_tensor_model_parallel_world_size", lambda: 1)
    monkeypatch.setattr(prepare, "shipped_profiles", list)
    offer_first(real_gpu.DEVICE.upper(), PrefillLinearKernel)
    # A test's calls are few and alone: it is the GPU's way that they are to take.
    dispatch.pace().eager_from = 0
    # Tests name routes after a start that took none, and have many shapes compiled in one process.
    monkeypatch.setattr(room, "give_back", lambda linears: None)
    monkeypatch.setattr(humming, "_waited", [-600.0])
    torch.manual_seed(0)

    def make(*, measuring: bool = False, tokens: int = 8192, **options: Any) -> real_gpu.Server:
        if not measuring:
            monkeypatch.setattr(prepare, "BUDGET", 0.0)
        return real_gpu.Server(monkeypatch, {"prefill": "fp8", **options}, tokens)

    yield make
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
