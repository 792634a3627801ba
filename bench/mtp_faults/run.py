"""What happens to MTP when the head of a checkpoint is damaged: stock vLLM against the plugin.

    python bench/mtp_faults/run.py CHECKPOINT [--only FAULT …] [--setup stock|plugin …]

CHECKPOINT is a GPTQ checkpoint of the demo model (``gptq_hybrid.demo``), whose intact head has every draft
accepted. Each fault is served twice by a real `vllm serve`. Results are merged into
results-cpu.json or results-GPU.json beside this file, so a run can be continued; the table is in the .md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import sys
import tempfile
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import w4_reference_cpu
from faults import FAULTS, faulty_copy, intact_copy
from server import SPECULATIVE, serve_once

from gptq_hybrid.demo.builder import DemoCheckpoint

HERE = Path(__file__).parent
SETUPS: dict[str, list[str]] = {"stock": [], "plugin": ["qwen36"]}
TOKENS = 48


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--only", nargs="+", choices=[fault.name for fault in FAULTS])
    parser.add_argument("--setup", nargs="+", choices=list(SETUPS), default=list(SETUPS))
    parser.add_argument("--flags", default="", help="further flags for `vllm serve`, one string")
    parser.add_argument("--out", type=Path, default=HERE / f"results-{_device().split()[-1].lower()}.json")
    parser.add_argument("--logs", type=Path, help="keep server logs in this folder")
    args = parser.parse_args()
    results: dict[str, Any] = json.loads(args.out.read_text()) if args.out.exists() else {"rows": {}}
    results["machine"] = _machine()
    results["speculative_config"] = SPECULATIVE
    with tempfile.TemporaryDirectory() as scratch:
        logs = args.logs or Path(scratch)
        logs.mkdir(parents=True, exist_ok=True)
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
                log = logs / f"{fault.name}-{setup}.log"
                plugins = ",".join([*kernel, *SETUPS[setup]])
                outcome = serve_once(
                    model,
                    prompt,
                    TOKENS,
                    plugins=plugins,
                    log=log,
                    pythonpath=shim if kernel else None,
                    extra=shlex.split(args.flags),
                )
                row = asdict(outcome) | {"fault": fault.description, "output_right": outcome.text == right}
                row = {key: _anonymous(value, scratch) for key, value in row.items()}
                results["rows"].setdefault(fault.name, {})[setup] = row
                args.out.write_text(json.dumps(results, indent=1) + "\n")
                args.out.with_suffix(".md").write_text(table(results))
                print(fault.name, setup, *_cells(row), sep=" | ", flush=True)
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
        **{name: found for name in ("vllm", "torch", "transformers") if (found := _version(name))},
    }


def _device() -> str:
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else "CPU"


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _cells(row: dict[str, Any]) -> tuple[str, str, str, str]:
    state = "starts" if row["started"] else f"stops, exit {row['exit_code']}"
    drafts = "-" if row["proposed"] is None else f"{row['accepted']} of {row['proposed']}"
    output = {True: "right", False: "WRONG"}[row["output_right"]] if row["started"] else "-"
    return state, f"{row['seconds']:.0f} s", output, drafts


def table(results: dict[str, Any]) -> str:
    """The markdown table of everything measured so far."""
    machine = results["machine"]
    lines = [
        f"vLLM {machine['vllm']} ({machine['kind']}, {machine['cores']} cores), demo model, two drafts a step.",
        "",
        "| MTP head |" + "".join(f" {s} | after | output | drafts accepted |" for s in SETUPS),
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for fault in FAULTS:
        rows = results["rows"].get(fault.name)
        if rows:
            cells = [
                cell for setup in SETUPS for cell in (_cells(rows[setup]) if setup in rows else ("",) * 4)
            ]
            lines.append(f"| {fault.name}: {fault.description} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
