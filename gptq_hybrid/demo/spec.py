"""What demo checkpoint to build."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

# One layer in four has full attention.
FULL_ATTENTION_INTERVAL = 4

MtpLayout = Literal["inline", "separate", "unindexed", "none"]


@dataclass(frozen=True, kw_only=True)
class DemoSpec:
    """Sizes and layout of a demo checkpoint.

    Attributes:
        hidden_size: a multiple of 128, the group size and the kernels' granularity; so is ``intermediate_size``.
        mtp: where the MTP head's 15 tensors lie: among the ordinary shards (``inline``), in ``mtp.safetensors``
            named in the index (``separate``) or not named there (``unindexed``), or nowhere (``none``). The config
            promises an MTP head in any case.
        shards: how many files the other tensors are split into.
    """

    hidden_size: int = 256
    intermediate_size: int = 512
    num_hidden_layers: int = 4
    seed: int = 0
    text_only: bool = False
    mtp: MtpLayout = "inline"
    shards: int = 2

    def __post_init__(self) -> None:
        for name in ("hidden_size", "intermediate_size"):
            if getattr(self, name) < 128 or getattr(self, name) % 128:
                raise ValueError(f"{name} must be a multiple of 128, not {getattr(self, name)}")
        if self.num_hidden_layers < FULL_ATTENTION_INTERVAL:
            raise ValueError(f"num_hidden_layers must be at least {FULL_ATTENTION_INTERVAL}")
        if self.mtp not in get_args(MtpLayout):
            raise ValueError(f"mtp must be one of {get_args(MtpLayout)}, not {self.mtp!r}")
        if not 1 <= self.shards <= 16:
            raise ValueError("shards must be between 1 and 16")
        if self.seed < 0 or self.seed >= 1 << 31:
            raise ValueError("seed must be between 0 and 2**31 - 1")
