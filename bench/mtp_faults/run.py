"""What happens to MTP when the head of a checkpoint is damaged: stock vLLM against the plugin.

    python -m bench.mtp_faults.run CHECKPOINT [--only FAULT …] [--setup stock|plugin …]

CHECKPOINT is a GPTQ checkpoint of the demo model (``gptq_hybrid.demo``), whose intact head has every draft
accepted. Each fault is served twice by a real `vllm serve`. Results are merged into results-cpu.json or
results-GPU.json beside this file, so a run can be continued.
"""

from __future__ import annotations

import os
import platform
import sys
import tempfile
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from bench.arguments import command_line
from bench.mtp_faults import w4_reference_cpu
from bench.mtp_faults.faults import FAULTS, faulty_copy, intact_copy
from bench.mtp_faults.report import cells
from bench.mtp_faults.server import SPECULATIVE, serve_once
from bench.results import load, save
from gptq_hybrid.demo.builder import DemoCheckpoint

HERE = Path(__file__).parent
SETUPS: dict[str, list[str]] = {"stock": [], "plugin": ["qwen36"]}
TOKENS = 48


def main() -> int:
    parser = command_line(__doc__, "checkpoint")
    parser.add_argument("--only", nargs="+", choices=[fault.name for fault in FAULTS])
    parser.add_argument("--setup", nargs="+", choices=list(SETUPS), default=list(SETUPS))
    parser.add_argument("--out", type=Path, default=HERE / f"results-{_device().split()[-1].lower()}.json")
    args = parser.parse_args()
    results = load(args.out) or {"rows": {}}
    results["machine"] = _machine()
    results["speculative_config"] = SPECULATIVE
    with tempfile.TemporaryDirectory() as scratch:
        intact = Path(scratch, "source")
        intact_copy(args.checkpoint, intact)
        shim = Path(scratch, "shim")
        kernel = [w4_reference_cpu.NAME] if w4_reference_cpu.needed() else []
        if kernel:
            w4_reference_cpu.install_into(shim)
        results["int4_kernel"] = "dequantized at load (no AVX-512)" if kernel else "vLLM's own"
        demo = DemoCheckpoint.open(intact)
        prompt = demo.loop[:5]
        right = demo.expected_text(prompt, TOKENS)
        for fault in FAULTS:
            if args.only and fault.name not in args.only:
                continue
            model = Path(scratch, fault.name)
            faulty_copy(intact, model, fault)
            for setup in args.setup:
                log = Path(scratch, f"{fault.name}-{setup}.log")
                plugins = ",".join([*kernel, *SETUPS[setup]])
                outcome = serve_once(
                    model, prompt, TOKENS, plugins=plugins, log=log, pythonpath=shim if kernel else None
                )
                row = asdict(outcome) | {"fault": fault.description, "output_right": outcome.text == right}
                del row["text"]
                row = {key: _anonymous(value, scratch) for key, value in row.items()}
                results["rows"].setdefault(fault.name, {})[setup] = row
                save(args.out, results)
                print(fault.name, setup, *cells(row), sep=" | ", flush=True)
    return 0


def _anonymous(value: Any, scratch: str) -> Any:
    if isinstance(value, list):
        return [_anonymous(item, scratch) for item in value]
    return value.replace(scratch, "/checkpoints") if isinstance(value, str) else value


def _machine() -> dict[str, Any]:
    return {
        "kind": _device(),
        "cores": os.cpu_count(),
        "cpu": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        **{name: number for name in ("vllm", "torch", "transformers") if (number := _version(name))},
    }


def _device() -> str:
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else "CPU"


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


if __name__ == "__main__":
    sys.exit(main())
