"""What running takes of a GPU's memory besides weights and cache. All estimated, with margins, at 27B.

Measured on an H200 at the 27B's widths (``bench/prefill/engine.json``, ``graphs.json``): a peak of 2.58 GiB in
vLLM's profile run, 0.25 GiB outside PyTorch, 0.10 GiB of CUDA graphs for decoding 16 sequences and 0.35 to 0.40
with graphs up to 512 tokens, 159 MiB given up by the plugin. Those were first starts: vLLM's compiler allocates
while the peak is taken (vllm-project/vllm #54122, #54383; open when this was written). Another project reports
2.59 GiB and 0.86 outside PyTorch for a 27B's first start, and 0.74 and 0.22 for its second (1CatAI/1Cat-vLLM #518).
"""

from __future__ import annotations

from dataclasses import dataclass

GIB = 1 << 30
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Running:
    """One part: bytes as expected, at least and at most, and where they come from."""

    name: str
    expected: int
    low: int
    high: int
    source: str


def _part(name: str, expected: int, low: int, high: int, source: str) -> Running:
    return Running(name, expected * MIB, low * MIB, high * MIB, source)


PARTS = (
    _part(
        "activations",
        1576,
        600,
        2700,
        "peak of the profile run; 2.6 GiB at a first start, which compiles, 0.7 at the next",
    ),
    _part("CUDA graphs", 307, 70, 450, "measured on an H200, 16 sequences; more with more sequences"),
    _part("libraries", 512, 220, 880, "CUDA's modules and workspaces, outside PyTorch"),
    _part(
        "plugin",
        165,
        0,
        480,
        "128 MiB of scratch, 159 MiB measured on an H200; a head for drafts, 280 MiB net, only where it is little",
    ),
)
# Only where images are served: vLLM runs the tower once on its largest image, in the same profile run. What
# stays at the peak of the rest are the outputs: 16,384 tokens of 5,120 values in 16 bits.
VISION = _part(
    "vision profile", 160, 0, 1100, "outputs of the largest image; at most the tower's own activations"
)
# Between what the reference card's two rows of an L40S leave: 2.2 GiB (18.2 GiB of W4A16) and 3.3 GiB (29 GiB of
# FP8).
RESERVE = sum(part.expected for part in PARTS)
LEAST = sum(part.low for part in PARTS)
MOST = sum(part.high for part in PARTS)
