"""What quantizing a slice of the 27B takes: seconds a layer, peak memory, loss. One GPU, or a CPU.

    python -m bench.quantize.run OUT.json [--layers 5] [--samples 128] [--length 2048]
        [--recipe reference] [--variants stock definition ours fast] [--seconds 580]

Variants, every one a process of its own over the same slice and the same random rows:

    stock        gptqmodel with its own definition
    definition   with this project's: fewer subsets, Hessians and inverses shared
    ours         and with what gives the same bytes faster: the mixer once a layer, the solver without waits, and
                 with a Triton kernel for the sweep where gptqmodel's own cannot be built
    fast         and with Hessians of 16-bit products and a direct inverse, other in the last digits

The first layer has the compiling of kernels in it and the last one no replay: neither is in the figures "a layer".
OUT.json is written after each part of a run, so one that is cut off keeps what it has (``"complete": false``).
Variants already in it with the same settings are kept unless named in --variants.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bench import variants
from bench.engine import place, wait
from bench.quantize.report import speed
from bench.quantize.timing import Watch, covered, peaks
from bench.results import Json, merge

VARIANTS = ("stock", "definition", "ours", "fast")


def rows(args: argparse.Namespace, vocabulary: int) -> list[dict[str, list[int]]]:
    """Random token ids from a fixed seed."""
    import torch

    drawn = torch.randint(
        0, vocabulary, (args.samples, args.length), generator=torch.Generator().manual_seed(0)
    )
    return [{"input_ids": row} for row in drawn.tolist()]


def prepare(variant: str, args: argparse.Namespace, stack: ExitStack) -> Any:
    """What makes ``variant``, entered into ``stack``; returns the counts of passes, or None."""
    if variant == "stock":
        return None
    import gptq_hybrid
    from gptq_hybrid.upstream.speedups import Products, faster

    gptq_hybrid.register()
    if variant == "definition":
        return None
    room = None if args.room is None else int(args.room * 2**30)
    products: Products = "half" if variant == "fast" else "ieee"
    return stack.enter_context(faster(products=products, room=room))


def kernels() -> Json:
    """What decides which of gptqmodel's and transformers' ways are taken."""
    import torch

    facts: Json = {"fp32_precision": str(getattr(torch.backends.cuda.matmul, "fp32_precision", "unknown"))}
    try:
        import fla

        facts["fla"] = str(fla.__version__)
    except ImportError:
        facts["fla"] = "none: Gated DeltaNet in plain torch"
    if torch.cuda.is_available():
        from gptqmodel.quantization.gptq_cuda import block_update_available

        # Built by a compiler on first use; without one gptqmodel's sweep goes column by column.
        facts["gptqmodel_block_kernel"] = bool(block_update_available())
    return facts


def run(variant: str, args: argparse.Namespace, folder: Path) -> None:
    """Load, quantize and save one variant; each part is written when it is there."""
    from gptq_hybrid.recipes import load_recipe
    from gptq_hybrid.upstream import prepare_environment, without_stray_logs

    os.environ["HF_HUB_OFFLINE"] = "1"
    prepare_environment()
    import torch

    from bench.quantize.slice import write_slice

    record: Json = {"complete": False, "environment": place()}

    def keep(**figures: Any) -> None:
        record.update(figures)
        merge(args.out, settings(args), VARIANTS, variant, record)

    source = args.slice / f"{args.layers}{'-tiny' if args.tiny else ''}"
    if not source.is_dir():
        # A run that is cut off while it writes leaves none.
        write_slice(folder / "slice", args.layers, tiny=args.tiny)
        source.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(folder / "slice", source)
    config = load_recipe(args.recipe).quantize_config(
        **({"calibration_data_device": "cpu"} if args.calibration_on_cpu else {})
    )
    watch = Watch()
    with ExitStack() as stack:
        # Stock leaves a folder in the working directory.
        stack.enter_context(without_stray_logs())
        keep(kernels=kernels())
        counts = prepare(variant, args, stack)
        from gptqmodel import GPTQModel

        # Within what changes gptqmodel, so that its own functions are what is timed in every variant.
        stack.enter_context(watch.watching())
        begin = time.perf_counter()
        model = GPTQModel.load(str(source), config)
        model.keep_mtp = False
        # What `ours` and `fast` need was entered above, around what takes the times.
        model.faster = False
        loaded = time.perf_counter()
        samples = rows(args, int(model.model.config.get_text_config().vocab_size))
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        model.quantize(samples, batch_size=1)
        wait()
        end = time.perf_counter()
        keep(
            seconds={
                "load": round(loaded - begin, 2),
                "quantize": round(end - start, 2),
                "solver": round(covered(watch.solvers), 2),
            },
            **watch.layers(end),
            passes=len(watch.passes),
            mixers=watch.mixers,
            losses={name.partition(".layers.")[2]: loss for name, loss in watch.losses.items()},
            memory=peaks(),
            batches=None if counts is None else {"whole": counts.whole, "short": counts.short},
        )
        print(f"{variant}: {record['seconds']}, {record['memory']}", flush=True)
        model.save(str(folder / "out"))
        saved = round(time.perf_counter() - end, 2)
        keep(seconds={**record["seconds"], "save": saved}, bytes=digest(folder / "out"), complete=True)


def digest(folder: Path) -> str:
    """Of the packed tensors of a saved checkpoint, whatever files they are in: equal for equal weights."""
    import hashlib

    import torch
    from safetensors import safe_open

    names: dict[str, Path] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            names |= {name: path for name in file.keys() if name.endswith((".qweight", ".scales", ".g_idx"))}  # noqa: SIM118
    sha = hashlib.sha256()
    for name, path in sorted(names.items()):
        with safe_open(path, "pt") as file:
            sha.update(name.encode())
            sha.update(file.get_tensor(name).contiguous().view(torch.uint8).numpy().tobytes())
    return f"{len(names)} tensors, {sha.hexdigest()[:16]}"


def settings(args: argparse.Namespace) -> Json:
    """What runs must share to be compared."""
    names = ("layers", "samples", "length", "recipe", "tiny", "calibration_on_cpu", "room")
    return {name: getattr(args, name) for name in names}


def parsed(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = variants.arguments(__doc__, VARIANTS, VARIANTS)
    parser.add_argument("--layers", type=int, default=5, help="at least 4; every fourth is full attention")
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--length", type=int, default=2048, help="tokens a row")
    parser.add_argument("--recipe", default="reference")
    parser.add_argument("--room", type=float, help="GiB of the GPU for what `ours` keeps of a layer")
    parser.add_argument(
        "--calibration-on-cpu", action="store_true", help="hidden states in main memory, for all variants"
    )
    parser.add_argument(
        "--slice",
        type=Path,
        default=Path(tempfile.gettempdir(), "bench-quantize-slice"),
        help="where the slice is kept for the next variant and the next call",
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    variants.main("bench.quantize.run", parsed(), run, speed)
