"""Variants of an engine, every one a process of its own: a module's ``--variants`` and ``--one``.

Such a module's command line has ``out``, ``variants``, ``seconds`` (for all of them) and ``one``.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from bench.arguments import command_line
from bench.results import Json, load, merge, without


def arguments(text: str | None, every: tuple[str, ...], usual: tuple[str, ...]) -> argparse.ArgumentParser:
    """What `main` needs; a module adds what it has of its own."""
    parser = command_line(text, "out")
    parser.add_argument("--variants", nargs="+", default=list(usual), choices=every)
    parser.add_argument("--seconds", type=float, default=580, help="for all variants together")
    parser.add_argument("--one", choices=every, help="this variant only, in this process")
    parser.add_argument("--tiny", action="store_true", help="a small model: to try this out on a CPU")
    return parser


def engine_arguments(
    text: str | None, every: tuple[str, ...], usual: tuple[str, ...], *, repeats: int, memory: float
) -> argparse.ArgumentParser:
    """The same for an engine of the 27B's shapes."""
    parser = arguments(text, every, usual)
    parser.add_argument("--layers", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=repeats)
    parser.add_argument("--attention", default="TRITON_ATTN")
    parser.add_argument("--memory", type=float, default=memory, help="share of the card's memory")
    parser.add_argument("--tensor-parallel-size", type=int, default=1, help="GPUs")
    return parser


def call_variant(module: str, variant: str, argv: list[str], seconds: float) -> str | None:
    """Run one variant of a module in a process of its own; why it failed, or None.

    Its compiled kernels and what Triton's autotuner found are kept for the next: left to itself PyTorch has them in
    a folder of each process, and vLLM tunes its Gated-DeltaNet kernels for 95 s in every one (0.26, torch 2.11).
    """
    command = [sys.executable, "-m", module, *argv, "--one", variant]
    os.environ.setdefault("TRITON_CACHE_DIR", str(Path(tempfile.gettempdir(), "bench-triton-cache")))
    process = subprocess.Popen(command, start_new_session=True)
    try:
        code = process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return f"cut off after {seconds:.0f} s"
    return f"exit code {code}" if code else None


def drive(module: str, args: argparse.Namespace, argv: list[str]) -> dict[str, str]:
    """All variants one after another; by variant, why it failed."""
    begin, failed = time.monotonic(), {}
    without(args.out, args.variants)
    for variant in args.variants:
        left = args.seconds - (time.monotonic() - begin)
        print(f"--- {variant}, {left:.0f} s left", flush=True)
        reason = call_variant(module, variant, argv, left) if left > 10 else "no time left"
        if reason:
            failed[variant] = reason
            print(f"{variant}: {reason}", flush=True)
    return failed


def saving(
    run: Callable[[str, argparse.Namespace, Path], Json],
    settings: Callable[[argparse.Namespace], Json],
    every: tuple[str, ...],
) -> Callable[[str, argparse.Namespace, Path], None]:
    """What `main` runs, of a function that returns a variant's figures."""

    def save(variant: str, args: argparse.Namespace, folder: Path) -> None:
        merge(args.out, settings(args), every, variant, run(variant, args, folder))

    return save


def main(
    module: str,
    args: argparse.Namespace,
    run: Callable[[str, argparse.Namespace, Path], None],
    report: Callable[[Json], str],
) -> None:
    """Run ``--one`` with a temporary folder, or all variants; then print what ``report`` makes of the file."""
    if args.one:
        with tempfile.TemporaryDirectory() as folder:
            run(args.one, args, Path(folder))
        return
    failed = drive(module, args, sys.argv[1:])
    result = load(args.out)
    if result and result["runs"]:
        print(report(result), flush=True)
    if failed:
        sys.exit(", ".join(f"{variant}: {reason}" for variant, reason in failed.items()))
