"""Program: run ``vllm bench serve`` again and again in one process, as importing vLLM takes 18 s of a CPU.

Each line of stdin is a JSON list of arguments of ``vllm bench serve``. For each, one line of JSON on stdout says
when it is done: ``{"error": null}``, or what it raised. Everything that vLLM prints goes to stderr.

    python -m gptq_hybrid.receipt.bench_process
"""

from __future__ import annotations

import json
import os
import sys


def main() -> None:
    """Read arguments, run, answer; ends with stdin."""
    answers = os.fdopen(os.dup(1), "w")
    # Whatever prints, also from compiled code, must not mix with the answers.
    os.dup2(2, 1)
    from vllm.benchmarks.serve import add_cli_args
    from vllm.benchmarks.serve import main as bench_serve
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = FlexibleArgumentParser()
    add_cli_args(parser)
    for line in sys.stdin:
        error = None
        try:
            bench_serve(parser.parse_args(json.loads(line)))
        except SystemExit as ended:
            error = f"vllm bench serve refused its arguments (exit code {ended.code})"
        except Exception as raised:  # noqa: BLE001 - whatever it is, the other side has to hear of it
            error = f"{type(raised).__name__}: {raised}"
        answers.write(json.dumps({"error": error}) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
