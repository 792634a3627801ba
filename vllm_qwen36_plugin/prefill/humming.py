"""Humming's kernel on a weight in Marlin's layout: the same bytes, so one copy serves both.

``humming-kernels`` is a dependency of vLLM from 0.33 on, which takes it on Hopper alone. For 4-bit codes and
activations of 16 bits it lays words and scales out as Marlin does, bit for bit (0.1.19 against vLLM 0.33.0, all
shapes of the 27B on one H200; start-up compares them again). Up to 16 tokens it took 0.78 to 0.90 of Marlin's time
there, at 2,048 tokens 0.46 (bench/prefill).

Its kernels are compiled on first use, once per card and shape: on an H200's 16 cores 10 s a shape. So compiling
begins in a thread when the model is built, and runs while the checkpoint is read.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from concurrent.futures import Future, wait
from itertools import cycle
from threading import Lock, Thread, get_native_id
from typing import Any, Protocol

import torch

from vllm_qwen36_plugin.log import logger

from .shape import Shape

# Seconds that a start waits, for all shapes together, for kernels that are still being compiled.
PATIENCE = 60.0
_waited = [0.0]
# Humming pads other sizes, and a padded weight is not Marlin's.
_N_STEP, _K_STEP = 256, 128
# Linears of one shape take turns with these: the next kernel of a stream may begin before the last one has ended.
_LOCKS = 4
# As `nice` counts: others go first where there are no cores left.
_NICE = 15
_COMPUTE = json.dumps({"use_batch_invariant": False, "use_f16_accum": False, "gemm_type": "dense"})
_one_at_a_time = Lock()
_configs: dict[tuple[Shape, int, Compiles | None], Future[torch.Tensor]] = {}


class Compiles(Protocol):
    """Another way to multiply by a shape than with its own type of activations (``humming_8bit.Kind``)."""

    def compile(self, shape: Shape, index: int) -> torch.Tensor:
        """Compile the kernels of a shape for the GPU of that number."""


class Kernel:
    """Multiplies x ``[m, k]`` by words and scales in Marlin's layout: ``[m, n]``.

    Attributes:
        locks: int32, zero between calls. Sleep level 2 keeps a model's buffers and nothing else: it is to be one.
    """

    def __init__(self, n: int, configs: torch.Tensor, locks: torch.Tensor) -> None:
        from humming.ops import launch_kernel

        self._n, self._configs, self._launch = n, configs, launch_kernel
        self.locks = locks
        self._turns = cycle(locks.unbind())

    def __call__(self, x: torch.Tensor, words: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
        out = x.new_empty(x.shape[0], self._n)
        self._launch(
            configs=self._configs,
            inputs=x,
            weight=words,
            weight_scale=scales,
            outputs=out,
            locks=next(self._turns),
        )
        return out


def suits(shape: Shape) -> bool:
    """Whether Humming keeps a weight of this shape as Marlin does, and is installed beside a GPU."""
    if not torch.cuda.is_available():
        return False
    if shape.layout != "marlin" or shape.bits != 4 or shape.group_size < 64:
        return False
    if shape.n % _N_STEP or shape.k % _K_STEP:
        return False
    try:
        import humming.kernel.humming
        import humming.ops  # noqa: F401
    except Exception:  # noqa: BLE001 - importing it may look for a driver or a compiler
        return False
    return True


def begin(
    shape: Shape, device: torch.device | None = None, kind: Compiles | None = None
) -> Future[torch.Tensor]:
    """Begin to compile a shape's kernels for a GPU (None: the current one), in a thread, unless that has begun."""
    key = shape, index_of(device), kind
    if key not in _configs:
        future: Future[torch.Tensor] = Future()
        _configs[key] = future
        # A daemon: a start that fails does not wait for it.
        Thread(target=_keep, args=(future, *key), name="qwen36-humming", daemon=True).start()
    return _configs[key]


def kernel_for(shape: Shape, device: torch.device) -> Kernel:
    """Return the kernel of a shape.

    Raises:
        TimeoutError, Exception: as :func:`compiled`.
    """
    configs = compiled(shape, device)
    blocks = torch.cuda.get_device_properties(device).multi_processor_count
    # As many as vLLM's own kernel for Humming has, of which each call leaves zeros behind.
    return Kernel(shape.n, configs, torch.zeros(_LOCKS, blocks * 8, dtype=torch.int32, device=device))


def compiled(
    shape: Shape, device: torch.device, kind: Compiles | None = None, patience: float = PATIENCE
) -> torch.Tensor:
    """Return Humming's list of a shape's kernels.

    It waits for kernels that are still being compiled, those of other shapes as well: beside a compiler the host is
    too slow for what is measured next. All waits of a process together are at most ``patience``, in seconds.

    Raises:
        TimeoutError: they are not there yet. Compiling goes on, and the next start finds them.
        Exception: whatever Humming or its compiler raises.
    """
    begun = time.perf_counter()
    future = begin(shape, device, kind)
    left = patience - _waited[0]
    if not future.done() and left > 0:
        logger.info(
            "vllm-qwen36-plugin: Humming compiles its kernels, once for this GPU: %.0f s at most",
            left,
        )
    try:
        wait((future, *_configs.values()), timeout=max(left, 0.0))
        return future.result(timeout=0)
    finally:
        _waited[0] += time.perf_counter() - begun


def same_bytes(
    shape: Shape, packed: torch.Tensor, scales: torch.Tensor, tensors: Sequence[torch.Tensor]
) -> bool:
    """Whether Humming lays a weight out as the kernel that holds it does.

    Args:
        packed, scales: as GPTQ has them, int32 ``[k / 8, n]`` and ``[groups, n]``.
        tensors: words and scales as they are held.
    """
    from humming.transform import transform_humming_tensors

    own = transform_humming_tensors(
        _layer_config(shape, index_of(packed.device)),
        {"weight": packed.t().contiguous(), "weight_scale": scales.t().contiguous()},
    )
    return all(
        torch.equal(own[name].view(torch.int16).reshape(-1), held.view(torch.int16).reshape(-1))
        for name, held in zip(("weight", "weight_scale"), tensors, strict=True)
    )


def _keep(future: Future[torch.Tensor], shape: Shape, index: int, kind: Compiles | None) -> None:
    # This thread's, and so that of the compilers it starts: as many as there are cores, while a model is loaded or
    # served. Beside them a first token took 187 ms on a host of 16, where stock took 149 without (bench/drafts).
    thread = get_native_id()
    if os.getpriority(os.PRIO_PROCESS, thread) < _NICE:
        os.setpriority(os.PRIO_PROCESS, thread, _NICE)
    try:
        with _one_at_a_time:
            future.set_result(_compile(shape, index) if kind is None else kind.compile(shape, index))
    except BaseException as error:  # noqa: BLE001 - raised where the result is asked for
        future.set_exception(error)


def _compile(shape: Shape, index: int) -> torch.Tensor:
    """Compile the kernel of each range of numbers of tokens; Humming keeps them in ``HUMMING_CACHE_DIR``."""
    from humming.kernel.humming import HummingKernel

    with torch.cuda.device(index):
        text = _layer_config(shape, index).to_str()
        return HummingKernel.prepare_kernels(text, _COMPUTE, None, index)


def _layer_config(shape: Shape, index: int) -> Any:
    from humming.config import LayerConfig

    major, minor = torch.cuda.get_device_capability(index)
    return LayerConfig(
        sm_version=major * 10 + minor,
        a_dtype=shape.dtype,
        b_dtype="uint4",
        bs_dtype=shape.dtype,
        c_dtype=shape.dtype,
        shape_n=shape.n,
        shape_k=shape.k,
        weight_scale_group_size=shape.group_size,
        weight_scale_type="group",
    )


def index_of(device: torch.device | None) -> int:
    """Give a GPU's number; None is the current one."""
    return int(torch.cuda.current_device() if device is None or device.index is None else device.index)
