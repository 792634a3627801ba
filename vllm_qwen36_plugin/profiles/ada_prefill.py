"""Derived starts of the prefill routes on Ada Lovelace cards (sm_89), used when nothing was measured on the card.

No Ada card was at hand: every number below follows from public figures by the formulas here. Start-up's own
measurement and a profile of ``qwen36 tune prefill`` go first. This is what is left if measuring fails or runs
out of time.

A route pays once per call for writing the weight out, and gains with every token what its GEMM is faster than
Marlin:

    stock(M) = M · s        route(M) = e + M · p        equal at M = e / (s − p)

per value of W, in seconds. Every uncertainty is resolved in favour of the stock kernel, and a route starts at
twice the tokens where both are equal. It still wins there if writing took twice as long, or if Marlin were only
half as far behind the dense GEMM as assumed.
"""

from __future__ import annotations

from dataclasses import dataclass

from vllm_qwen36_plugin.options import PluginOptions
from vllm_qwen36_plugin.prefill.profile import Route, Starts
from vllm_qwen36_plugin.prefill.shape import Shape

# Share of the memory's public bandwidth that the unpacking kernel reaches. On an H200 (4.8 TB/s) it moved the
# 446 MB of gate_up in 121 µs: 0.77.
BANDWIDTH_SHARE = 0.7
# Share of the public tensor rate that a dense 16-bit GEMM reaches. It cannot be more, and the faster the GEMM, the
# fewer seconds a token wins over Marlin.
DENSE_SHARE = 1.0
# Share of the public FP8 rate that vLLM's CUTLASS kernel reaches. Another project's GEMM is reported at the
# whole rate on an RTX 4090 (Humming, 331 TFLOP/s).
FP8_SHARE = 0.6
# Marlin's speed over cuBLAS's at 16,384 tokens, reported for an RTX 6000 Ada.
MARLIN_SHARE = 0.82
# A start is so many times the tokens at which both are equal.
SAFETY = 2
# Share of the stock kernel's time that a route must win at its start; else it is not taken.
MARGIN = 0.03
# Starts are rounded up to it: the tokens of a tile of Marlin and of the dense GEMMs.
_ROUND = 256
# Bytes of the default scratch.
_SCRATCH = PluginOptions().prefill_scratch_mib << 20


@dataclass(frozen=True, slots=True)
class Figures:
    """A card's public figures.

    Attributes:
        bandwidth: of the memory, bytes a second.
        dense: FP16 or BF16 operations a second, with FP32 accumulation and no sparsity.
        fp8: the same in e4m3.
        marlin: Marlin's share of a dense GEMM's speed.
    """

    bandwidth: float
    dense: float
    fp8: float
    marlin: float = MARLIN_SHARE


def start(route: Route, shape: Shape, card: Figures) -> int | None:
    """Derive the number of tokens from which a route is taken, rounded up to 256.

    Returns:
        None if too little can be won, or if the stock kernel is not Marlin with 4 bits, the only one with figures.
    """
    if shape.layout != "marlin" or shape.bits != 4:
        return None
    stock, once, each = costs(route, shape, card)
    if each >= stock:
        return None
    tokens = SAFETY * once / (stock - each)
    if 1 - (once / tokens + each) / stock < MARGIN:
        return None
    return int(-(-tokens // _ROUND) * _ROUND)


def costs(route: Route, shape: Shape, card: Figures) -> tuple[float, float, float]:
    """Compute seconds per value of W: the stock kernel's per token, the route's per call, the route's per token."""
    bandwidth = BANDWIDTH_SHARE * card.bandwidth
    group = shape.k if shape.group_size == -1 else shape.group_size
    read = shape.bits / 8 + 2 / group
    dense = 2 / (DENSE_SHARE * card.dense)
    stock = dense / card.marlin
    if route == "exact":
        return stock, (read + 2) / bandwidth, dense
    # For each token x is read in 16 bits and written in 8, a cost that the n columns share. If the weight takes
    # several parts, the GEMM may be unable to write to some columns of a wider result: then each is read and
    # written once more.
    moved = 3 / shape.n + (4 / shape.k if shape.k * shape.n > _SCRATCH else 0)
    return stock, (read + 1) / bandwidth, 2 / (FP8_SHARE * card.fp8) + moved / bandwidth


@dataclass(frozen=True, slots=True)
class DerivedProfile:
    """A ``prefill.profile.ShippedProfile`` that follows from a card's figures."""

    device_names: tuple[str, ...]
    figures: Figures
    source: str

    def starts(self, shape: Shape) -> Starts:
        """Derive the starts of one shape; ``Starts()`` leaves it to the stock kernel."""
        return Starts(start("exact", shape, self.figures), start("fp8", shape, self.figures))


_HOW = "no Ada card was measured; twice the break-even of public bandwidth and tensor rates against Marlin"
# NVIDIA's data sheets (L40S: 864 GB/s, 362 and 733 TFLOP/s; RTX 6000 Ada: 960 GB/s, 364 and 728) and its white
# paper on Ada (RTX 4090: 1,008 GB/s, 165 and 330 with FP32 accumulation).
ADA_PREFILL_PROFILES = (
    DerivedProfile(
        ("L40S",),
        Figures(bandwidth=864e9, dense=362e12, fp8=733e12),
        f"derived: {_HOW} at 0.82 × cuBLAS, as reported for an RTX 6000 Ada, the same chip",
    ),
    DerivedProfile(
        ("RTX 6000 Ada",),
        Figures(bandwidth=960e9, dense=364e12, fp8=728e12),
        f"derived: {_HOW} at 0.82 × cuBLAS, as reported for this card",
    ),
    DerivedProfile(
        ("RTX 4090",),
        # The 16-bit rate is half of that of the same chip: Marlin and a dense GEMM both wait for the tensor cores.
        Figures(bandwidth=1008e9, dense=165e12, fp8=330e12, marlin=1.0),
        f"derived: {_HOW} at the whole 16-bit rate",
    ),
)
