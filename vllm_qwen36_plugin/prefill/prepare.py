"""While the weights are loaded: scratch, self-test, a profile. What is found goes into the dispatch table."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from vllm_qwen36_plugin.errors import CompatError
from vllm_qwen36_plugin.log import logger
from vllm_qwen36_plugin.options import PluginOptions
from vllm_qwen36_plugin.upstream import scaled_mm
from vllm_qwen36_plugin.upstream.cublas import release_workspaces

from . import dispatch, measure, scratch
from .banner import by_gemm, table_line
from .layouts import marlin_scale_places
from .paths import FP8_SCALE_BYTES, fp8_scales
from .profile import (
    GEMMS,
    GemmName,
    PathName,
    Profile,
    ProfileError,
    Starts,
    cached,
    read,
    shipped_for,
    write,
)
from .replay import NotReplayable, Template
from .selftest import Original, problem_with, problem_with_replay, replay_of
from .settings import UNMEASURED, Settings
from .shape import Shape
from .shipped import shipped_profiles

# Seconds that start-up may spend on measuring, all shapes together.
BUDGET = 10.0
_current: list[Preparation] = []


def settings_now() -> Settings:
    """Those of the model being built, or loaded."""
    from vllm.config import get_current_vllm_config_or_none

    config = get_current_vllm_config_or_none()
    return Settings.of(PluginOptions.of(getattr(config, "additional_config", None)))


@dataclass(slots=True)
class Preparation:
    """One model's: which shapes were seen, what is known of this GPU, how long measuring has taken.

    ``columns``: of all its linears, each of which may get FP8 scales.
    """

    settings: Settings
    most_rows: int
    seen: dict[Shape, dispatch.Linear]
    known: Profile | None
    known_from: str
    spent: float = 0.0
    columns: int = 0

    @classmethod
    def now(cls) -> Preparation:
        """That of the model being loaded: a new one with other settings, or where there was none."""
        from vllm.config import get_current_vllm_config_or_none

        config = get_current_vllm_config_or_none()
        settings, rows = settings_now(), _most_rows(config)
        if not _current or (_current[-1].settings, _current[-1].most_rows) != (settings, rows):
            _current[:] = [cls(settings, rows, {}, None, "")]
        return _current[-1]

    def expect(self, shape: Shape) -> None:
        """Count in a linear that was built: all are, before the first one's weights are prepared."""
        self.columns += shape.n

    def is_new(self, shape: Shape) -> bool:
        """Whether no layer of this shape has been prepared with these settings."""
        return shape not in self.seen

    def fp8_scales(self, linear: dispatch.Linear, tensors: Sequence[torch.Tensor]) -> torch.Tensor | None:
        """A layer's FP8 scales, float32 ``[2, n]``, where they are wanted and the GPU multiplies e4m3."""
        scales = tensors[linear.scales]
        if "fp8" not in self.settings.order or not _fp8_possible(scales.device):
            return None
        found = fp8_scales(scales, linear.shape.bits)
        if linear.shape.layout == "marlin":
            shape = linear.shape
            grouped = shape.group_size not in (-1, shape.k)
            found = found[:, marlin_scale_places(shape.n, grouped=grouped).to(scales.device)]
        return found.contiguous()

    def enter(
        self,
        linear: dispatch.Linear,
        tensors: Sequence[torch.Tensor],
        fp8: torch.Tensor | None,
        original: Original | None,
    ) -> None:
        """Put a layer's shape into the table: as known, or after its test and a look for its times."""
        before = self.seen.get(linear.shape)
        if before is not None:
            linear.starts, linear.order, linear.gemms = before.starts, before.order, before.gemms
            linear.served = before.served
            linear.replays(before.template)
        elif original is not None:
            self._reserve(linear.shape, tensors[linear.words].device, tensors[linear.scales].element_size())
            linear.replays(self._template(linear, tensors))
            linear.order = self._tested(linear, original, tensors, fp8)
            linear.starts = self._starts(linear, tensors, fp8)
            if linear.starts.fp8_gemm not in linear.gemms:
                # Of a profile from elsewhere, or of none.
                linear.starts = replace(linear.starts, fp8_gemm=linear.gemms[0])
            if tensors[linear.words].is_cuda:
                release_workspaces()
        self.seen[linear.shape] = dispatch.put(linear)
        dispatch.at_next_call(_say)

    def _reserve(self, shape: Shape, device: torch.device, itemsize: int) -> None:
        """Have room for a shape's largest part, and no more: with FP8 scales, within what the user set."""
        size, itemsizes = self.settings.scratch_bytes, [itemsize]
        if "fp8" in self.settings.order and _fp8_possible(device):
            size, itemsizes = scratch.beside(self.columns * FP8_SCALE_BYTES, size), [itemsize, 1]
        # Of what does not fit, a path says how much it needs.
        scratch.reserve(device, scratch.largest_tile(shape.k, shape.n, itemsizes, size) or size)

    def _template(self, linear: dispatch.Linear, tensors: Sequence[torch.Tensor]) -> Template | None:
        """How to call the stock kernel's op without its Python; None where that is not the same."""
        try:
            template = replay_of(linear, tensors)
            problem = problem_with_replay(linear, template.bound(linear.kernel), tensors)
        except NotReplayable as reason:
            template, problem = None, str(reason)
        except Exception as error:  # noqa: BLE001 - whatever it is, vLLM's own Python is there
            template, problem = None, repr(error)
        if problem is None:
            return template
        # Nothing is lost but microseconds.
        logger.debug("vllm-qwen36-plugin: %s by vLLM's own Python: %s", linear.shape.key, problem)
        return None

    def _tested(
        self,
        linear: dispatch.Linear,
        original: Original,
        tensors: Sequence[torch.Tensor],
        fp8: torch.Tensor | None,
    ) -> tuple[PathName, ...]:
        """The wanted paths that pass the test; one warning for each that does not."""
        passed: list[PathName] = []
        for path in self.settings.order:
            if path == "fp8" and fp8 is None:
                _warn_once(
                    "prefill=fp8 needs a GPU that multiplies e4m3 (Ada or later) and vLLM's kernel for it"
                )
                continue
            ways: tuple[GemmName, ...] = ("vllm",)
            if path == "fp8":
                device, dtype = tensors[linear.words].device, getattr(torch, linear.shape.dtype)
                ways = tuple(gemm for gemm in GEMMS if scaled_mm.works(device, dtype, gemm))
            good: list[GemmName] = []
            for gemm in ways:
                try:
                    problem = problem_with(path, linear, original, tensors, fp8, gemm)
                except Exception as error:  # noqa: BLE001 - whatever it is, the stock kernel is there
                    problem = repr(error)
                if problem is None:
                    good.append(gemm)
                else:
                    name, key = path + by_gemm(gemm), linear.shape.key
                    logger.warning("vllm-qwen36-plugin: %s is off for %s: %s", name, key, problem)
            if good:
                passed.append(path)
            if path == "fp8" and good:
                linear.gemms = tuple(good)
        return tuple(passed)

    def _starts(
        self, linear: dispatch.Linear, tensors: Sequence[torch.Tensor], fp8: torch.Tensor | None
    ) -> Starts:
        """The user's profile, else one measured here, else measured now, else shipped, else stock."""
        if not linear.order:
            return Starts()
        profile = self._known(tensors[linear.words].device)
        if linear.shape in profile.starts and self._covers(profile, linear):
            return profile.starts[linear.shape]
        if self.settings.profile is not None:
            _warn_once(
                f"{self.settings.profile} has nothing for {linear.shape.key} up to {self.most_rows} rows"
            )
        elif self.spent < BUDGET:
            try:
                return self._measured(linear, tensors, fp8)
            except Exception as error:  # noqa: BLE001 - short of memory, most likely
                _warn_once(f"prefill could not be measured on this GPU: {error!r}")
        try:
            shipped = shipped_for(torch.cuda.get_device_name(tensors[0].device), shipped_profiles())
            if shipped is not None:
                self.known_from = shipped.source
                return shipped.starts(linear.shape)
        except Exception as error:  # noqa: BLE001 - of another package, it may not keep a model from serving
            _warn_once(f"the profiles that are shipped are of no use: {error!r}")
        if self.settings.mode != "auto":
            return Starts(UNMEASURED, UNMEASURED)
        return Starts()

    def _covers(self, profile: Profile, linear: dispatch.Linear) -> bool:
        """Whether each wanted path was measured up to as many rows as may come, where it is said to be measured."""
        times = profile.times_us.get(linear.shape)
        if not times:
            return True
        needed = max((rows for rows in measure.ROWS if rows <= self.most_rows), default=0)
        # A path may have no times: of a start with fewer rows than are worth measuring.
        return all(max(times.get(path) or {0: 0.0}) >= needed for path in linear.order)

    def _known(self, device: torch.device) -> Profile:
        if self.known is None:
            self.known, self.known_from = Profile("none", {}), ""
            path = Path(self.settings.profile) if self.settings.profile else self._kept(device)
            if path is not None:
                try:
                    self.known = read(path)
                    self.known_from = self.known.source
                except ProfileError as error:
                    logger.warning("vllm-qwen36-plugin: %s", error)
        return self.known

    def _kept(self, device: torch.device) -> Path | None:
        """The file measured on this GPU before. None without one, or without a folder; writing will say so."""
        try:
            path = cached(self._card(device))
            return path if path.is_file() else None
        except OSError:
            return None

    def _measured(
        self, linear: dispatch.Linear, tensors: Sequence[torch.Tensor], fp8: torch.Tensor | None
    ) -> Starts:
        begin = time.perf_counter()
        rows = [count for count in measure.ROWS if count <= self.most_rows]
        times, starts = measure.settled(
            measure.times_of(linear, tensors, fp8, rows, measure.measured_paths(linear))
        )
        took = time.perf_counter() - begin
        self.spent += took
        where = self._card(tensors[linear.words].device)
        known = self._known(tensors[linear.words].device)
        self.known = known.merged(measure.profile_of(linear.shape, times, starts, where, self.spent))
        self.known_from = self.known.source
        try:
            write(cached(where), self.known)
        except OSError as error:
            _warn_once(f"the profile of this GPU is not kept: {error}")
        return starts

    def _card(self, device: torch.device) -> Any:
        return measure.card(device, self.settings.scratch_bytes >> 20)


def _most_rows(config: Any) -> int:
    scheduler = getattr(config, "scheduler_config", None)
    return int(getattr(scheduler, "max_num_batched_tokens", None) or measure.ROWS[-1])


def _fp8_possible(device: torch.device) -> bool:
    if device.type != "cuda" or not scaled_mm.supported(torch.cuda.get_device_capability(device)):
        return False
    try:
        scaled_mm.check()
    except CompatError as error:
        _warn_once(str(error))
        return False
    return True


_warned: set[str] = set()


def _warn_once(text: str) -> None:
    if text not in _warned:
        _warned.add(text)
        logger.warning("vllm-qwen36-plugin: %s", text)


def _say() -> None:
    if _current:
        logger.info(
            "%s", table_line(_current[-1].seen.values(), _current[-1].settings, _current[-1].known_from)
        )
