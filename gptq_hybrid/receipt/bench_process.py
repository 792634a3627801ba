"""Program: run ``vllm bench serve`` again and again in one process, as importing vLLM takes 18 s of a CPU.

Each line of stdin is a JSON list of arguments of ``vllm bench serve``. For each, one line of JSON on stdout says
when it is done: ``{"error": null}``, or what it raised. Everything that vLLM prints goes to stderr.

    python -m gptq_hybrid.receipt.bench_process
"""

from __future__ import annotations

import json
import os
import runpy
import sys

# The program behind the command `vllm`. What it imports stays imported, so only the first run takes long.
_PROGRAM = "vllm.entrypoints.cli.main"


def main() -> None:
    """Read arguments, run, answer; ends with stdin."""
    answers = os.fdopen(os.dup(1), "w")
    # Whatever prints, also from compiled code, must not mix with the answers.
    os.dup2(2, 1)
    for line in sys.stdin:
        answers.write(json.dumps({"error": run(json.loads(line))}) + "\n")
        answers.flush()


def run(arguments: list[str]) -> str | None:
    """Run the command once; return what went wrong, or None."""
    sys.argv = ["vllm", "bench", "serve", *arguments]
    try:
        runpy.run_module(_PROGRAM, run_name="__main__", alter_sys=False)
    except SystemExit as ended:
        return f"it refused its arguments (exit code {ended.code})" if ended.code else None
    except Exception as raised:  # noqa: BLE001 - whatever it is, the other side has to hear of it
        return f"{type(raised).__name__}: {raised}"
    return None


if __name__ == "__main__":
    main()
