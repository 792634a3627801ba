"""From how many rows on another path is taken on Ada Lovelace cards (sm_89), where nothing was measured there.

No Ada card was at hand: every number below follows from public figures by the formulas here. Start-up's own
measurement goes first, and so does a profile of ``qwen36 tune``; this is what is left when measuring fails or has
no time.

A path pays once a call for writing the weight out, and wins with every row what its GEMM is faster than Marlin:

    stock(M) = M · s        path(M) = e + M · p        equal at M = e / (s − p)

per value of W, in seconds. All that is uncertain is taken in favour of the stock kernel, and a path starts at twice
the rows where both are equal: it still wins there if writing took twice as long, or if Marlin had half the distance
to the dense GEMM that is assumed.
"""

from __future__ import annotations

from dataclasses import dataclass

from vllm_qwen36_plugin.options import PluginOptions
from vllm_qwen36_plugin.prefill.profile import PathName, Starts
from vllm_qwen36_plugin.prefill.shape import Shape

# Of the memory's public bandwidth, for the kernel that unpacks. On an H200 (4.8 TB/s) it moved 446 MB of gate_up's
# in 121 µs: 0.77.
BANDWIDTH_SHARE = 0.7
# Of the public tensor rate, for a dense 16-bit GEMM: none is faster, and the faster it is, the less there is to win
# over Marlin by the row.
DENSE_SHARE = 1.0
# Of the public FP8 rate, for vLLM's CUTLASS kernel; a GEMM of another project is reported at the whole rate on an
# RTX 4090 (Humming, 331 TFLOP/s).
FP8_SHARE = 0.6
# Marlin's speed over cuBLAS's at 16,384 rows, reported for an RTX 6000 Ada.
MARLIN_SHARE = 0.82
# Times the rows at which both are equal.
SAFETY = 2
# What a path must win at its start, of the stock kernel's time; else it is not taken.
MARGIN = 0.03
# Starts are rounded up to it: rows of a tile of Marlin's and of the dense GEMMs.
_ROUND = 256
# Bytes of scratch by default.
_SCRATCH = PluginOptions().prefill_scratch_mib << 20


@dataclass(frozen=True, slots=True)
class Figures:
    """A card's public figures, and Marlin's share of a dense GEMM's speed on it.

    ``bandwidth`` in bytes a second; ``dense`` and ``fp8`` in operations a second (FP16 or BF16, and e4m3, with FP32
    accumulation, no sparsity).
    """

    bandwidth: float
    dense: float
    fp8: float
    marlin: float = MARLIN_SHARE


def start(path: PathName, shape: Shape, card: Figures) -> int | None:
    """Rows from which on a path is taken, rounded up to 256; None where too little can be won, or nothing is known.

    Known is Marlin with 4 bits.
    """
    if shape.layout != "marlin" or shape.bits != 4:
        return None
    stock, once, row = costs(path, shape, card)
    if row >= stock:
        return None
    rows = SAFETY * once / (stock - row)
    if 1 - (once / rows + row) / stock < MARGIN:
        return None
    return int(-(-rows // _ROUND) * _ROUND)


def costs(path: PathName, shape: Shape, card: Figures) -> tuple[float, float, float]:
    """Seconds for each value of W: of the stock kernel a row; of a path a call; of a path a row."""
    bandwidth = BANDWIDTH_SHARE * card.bandwidth
    group = shape.k if shape.group_size == -1 else shape.group_size
    read = shape.bits / 8 + 2 / group
    dense = 2 / (DENSE_SHARE * card.dense)
    stock = dense / card.marlin
    if path == "exact":
        return stock, (read + 2) / bandwidth, dense
    # For each row x is read in 16 bits and written in 8, which N columns share; and where the weight takes several
    # parts, the GEMM may not write to some columns of a wider result: then each is read and written once more.
    moved = 3 / shape.n + (4 / shape.k if shape.k * shape.n > _SCRATCH else 0)
    return stock, (read + 1) / bandwidth, 2 / (FP8_SHARE * card.fp8) + moved / bandwidth


@dataclass(frozen=True, slots=True)
class DerivedProfile:
    """A `prefill.profile.ShippedProfile` out of a card's figures."""

    device_names: tuple[str, ...]
    figures: Figures
    source: str

    def starts(self, shape: Shape) -> Starts:
        """For one shape; ``Starts()`` where the stock kernel is to be used."""
        return Starts(start("exact", shape, self.figures), start("fp8", shape, self.figures))


_HOW = "no Ada card was measured; twice the break-even of public bandwidth and tensor rates against Marlin"
# NVIDIA's data sheets (L40S: 864 GB/s, 362 and 733 TFLOP/s; RTX 6000 Ada: 960 GB/s, 364 and 728) and its white
# paper on Ada (RTX 4090: 1,008 GB/s, 165 and 330 with FP32 accumulation).
ADA_PREFILL_PROFILES = (
    DerivedProfile(
        ("L40S",),
        Figures(bandwidth=864e9, dense=362e12, fp8=733e12),
        f"derived: {_HOW} at 0.82 × cuBLAS, as reported of an RTX 6000 Ada, the same chip",
    ),
    DerivedProfile(
        ("RTX 6000 Ada",),
        Figures(bandwidth=960e9, dense=364e12, fp8=728e12),
        f"derived: {_HOW} at 0.82 × cuBLAS, as reported of this card",
    ),
    DerivedProfile(
        ("RTX 4090",),
        # Half the 16-bit rate of the same chip: Marlin and a dense GEMM both wait for the tensor cores.
        Figures(bandwidth=1008e9, dense=165e12, fp8=330e12, marlin=1.0),
        f"derived: {_HOW} at the whole 16-bit rate",
    ),
)
