"""What start-up says of the linears."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .dispatch import Linear
    from .profile import GemmName
    from .settings import Settings


def by_gemm(gemm: GemmName) -> str:
    """What tells ``fp8`` by another library's GEMM from that by vLLM's."""
    return "" if gemm == "vllm" else f" by {gemm}'s GEMM"


def table_line(linears: Iterable[Linear], settings: Settings, known_from: str) -> str:
    """One line: which path serves which shape from how many rows on, and who says so."""
    parts = []
    linears = sorted(linears, key=lambda linear: linear.shape)
    # Those of drafts are in other bits, and may be of a shape that the model has too.
    several = len({linear.shape.bits for linear in linears}) > 1
    for linear in linears:
        taken = [
            f"{path}{by_gemm(linear.starts.fp8_gemm) if path == 'fp8' else ''} from {start}"
            for path in linear.order
            if (start := getattr(linear.starts, path)) is not None
        ]
        bits = f" w{linear.shape.bits}" if several else ""
        parts.append(f"{linear.shape.k}x{linear.shape.n}{bits} {' and '.join(taken) or 'stock'}")
    layouts = "/".join(sorted({linear.shape.layout for linear in linears})) or "none"
    return (
        f"vllm-qwen36-plugin: prefill={settings.mode}, rows of a linear ({layouts} weights) from which it takes "
        f"another path than vLLM's: {'; '.join(parts) or 'none'} ({known_from or 'no profile'}; "
        f"scratch {settings.scratch_bytes >> 20} MiB)"
    )
