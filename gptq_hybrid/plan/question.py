"""What is asked of a plan: a card, and what of context, concurrency, drafts and KV type is given."""

from __future__ import annotations

import re
from dataclasses import dataclass

from gptq_hybrid.common.errors import HybridError
from gptq_hybrid.doctor.vllm_releases import VllmRelease, drafts_by_batch
from gptq_hybrid.hooks import GpuProfile
from gptq_hybrid.memory import KV_DTYPES, STATE_DTYPES, UTILIZATION, parse_size

MOST_DRAFTS = 8
MOST_SEQUENCES = 1024
# Share of drafts accepted at each position: what trained heads of this family reach on prose and code, as published
# (76 to 91 % at the first position, 39 to 62 % at the third).
ACCEPTANCE = (0.80, 0.64, 0.50, 0.40)
_GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Question:
    """What to plan for; None is solved for.

    Attributes:
        card: the GPU; of one given by its memory, ``compute_capability`` is ``(0, 0)``.
        context: tokens of one request, prompt and reply.
        concurrency: requests that run at once, each of that length.
        drafts: MTP drafts a step.
        kv: as in ``--kv-cache-dtype``.
        images: whether images are served; None for where they fit.
        tensor_parallel: GPUs of that kind.
        utilization: as in ``--gpu-memory-utilization``.
        state: as in ``--mamba-ssm-cache-dtype``.
        acceptance: share of drafts accepted at each position, of all that were made; falling.
        vllm: the release that serves; None if it is not known.
        plugin: whether it runs with this distribution's plugin, whose drafts read less.
        flashinfer: whether Gated DeltaNet's prefill is FlashInfer's, which exports states (vLLM 0.33 and later).
    """

    card: GpuProfile
    context: int | None = None
    concurrency: int | None = None
    drafts: int | None = None
    kv: str | None = None
    images: bool | None = None
    tensor_parallel: int = 1
    utilization: float = UTILIZATION
    state: str = "auto"
    acceptance: tuple[float, ...] = ACCEPTANCE
    vllm: VllmRelease | None = None
    plugin: bool = False
    flashinfer: bool = False

    def __post_init__(self) -> None:
        if self.kv is not None and self.kv not in KV_DTYPES:
            raise HybridError(
                f"--kv {self.kv!r} is no KV type known here", remedy=f"There are: {', '.join(KV_DTYPES)}."
            )
        if self.state not in STATE_DTYPES:
            raise HybridError(
                f"--state {self.state!r} is no dtype of states",
                remedy=f"There are: {', '.join(STATE_DTYPES)}.",
            )
        if not 0.1 <= self.utilization <= 1:
            raise HybridError(
                f"--utilization {self.utilization:g} is no share of a card's memory",
                remedy="Give it as 0.95.",
            )

    @property
    def memory(self) -> int:
        """Bytes of one card, as it is sold."""
        return int(self.card.memory_gib * _GIB)

    @property
    def drafts_by_batch(self) -> bool:
        """Whether drafts by batch size belong in ``--speculative-config``."""
        return drafts_by_batch(self.vllm)

    def tokens_a_step(self, drafts: int) -> float:
        """Tokens that a step brings on average: one, and the accepted drafts."""
        known = self.acceptance
        falling = (*known, *(known[-1] * 0.8**n for n in range(1, drafts - len(known) + 1)))
        return 1 + sum(falling[:drafts])


def read_acceptance(text: str) -> tuple[float, ...]:
    """Read shares by position, such as ``0.8,0.62``; per cent are no shares.

    Raises:
        HybridError: something else than numbers from 0 to 1, or one that is larger than that before it.
    """
    try:
        shares = tuple(float(part) for part in text.split(","))
    except ValueError:
        shares = ()
    if not shares or not all(0 <= share <= 1 for share in shares) or list(shares) != sorted(shares)[::-1]:
        raise HybridError(
            f"--acceptance {text!r} is no list of shares by position",
            remedy="Give what `qwen36 doctor URL` shows as accepted by position, falling: --acceptance 0.8,0.62",
        )
    return shares


def read_bandwidth(text: str) -> float:
    """Read a bandwidth such as ``1008GB/s`` or ``3.35 TB/s``, in bytes a second.

    Raises:
        HybridError: it is none, or no memory's.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(G|T)i?B(?:/s|ps)\s*", text, re.IGNORECASE)
    found = float(match[1]) * (1e9 if match[2].upper() == "G" else 1e12) if match else 0.0
    if not 1e9 <= found <= 1e14:
        raise HybridError(
            f"--bandwidth {text!r} is no bandwidth of a GPU's memory", remedy="Give it as 1008GB/s."
        )
    return found


def card_given(memory: str, bandwidth: str | None = None) -> GpuProfile:
    """Make a card of its memory and bandwidth alone; nothing else is assumed of it.

    Raises:
        HybridError: one of them is none.
    """
    size = parse_size(memory)
    if size is None:
        raise HybridError(f"--memory {memory!r} is no GPU's memory", remedy="Give it in GiB, such as: 24GiB")
    speed = 0.0 if bandwidth is None else read_bandwidth(bandwidth)
    return GpuProfile(f"{size / _GIB:g} GiB", (), (0, 0), size / _GIB, (), "given", speed)
