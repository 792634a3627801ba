"""While weights are loaded: reserve scratch, test the routes, find their starts, fill the dispatch table."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import torch

from vllm_qwen36_plugin.errors import CompatError
from vllm_qwen36_plugin.hookspecs import shipped_profiles
from vllm_qwen36_plugin.log import logger
from vllm_qwen36_plugin.upstream import decode_rows, scaled_mm
from vllm_qwen36_plugin.upstream.cublas import release_workspaces
from vllm_qwen36_plugin.upstream.linear_kernels import in_gptq_layout, left_to_vllm

from . import dispatch, eight_bit_choice, humming, measure, room, scratch
from .banner import gemm_suffix, guard_line, pace_line, table_line
from .base import Load, marlin_is_faster
from .humming import Kernel
from .layouts import marlin_scale_places
from .profile import (
    EIGHT_BIT,
    GEMMS,
    GemmName,
    Profile,
    ProfileError,
    Route,
    Starts,
    cache_path,
    read,
    shipped_for,
    write,
)
from .ranks import agree, tell
from .replay import NotReplayable, Template
from .routes import FP8_SCALE_BYTES, fp8_scales
from .selftest import Original, failing, problem_with, problem_with_replay, record_replay
from .settings import UNMEASURED, Settings, current_settings
from .shape import Shape

# Seconds that start-up may spend on measuring, all shapes together.
BUDGET = 10.0
# The latest model's preparation, or nothing.
_current: list[Preparation] = []
_warned: set[str] = set()


@dataclass(slots=True)
class Preparation:
    """What is known while one model is loaded, and how its layers enter the dispatch table.

    Attributes:
        settings: the user's.
        max_tokens: most tokens that vLLM puts into one call.
        linears: the table's entry of each shape seen so far.
        profile: the user's or the cached profile, with what was measured since; None until it is looked for.
        source: where its starts come from, for the log.
        seconds: time spent on measuring.
        expected: linears that were built, by shape; each of their columns may get FP8 scales.
        load: what the base kernel is chosen for.
        choosable: whether the user left the choice of a kernel to vLLM.
        host_us: microseconds that the host takes for a call, by shape and way.
        in_marlin: by shape in Machete's layout, whether it is held in Marlin's.
        also: routes that are tried before those of the settings.
    """

    settings: Settings
    max_tokens: int
    linears: dict[Shape, dispatch.Linear] = field(default_factory=dict)
    profile: Profile | None = None
    source: str = ""
    seconds: float = 0.0
    expected: Counter[Shape] = field(default_factory=Counter)
    load: Load = field(default_factory=lambda: Load(2048, 0, 16))
    choosable: bool = False
    host_us: dict[Shape, dict[str, float]] = field(default_factory=dict)
    in_marlin: dict[Shape, bool] = field(default_factory=dict)
    also: tuple[Route, ...] = ()

    @classmethod
    def fresh(cls, **attributes: Any) -> Self:
        """Make a new one for vLLM's current config; ``attributes`` are those of a subclass."""
        return cls(
            current_settings(),
            _max_tokens(),
            load=Load.current(_max_tokens()),
            choosable=left_to_vllm(),
            **attributes,
        )

    @staticmethod
    def current() -> Preparation:
        """Return the preparation of the model being loaded: a new one for the first model or for other settings."""
        fresh = Preparation.fresh()
        if not _current or (_current[-1].settings, _current[-1].max_tokens) != (
            fresh.settings,
            fresh.max_tokens,
        ):
            _current[:] = [fresh]
        return _current[-1]

    @property
    def wanted(self) -> tuple[Route, ...]:
        """Routes that are tried, the most wanted first."""
        return (*self.also, *self.settings.routes)

    def expect(self, shape: Shape) -> None:
        """Count a linear that was built. All are built before the first one's weights are prepared."""
        self.expected[shape] += 1

    def is_new(self, shape: Shape) -> bool:
        """Whether no layer of this shape has been prepared with these settings."""
        return shape not in self.linears

    def tests(self, shape: Shape) -> bool:
        """Whether the next layer of this shape is tested: the first, one in the middle and the last."""
        if self.is_new(shape):
            return True
        return self.linears[shape].layers in (self._built(shape) // 2, self._built(shape) - 1)

    def holds_in_marlin(self, stock: Any, marlin: Any, layer: torch.nn.Module) -> bool:
        """Whether a linear that vLLM gave to Machete is held in Marlin's layout; measured once a shape.

        Args:
            stock: the kernel that holds Machete.
            marlin: vLLM's kernel for Marlin.
            layer: with its parameters as they were loaded.
        """
        shape = stock.shape
        if shape not in self.in_marlin:
            original = Original.copy_of(
                *in_gptq_layout(getattr(layer, stock.w_q_name), getattr(layer, stock.w_s_name))
            )
            try:
                wanted = replace(shape, layout="marlin")
                self.in_marlin[shape] = marlin_is_faster(
                    stock.stock, marlin, wanted, layer, original, self.load
                )
            except Exception as error:  # noqa: BLE001 - vLLM's own choice serves in any case
                self.in_marlin[shape] = False
                _warn_once(f"Humming was not compared with Machete: {_reason(error)}")
        return self.in_marlin[shape]

    def fp8_scales(self, linear: dispatch.Linear, tensors: Sequence[torch.Tensor]) -> torch.Tensor | None:
        """Compute a layer's FP8 scales, float32 ``[2, n]``; None without ``prefill=fp8`` or a GPU that has e4m3."""
        scales, known = tensors[linear.scales], self.linears.get(linear.shape)
        wanted = "fp8" in self.wanted and (known is None or known.takes("fp8"))
        if not wanted or not fp8_possible(scales.device):
            return None
        computed = fp8_scales(scales, linear.shape.bits)
        if linear.shape.layout == "marlin":
            shape = linear.shape
            grouped = shape.group_size not in (-1, shape.k)
            computed = computed[:, marlin_scale_places(shape.n, grouped=grouped).to(scales.device)]
        return computed.contiguous()

    def enter(
        self,
        linear: dispatch.Linear,
        tensors: Sequence[torch.Tensor],
        fp8: torch.Tensor | None,
        original: Original | None,
    ) -> None:
        """Put a layer's shape into the table: as an earlier layer's entry, or after tests and timing.

        Args:
            linear: the entry.
            tensors: those of the layer, in the order of ``linear.names``.
            fp8: its FP8 scales, or None.
            original: the weight as it was loaded, for the layers that :meth:`tests` names.
        """
        earlier = self.linears.get(linear.shape)
        if earlier is not None:
            linear.starts, linear.routes, linear.gemms = earlier.starts, earlier.routes, earlier.gemms
            linear.served, linear.rows, linear.times = earlier.served, earlier.rows, earlier.times
            linear.humming, linear.eight_bit, linear.layers = (
                earlier.humming,
                earlier.eight_bit,
                earlier.layers,
            )
            linear.set_template(earlier.template)
            if original is not None:
                self._test_again(linear, original, tensors, fp8)
        elif original is not None:
            self._reserve(linear.shape, tensors[linear.words].device, tensors[linear.scales].element_size())
            linear.set_template(self._template(linear, tensors))
            linear.humming = self._humming(linear, original, tensors)
            linear.routes = self._tested_routes(linear, original, tensors, fp8)
            linear.starts = self.starts_for(linear, tensors, fp8)
            if linear.starts.fp8_gemm not in linear.gemms:
                # The profile comes from elsewhere, or there is none.
                linear.starts = replace(linear.starts, fp8_gemm=linear.gemms[0])
            if linear.humming is None:
                linear.starts = replace(linear.starts, humming=())
            linear.times = self.profile.times_us.get(linear.shape, {}) if self.profile else {}
            if tensors[linear.words].is_cuda:
                if linear.routes or linear.starts.humming:
                    self._time_host(linear, tensors, fp8)
                release_workspaces()
        eight_bit_choice.watch(linear, tensors)
        linear.layers += 1
        self.linears[linear.shape] = dispatch.put(linear)
        if sum(entry.layers for entry in self.linears.values()) == self.expected.total():
            # Before vLLM counts the memory.
            room.give_back(self.linears.values())
        dispatch.at_next_call(_begin)

    def starts_for(
        self, linear: dispatch.Linear, tensors: Sequence[torch.Tensor], fp8: torch.Tensor | None
    ) -> Starts:
        """Find the starts of a shape.

        They come from the user's profile, else from one measured here before, else from a measurement now, else
        from a shipped profile. Without any the stock kernel serves, unless the user asked for a route by name.
        """
        if not linear.routes and linear.humming is None:
            return Starts()
        profile = self._stored_profile(tensors[linear.words].device)
        if linear.shape in profile.starts and self._covers(profile, linear):
            return profile.starts[linear.shape]
        if self.settings.profile is not None:
            _warn_once(
                f"{self.settings.profile} has nothing for {linear.shape.key} up to {self.max_tokens} tokens"
            )
        elif self.seconds < BUDGET:
            try:
                return self._measure(linear, tensors, fp8)
            except Exception as error:  # noqa: BLE001 - short of memory, most likely
                _warn_once(f"prefill could not be measured on this GPU: {error!r}")
        try:
            shipped = shipped_for(torch.cuda.get_device_name(tensors[0].device), shipped_profiles())
            if shipped is not None:
                self.source = shipped.source
                return shipped.starts(linear.shape)
        except Exception as error:  # noqa: BLE001 - another package's profile may not keep a model from serving
            _warn_once(f"the shipped profiles cannot be used: {error!r}")
        if self.settings.mode != "auto":
            return Starts(UNMEASURED, UNMEASURED, a8=UNMEASURED)
        return Starts()

    def _reserve(self, shape: Shape, device: torch.device, itemsize: int) -> None:
        """Reserve room for a shape's largest part and no more; FP8 scales count towards what the user set."""
        size, routes = self.settings.scratch_bytes, list(self.wanted)
        if "fp8" in routes and fp8_possible(device):
            columns = sum(shape.n * count for shape, count in self.expected.items())
            size = scratch.beside(columns * FP8_SCALE_BYTES, size)
        elif "fp8" in routes:
            routes.remove("fp8")
        room.reserve(device, shape, routes, itemsize, size)

    def _template(self, linear: dispatch.Linear, tensors: Sequence[torch.Tensor]) -> Template | None:
        """Find out how to call the stock kernel's op without its Python; None if that is not the same."""
        try:
            template = record_replay(linear, tensors)
            problem = problem_with_replay(linear, template.bound(linear.kernel), tensors)
        except NotReplayable as reason:
            template, problem = None, str(reason)
        except Exception as error:  # noqa: BLE001 - vLLM's own Python works in any case
            template, problem = None, repr(error)
        if problem is None:
            return template
        # Nothing is lost but microseconds.
        logger.debug("vllm-qwen36-plugin: %s by vLLM's own Python: %s", linear.shape.key, problem)
        return None

    def _humming(
        self, linear: dispatch.Linear, original: Original, tensors: Sequence[torch.Tensor]
    ) -> Kernel | None:
        """Make Humming's kernel for a shape that Marlin holds, if it is installed, right, and compiled in time."""
        if not self.choosable or not humming.suits(linear.shape):
            return None
        if type(linear.kernel).__name__ == "HummingLinearKernel":
            return None
        try:
            linear.humming = humming.kernel_for(linear.shape, tensors[linear.words].device)
            held = tensors[linear.words], tensors[linear.scales]
            if not humming.same_bytes(linear.shape, original.words, original.scales, held):
                raise CompatError("it keeps weights in another order than Marlin")
            problem = problem_with("humming", linear, original, tensors, None)
            if problem is not None:
                raise CompatError(problem)
        except Exception as error:  # noqa: BLE001 - the stock kernel serves in any case
            linear.humming = None
            _warn_once(f"Humming's kernels are not used: {_reason(error)}")
        return linear.humming

    def _time_host(
        self, linear: dispatch.Linear, tensors: Sequence[torch.Tensor], fp8: torch.Tensor | None
    ) -> None:
        """Time the host's part of each way; without it the host's pace stays unknown."""
        try:
            self.host_us[linear.shape] = measure.host_costs(linear, tensors, fp8)
        except Exception as error:  # noqa: BLE001 - short of memory, most likely
            _warn_once(f"the host's part of a call could not be timed: {error!r}")

    def _tested_routes(
        self,
        linear: dispatch.Linear,
        original: Original,
        tensors: Sequence[torch.Tensor],
        fp8: torch.Tensor | None,
    ) -> tuple[Route, ...]:
        """Return the settings' routes that pass the test, with one warning for each that does not."""
        passed: list[Route] = []
        for route in self.wanted:
            if route == "fp8" and fp8 is None:
                _warn_once(
                    "prefill=fp8 needs a GPU that multiplies e4m3 (Ada or later) and vLLM's kernel for it"
                )
                continue
            if route in EIGHT_BIT:
                try:
                    decode_rows.publish_rows()
                except CompatError as error:
                    _warn_once(
                        f"8-bit activations are off, as no step says which rows are of prompts: {error}"
                    )
                    continue
            if route == "a8":
                if (reason := eight_bit_choice.choose(linear, original, tensors)) is None:
                    passed.append(route)
                else:
                    _warn_once(f"prefill=a8 keeps 16 bits for {linear.shape.k}x{linear.shape.n}: {reason}")
                continue
            gemms: tuple[GemmName, ...] = ("vllm",)
            if route == "fp8":
                device, dtype = tensors[linear.words].device, getattr(torch, linear.shape.dtype)
                gemms = tuple(gemm for gemm in GEMMS if scaled_mm.works(device, dtype, gemm))
            good: list[GemmName] = []
            for gemm in gemms:
                try:
                    problem = problem_with(route, linear, original, tensors, fp8, gemm)
                except Exception as error:  # noqa: BLE001 - the stock kernel works in any case
                    problem = repr(error)
                if problem is None:
                    good.append(gemm)
                else:
                    name, key = route + gemm_suffix(gemm), linear.shape.key
                    logger.warning("vllm-qwen36-plugin: %s is off for %s: %s", name, key, problem)
            passed += [route] if good else []
            if route == "fp8" and good:
                linear.gemms = tuple(good)
        return tuple(passed)

    def _test_again(
        self,
        linear: dispatch.Linear,
        original: Original,
        tensors: Sequence[torch.Tensor],
        fp8: torch.Tensor | None,
    ) -> None:
        """Test another layer of a shape by the ways that calls take; one that fails is off for all of them."""
        for way, problem in failing(linear, original, tensors, fp8):
            place = f"layer {linear.layers + 1} of {self._built(linear.shape)}"
            logger.warning(
                "vllm-qwen36-plugin: %s is off for %s, %s: %s", way, linear.shape.key, place, problem
            )
            if way == "humming":
                linear.starts = replace(linear.starts, humming=())
            linear.routes = tuple(route for route in linear.routes if route != way)

    def _built(self, shape: Shape) -> int:
        """Count the linears of a shape; those that Marlin's layout was chosen for were built for Machete's."""
        machete = replace(shape, layout="machete")
        return self.expected[machete if self.in_marlin.get(machete) else shape]

    def _covers(self, profile: Profile, linear: dispatch.Linear) -> bool:
        """Whether a measured profile has each route up to as many tokens as may come; True without times."""
        times = profile.times_us.get(linear.shape)
        if not times:
            return True
        needed = max((tokens for tokens in measure.TOKENS if tokens <= self.max_tokens), default=0)
        # A route has no times after a start with fewer tokens than are worth measuring.
        ways = (*(("humming",) if linear.humming is not None else ()), *linear.routes)
        return all(max(times.get(way) or {0: 0.0}) >= needed for way in ways)

    def _stored_profile(self, device: torch.device) -> Profile:
        """Return the user's profile or the cached one, read at the first call; an empty one without either."""
        if self.profile is None:
            self.profile, self.source = Profile("none", {}), ""
            path = Path(self.settings.profile) if self.settings.profile else self._cached(device)
            if path is not None:
                try:
                    self.profile = read(path)
                    self.source = self.profile.source
                except ProfileError as error:
                    logger.warning("vllm-qwen36-plugin: %s", error)
        return self.profile

    def _cached(self, device: torch.device) -> Path | None:
        """Return the file measured on this GPU before, or None. A missing cache folder is reported when writing."""
        try:
            path = cache_path(self._card(device))
            return path if path.is_file() else None
        except OSError:
            return None

    def _measure(
        self, linear: dispatch.Linear, tensors: Sequence[torch.Tensor], fp8: torch.Tensor | None
    ) -> Starts:
        """Measure one shape now, and add it to the cached profile."""
        begin = time.perf_counter()
        counts = [tokens for tokens in measure.TOKENS if tokens <= self.max_tokens]
        times, starts = measure.settle(
            measure.time_routes(linear, tensors, fp8, counts, measure.routes_to_measure(linear))
        )
        self.seconds += time.perf_counter() - begin
        card = self._card(tensors[linear.words].device)
        stored = self._stored_profile(tensors[linear.words].device)
        self.profile = stored.merged(measure.make_profile(linear.shape, times, starts, card, self.seconds))
        self.source = self.profile.source
        try:
            write(cache_path(card), self.profile)
        except OSError as error:
            _warn_once(f"the profile of this GPU is not kept: {error}")
        return starts

    def _card(self, device: torch.device) -> Any:
        return measure.card(device, self.settings.scratch_bytes >> 20)


def latest() -> Preparation | None:
    """Return the preparation of the model that was loaded last; None before the first."""
    return _current[-1] if _current else None


@contextmanager
def using(preparation: Preparation) -> Iterator[None]:
    """Prepare every layer that is loaded inside the block by ``preparation``, and :func:`reset` after it.

    Its settings and ``max_tokens`` have to be those of vLLM's current config (:meth:`Preparation.fresh`).
    """
    _current[:] = [preparation]
    try:
        yield
    finally:
        reset()


def reset() -> None:
    """Forget the loaded model: its preparation, the dispatch table, the scratch buffers, and warnings given."""
    _current.clear()
    _warned.clear()
    dispatch.clear()
    scratch.release()


def fp8_possible(device: torch.device) -> bool:
    """Whether ``device`` multiplies e4m3 and vLLM has its kernel for it; warns if that is not as expected."""
    if device.type != "cuda" or not scaled_mm.supported(torch.cuda.get_device_capability(device)):
        return False
    try:
        scaled_mm.check()
    except CompatError as error:
        _warn_once(str(error))
        return False
    return True


def _max_tokens() -> int:
    from vllm.config import get_current_vllm_config_or_none

    scheduler = getattr(get_current_vllm_config_or_none(), "scheduler_config", None)
    return int(getattr(scheduler, "max_num_batched_tokens", None) or measure.TOKENS[-1])


def _warn_once(text: str) -> None:
    if text not in _warned:
        _warned.add(text)
        logger.warning("vllm-qwen36-plugin: %s", text)


def _begin() -> None:
    """Log what serves, and begin to watch the host: every layer is in the table."""
    preparation = latest()
    if preparation is None:
        return
    linears = list(preparation.linears.values())
    agree(linears)
    room.give_back(linears)
    tell("prefill", preparation.settings.mode, table_line(linears, preparation.settings, preparation.source))
    guard, host = dispatch.guard(), dispatch.pace()
    guard.settled = lambda: tell("prefill's 8 bits", "settled", guard_line(guard))
    times = preparation.profile.times_us if preparation.profile else {}
    host.watch(
        linears, times, preparation.host_us, lambda: tell("prefill's host", "watched", pace_line(host))
    )


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "they are still being compiled; the next start finds them"
    return str(error) or repr(error)
