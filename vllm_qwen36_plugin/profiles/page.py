"""The page of what the prefill routes may bring on cards that nobody measured: ``ROOFLINE.md``.

    python -m vllm_qwen36_plugin.profiles.page

Needs nothing but the package; a test compares the page with what this writes.
"""

from __future__ import annotations

from pathlib import Path

from vllm_qwen36_plugin.prefill.profile import Route
from vllm_qwen36_plugin.prefill.shape import Shape

from .derived_prefill import (
    BANDWIDTH_SHARE,
    DERIVED_PREFILL_PROFILES,
    MARGIN,
    ROUTES,
    SAFETY,
    DerivedProfile,
    Rates,
    costs,
    rate_at,
)

PAGE = Path(__file__).with_name("ROOFLINE.md")
TOKENS = (512, 1024, 2048, 4096, 8192)
# The quantized linears of the 27B, and how many it has of each.
LINEARS = {
    Shape("marlin", 5120, 14336, 4, 128, "bfloat16"): 16,
    Shape("marlin", 5120, 16384, 4, 128, "bfloat16"): 48,
    Shape("marlin", 6144, 5120, 4, 128, "bfloat16"): 64,
    Shape("marlin", 5120, 34816, 4, 128, "bfloat16"): 64,
    Shape("marlin", 17408, 5120, 4, 128, "bfloat16"): 64,
}
_TOP = f"""# Prefill on Ada and Ampere: derived, not measured

Written by `python -m vllm_qwen36_plugin.profiles.page` from the rates in `derived_prefill.py`. None of the cards
was at hand. Times of all quantized linears of one pass of the 27B (24.3 billion values), as shares of Marlin's:

    stock(M) = M · s        route(M) = e + M · p

* s, p: two operations over the kernel's rate. `fp8` also moves 3 bytes for each value of its input.
* e: bytes of a packed value, and of the value that is written, over {BANDWIDTH_SHARE} of the public bandwidth.
* A route starts at {SAFETY} times the break-even e / (s − p), and where it wins {100 * MARGIN:.0f} %; else never.
"""


def share_of_a_pass(route: Route, bandwidth: float, rates: Rates, tokens: int) -> float | None:
    """All quantized linears of the 27B by a route, as a share of Marlin's time; None for ``fp8`` without e4m3."""
    stock = whole = 0.0
    for shape, count in LINEARS.items():
        found = costs(route, shape, bandwidth, rates, tokens)
        if found is None:
            return None
        values = shape.k * shape.n * count
        stock += found[0] * tokens * values
        whole += (found[1] + found[2] * tokens) * values
    return whole / stock


def text() -> str:
    """Write the page."""
    return "\n".join([_TOP, *(_card(profile) for profile in DERIVED_PREFILL_PROFILES)])


def _card(profile: DerivedProfile) -> str:
    figures = profile.figures
    lines = [
        f"## {', '.join(profile.device_names)}",
        "",
        f"{profile.source[0].upper()}{profile.source[1:]}. {figures.bandwidth / 1e9:,.0f} GB/s.",
        "",
        "| tokens | Marlin, TFLOP/s | Marlin, ms | `exact` | `fp8` |",
        "|---:|---:|---:|---:|---:|",
    ]
    values = sum(shape.k * shape.n * count for shape, count in LINEARS.items())
    for tokens in TOKENS:
        marlin = [rate_at(rates.marlin, tokens) for rates in figures.rates]
        cells = [_between([rate / 1e12 for rate in marlin], 0)]
        cells.append(_between([2 * values * tokens / rate * 1e3 for rate in marlin], 0))
        for route in ROUTES:
            shares = [share_of_a_pass(route, figures.bandwidth, rates, tokens) for rates in figures.rates]
            cells.append("" if None in shares else _between([each or 0.0 for each in shares], 2))
        lines.append(f"| {tokens:,} | " + " | ".join(cells) + " |")
    starts = [
        f"`{route}` {_starts(profile, route)}" for route in ROUTES if figures.rates[0].fp8 or route != "fp8"
    ]
    return "\n".join([*lines, "", f"Starts, by shape: {'; '.join(starts)}.", ""])


def _between(values: list[float], digits: int) -> str:
    least, most = (f"{value:,.{digits}f}" for value in (min(values), max(values)))
    return least if least == most else f"{least} to {most}"


def _starts(profile: DerivedProfile, route: Route) -> str:
    found = {getattr(profile.starts(shape), route) for shape in LINEARS}
    numbers = sorted(tokens for tokens in found if tokens is not None)
    if not numbers:
        return "never"
    words = f"from {_between([float(tokens) for tokens in numbers], 0)} tokens on"
    return words + (", and never for some" if None in found else "")


if __name__ == "__main__":
    PAGE.write_text(text())
