"""Does a real vLLM do what `qwen36 check` says it will?

    python -m tests.corpus.engines QUANTIZED [--only CASE …] [--out FILE]

QUANTIZED is the demo checkpoint as `qwen36 demo --keep` quantizes it. Cases of the corpus (`tests/corpus`) are
served by a stock `vllm serve` (no plugin of ours; on CPUs without AVX-512 the int4 kernel it lacks), with the flags
of the line that `check` prints, two drafts, and one greedy prompt whose answer is known. What an engine can do:

* fine: it starts, the text is right, every draft is accepted;
* dead head: it starts, the text is right, drafts are refused;
* wrong: it starts and the text is wrong;
* refuses: it does not start, or ends at the first prompt.

`check` must never say "serves" of one that is not fine. That it calls one faulty that runs fine is no
disagreement: the demo head barely uses its MLP, and an engine does not miss what it does not use.
"""

from __future__ import annotations

import os
import platform
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

from bench.arguments import command_line
from bench.mtp_faults import w4_reference_cpu
from bench.mtp_faults.server import Outcome, serve_once
from bench.results import Json, load, save
from gptq_hybrid.demo.builder import DemoCheckpoint
from gptq_hybrid.doctor import check
from gptq_hybrid.doctor.serve_line import serve_arguments
from tests.corpus import CASES, Bases, CorpusCase, Workshop
from tests.corpus.case import odd

TOKENS = 48
GOOD = tuple(
    odd(f"good-{base}", base, "", lambda shop: None) for base in ("gptq", "bf16", "bf16-inline", "bf16-text")
)
CHOSEN = (
    # It must serve, whatever was warned of.
    "good-gptq", "good-bf16", "good-bf16-inline", "good-bf16-text", "duplicate-same", "orphan", "unnamed-tensor",
    "stale-entry", "no-index", "no-chat-template", "no-video-processor", "no-vision-tensors", "one-left-dense",
    "excluded-and-dense", "head-down-packed", "text-only-long-names", "no-tokenizer-config",
    # It must not.
    "head-unindexed", "head-no-fc", "head-short-module-list", "head-packed-but-excluded", "dynamic-null",
    "fused-half-dense", "g-idx-denied-by-hand", "act-order", "act-order-flag-only", "no-quantization-config",
    "asymmetric", "tokenizer-cut", "unknown-tensor", "no-processor", "no-tokenizer", "short-names",
    "norm-missing", "scales-nan", "shard-cut", "head-trailing-bytes", "index-not-json", "consolidated",
    "text-only-mrope",
)  # fmt: skip

# The CPU's flags turn images off, and with them the processor.
WITH_IMAGES = frozenset({"no-processor", "no-video-processor"})


def outcome_of(run: Outcome, right: str) -> str:
    """One of the four words of the module's docstring."""
    if not run.started:
        return "refuses"
    if run.text != right:
        return "wrong"
    return "fine" if run.proposed and run.accepted == run.proposed else "dead head"


def agrees(verdict: str, outcome: str) -> bool:
    return outcome == "fine" or verdict != "serves"


def run_case(case: CorpusCase, bases: Bases, scratch: Path, shim: Path | None) -> Json:
    shop = Workshop(bases[case.base], scratch / case.id)
    demo = DemoCheckpoint.open(bases[case.base])
    prompt = demo.loop[:5]
    case.apply(shop)
    report = check(shop.folder, plugin=False)
    extra: list[str] = []
    if report.checkpoint is not None:
        arguments = serve_arguments(report.checkpoint, drafts=0)[1:]
        extra = [a for a in arguments if a]
    if case.id in WITH_IMAGES:
        extra += ["--limit-mm-per-prompt", '{"image": 1, "video": 0}']
    plugins, log = w4_reference_cpu.NAME if shim else "", scratch / f"{case.id}.log"
    run = serve_once(shop.folder, prompt, TOKENS, plugins=plugins, log=log, pythonpath=shim, extra=extra)
    outcome = outcome_of(run, demo.expected_text(prompt, TOKENS))
    return {
        "verdict": report.verdict,
        "rules": sorted({finding.rule for finding in report.findings}),
        "engine": outcome,
        "accepted": run.accepted,
        "proposed": run.proposed,
        "seconds": run.seconds,
    }


def main() -> int:
    parser = command_line(__doc__, "quantized")
    parser.add_argument(
        "--reference", type=Path, help="the same with the recipe `reference`, for act-order cases"
    )
    parser.add_argument("--only", nargs="+", choices=CHOSEN, default=CHOSEN)
    parser.add_argument("--out", type=Path, default=Path("bench/doctor/agreement.json"))
    args = parser.parse_args()
    cases = {case.id: case for case in (*GOOD, *CASES)}
    results = load(args.out) or {"cases": {}}
    results["vllm"] = version("vllm")
    results["machine"] = f"CPU, {os.cpu_count()} cores, Python {platform.python_version()}"
    recipes = {"static": args.quantized, "reference": args.reference or args.quantized}
    with tempfile.TemporaryDirectory() as temporary:
        scratch = Path(temporary)
        shim = scratch / "shim" if w4_reference_cpu.needed() else None
        if shim:
            w4_reference_cpu.install_into(shim)
        bases = Bases(scratch / "bases", recipes.__getitem__)
        for name in args.only:
            row = run_case(cases[name], bases, scratch, shim)
            results["cases"][name] = row
            save(args.out, results)
            print(name, row["verdict"], row["engine"], flush=True)
    return int(not all(agrees(row["verdict"], row["engine"]) for row in results["cases"].values()))


if __name__ == "__main__":
    sys.exit(main())
