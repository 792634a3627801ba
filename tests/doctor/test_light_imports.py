"""A check of a local folder, as before each start of vLLM, loads no heavy library and no room it does not use."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from gptq_hybrid.demo.builder import DemoCheckpoint

HEAVY = ("torch", "numpy", "transformers", "gptqmodel", "vllm", "httpx", "huggingface_hub", "rich", "typer")
UNUSED = (
    "gptq_hybrid.checkpoint.files.http",
    "gptq_hybrid.checkpoint.files.hub",
    "gptq_hybrid.doctor.repair",
    "gptq_hybrid.calibration",
)


def loaded_by(program: str, *arguments: str) -> set[str]:
    """Modules that a fresh process has loaded after ``program``."""
    code = f"{program}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("room", ["checkpoint", "doctor", "hooks"])
def test_a_room_is_cheap_to_import(room: str) -> None:
    loaded = loaded_by(f"import gptq_hybrid.{room}")
    assert f"gptq_hybrid.{room}" in loaded
    assert loaded & {*HEAVY, *UNUSED} == set()


def test_a_check_of_a_folder_is_too(original: DemoCheckpoint) -> None:
    program = (
        "import sys\nfrom gptq_hybrid.doctor import check\nassert check(sys.argv[1]).verdict == 'serves'"
    )
    loaded = loaded_by(program, str(original.path))
    assert "gptq_hybrid.doctor.rules.weights" in loaded
    assert loaded & {*HEAVY, *UNUSED} == set()


def test_repair_and_servers_are_loaded_by_those_who_ask_for_them() -> None:
    loaded = loaded_by("import gptq_hybrid.doctor.repair")
    assert {"gptq_hybrid.doctor.repair", "gptq_hybrid.checkpoint.files.http"} <= loaded
    assert "httpx" not in loaded
