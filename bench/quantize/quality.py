"""What the direct inverse does to quality: the trained mini model, quantized with and without it, on a CPU.

    python -m bench.quantize.quality WORK OUT.json

Recipe `static-mse`, 64 rows of the mini model's held-out text; both checkpoints, kept in WORK, are held against the
BF16 original by `qwen36 eval` in float32. (Products of 16-bit numbers on tensor cores need a GPU, and
`bench.quantize.hessian`.)
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from bench.arguments import command_line
from bench.quantize.report import quality as quality_table
from bench.results import Json, save

MINI = Path(__file__).parents[1] / "mini"
WAYS = ("gptqmodel", "direct")
_SAMPLES, _LENGTH, _DOCUMENTS = 64, 512, 6


def quantized(work: Path, way: str) -> Path:
    """The checkpoint of one way, made if it is not there."""
    from gptq_hybrid.quantize import QuantizeRequest, plan_run, quantize
    from gptq_hybrid.upstream.speedups import direct_inverse, faster

    target = work / way
    if not target.is_dir():
        with ExitStack() as stack:
            if way == "direct":
                # Around the definition's own, which then changes nothing.
                stack.enter_context(faster())
                stack.enter_context(direct_inverse(anywhere=True))
            request = QuantizeRequest(
                MINI / "checkpoint",
                target,
                calibration=str(MINI / "heldout"),
                samples=_SAMPLES,
                max_length=_LENGTH,
                resume=False,
            )
            quantize(plan_run(request))
    return target


def summary(evaluation: Json) -> Json:
    """Of an evaluation (``gptq_hybrid.evaluate.as_json``), what is about all domains."""
    (kld,) = [d for d in evaluation["comparisons"][0]["overall"]["differences"] if d["measure"] == "kld_mean"]
    return {
        "environment": evaluation["environment"],
        "documents": evaluation["settings"]["documents"],
        "tokens": evaluation["settings"]["tokens"],
        "checkpoints": {
            one["name"]: {measure: one["overall"][measure] for measure in ("kld_mean", "top1")}
            for one in evaluation["checkpoints"]
        },
        "difference": {**kld["difference"], "p": kld["p"]},
    }


def main() -> None:
    """Command line."""
    args = command_line(__doc__, "work", "out").parse_args()
    from gptq_hybrid.evaluate import EvalRequest, as_json, evaluate

    args.work.mkdir(parents=True, exist_ok=True)
    evaluation = evaluate(
        EvalRequest(
            MINI / "checkpoint",
            tuple(quantized(args.work, way) for way in WAYS),
            (str(MINI / "heldout"),),
            limit=_DOCUMENTS,
            max_length=_LENGTH,
            device="cpu",
        )
    )
    result = summary(as_json(evaluation))
    save(args.out, result)
    print(quality_table(result))


if __name__ == "__main__":
    main()
