"""Derived starts of the prefill routes on Ada and Ampere cards, used when nothing was measured on the card.

None of these cards was at hand: every number below follows from public figures by the formulas here. Start-up's
own measurement and a profile of ``qwen36 tune prefill`` go first. This is what is left if measuring fails or runs
out of time.

A route pays once per call for writing the weight out, and gains with every token what its GEMM is faster than
Marlin:

    stock(M) = M · s        route(M) = e + M · p        equal at M = e / (s − p)

per value of W, in seconds. A route starts at 1.5 times the tokens where both are equal, and where it wins 3 %. Of
several rates that may be the card's, the one with the latest start counts.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass

from vllm_qwen36_plugin.options import PluginOptions
from vllm_qwen36_plugin.prefill.profile import Route, Starts
from vllm_qwen36_plugin.prefill.shape import Shape

# Share of the memory's public bandwidth that the unpacking kernel reaches. On an H200 (4.8 TB/s) it moved the
# 446 MB of gate_up in 121 µs: 0.77.
BANDWIDTH_SHARE = 0.7
# A start is so many times the tokens at which both are equal.
SAFETY = 1.5
# Share of the stock kernel's time that a route must win at its start; else it is not taken.
MARGIN = 0.03
# Starts are multiples of it: the tokens of a tile of Marlin and of the dense GEMMs. Those beyond the last are none:
# vLLM's passes have 2,048 or 8,192 tokens.
STEP, LAST = 128, 16384
# Those whose rates are known; for `a8` none was published for any of these cards.
ROUTES: tuple[Route, ...] = ("exact", "fp8")
# Bytes of the default scratch.
_SCRATCH = PluginOptions().prefill_scratch_mib << 20
# Operations a second: of any number of tokens, or by number of tokens.
Rate = float | Mapping[int, float]


@dataclass(frozen=True, slots=True)
class Rates:
    """Operations a second that kernels reach on a card.

    Attributes:
        marlin: Marlin on 4 bits and 16-bit activations.
        dense: cuBLAS in 16 bits.
        fp8: vLLM's CUTLASS kernel in e4m3; None where the card has no e4m3.
    """

    marlin: Rate
    dense: Rate
    fp8: Rate | None = None


@dataclass(frozen=True, slots=True)
class Figures:
    """A card's figures.

    Attributes:
        bandwidth: of the memory, bytes a second (data sheet).
        rates: one set if it was published, several if it is only known what they lie between.
    """

    bandwidth: float
    rates: tuple[Rates, ...]


def rate_at(rate: Rate, tokens: int) -> float:
    """Operations a second for so many tokens, between two published figures in line."""
    if not isinstance(rate, Mapping):
        return rate
    counts = sorted(rate)
    place = min(max(bisect_left(counts, tokens), 1), len(counts) - 1)
    low, high = counts[place - 1], counts[place]
    share = min(max((tokens - low) / (high - low), 0.0), 1.0)
    return rate[low] + share * (rate[high] - rate[low])


def costs(
    route: Route, shape: Shape, bandwidth: float, rates: Rates, tokens: int
) -> tuple[float, float, float] | None:
    """Compute seconds per value of W: the stock kernel's per token, the route's per call, the route's per token.

    None for ``fp8`` on a card without it.
    """
    moving = BANDWIDTH_SHARE * bandwidth
    group = shape.k if shape.group_size == -1 else shape.group_size
    read = shape.bits / 8 + 2 / group
    stock = 2 / rate_at(rates.marlin, tokens)
    if route == "exact":
        return stock, (read + 2) / moving, 2 / rate_at(rates.dense, tokens)
    if rates.fp8 is None:
        return None
    # For each token x is read in 16 bits and written in 8, a cost that the n columns share.
    return stock, (read + 1) / moving, 2 / rate_at(rates.fp8, tokens) + 3 / shape.n / moving


def share(route: Route, shape: Shape, bandwidth: float, rates: Rates, tokens: int) -> float | None:
    """A route's time as a share of the stock kernel's; None for ``fp8`` on a card without it."""
    found = costs(route, shape, bandwidth, rates, tokens)
    return None if found is None else (found[1] / tokens + found[2]) / found[0]


def start(route: Route, shape: Shape, card: Figures) -> int | None:
    """Derive the number of tokens from which a route is taken: a multiple of 128.

    Returns:
        None if too little can be won, or if the stock kernel is not Marlin with 4 bits, the only one with figures.
    """
    if shape.layout != "marlin" or shape.bits != 4:
        return None
    latest = 0
    for rates in card.rates:
        tokens = LAST
        while tokens >= STEP and _wins(costs(route, shape, card.bandwidth, rates, tokens), tokens):
            tokens -= STEP
        latest = max(latest, tokens + STEP)
    return latest if latest <= LAST else None


def _wins(found: tuple[float, float, float] | None, tokens: int) -> bool:
    if found is None:
        return False
    stock, once, each = found
    return SAFETY * once <= (stock - each) * tokens and once / tokens + each <= (1 - MARGIN) * stock


@dataclass(frozen=True, slots=True)
class DerivedProfile:
    """A ``prefill.profile.ShippedProfile`` that follows from a card's figures."""

    device_names: tuple[str, ...]
    figures: Figures
    source: str

    def starts(self, shape: Shape) -> Starts:
        """Derive the starts of one shape; ``Starts()`` leaves it to the stock kernel."""
        return Starts(start("exact", shape, self.figures), start("fp8", shape, self.figures))


def _by_tokens(*tera: float) -> Rate:
    return {tokens: each * 1e12 for tokens, each in zip((512, 1024, 2048, 4096, 8192), tera, strict=True)}


_HOW = "derived: no such card was measured; 1.5 times the break-even against Marlin"
# Measured by Humming's author on N = K = 8,192, with vLLM 0.18 and PyTorch 2.10 (vllm#34556 has such tables).
_RTX_4090 = Rates(
    marlin=_by_tokens(169.3, 170.9, 171.1, 171.4, 171.5),
    dense=_by_tokens(162.6, 161.0, 160.0, 165.1, 155.6),
    fp8=_by_tokens(254.7, 271.1, 280.8, 297.6, 311.9),
)
_A100 = Rates(
    marlin=_by_tokens(219.3, 226.5, 224.6, 222.9, 222.2), dense=_by_tokens(139.7, 241.3, 254.5, 253.0, 258.4)
)
# Nobody published Marlin and cuBLAS on an L40S: what they may lie between, 0.41 to 0.73 of the data sheet's
# 362 TFLOP/s. CUTLASS in e4m3: 261 to 294 TFLOP/s at 2,048 tokens in one report. A card's power limit moves all
# three together.
_AD102 = tuple(
    Rates(marlin=marlin * 1e12, dense=dense * 1e12, fp8=fp8 * 1e12)
    for marlin, dense, fp8 in ((150, 170, 261), (190, 215, 278), (230, 265, 294))
)
# No kernel's figure: both near the 71 TFLOP/s of the tensor cores with sums in float32.
_RTX_3090 = Rates(marlin=66e12, dense=66e12)
# Bandwidths are those of NVIDIA's data sheets.
DERIVED_PREFILL_PROFILES = (
    DerivedProfile(("L40S",), Figures(864e9, _AD102), f"{_HOW}, whose rate lies between 150 and 230 TFLOP/s"),
    DerivedProfile(
        ("RTX 6000 Ada",),
        Figures(960e9, _AD102),
        f"{_HOW}, whose rate lies between 150 and 230 TFLOP/s",
    ),
    DerivedProfile(("RTX 4090",), Figures(1008e9, (_RTX_4090,)), f"{_HOW}, by rates published for this card"),
    DerivedProfile(
        ("A100-SXM4-80GB", "A100 80GB PCIe"),
        # The PCIe card's 1,935 GB/s.
        Figures(1935e9, (_A100,)),
        f"{_HOW}, by rates published for this card",
    ),
    DerivedProfile(
        ("A100-SXM4-40GB", "A100-PCIE-40GB"),
        Figures(1555e9, (_A100,)),
        f"{_HOW}, by rates published for a card of 80 GB",
    ),
    DerivedProfile(
        ("RTX 3090",), Figures(936e9, (_RTX_3090,)), f"{_HOW}, which reaches the rate of the tensor cores"
    ),
)
