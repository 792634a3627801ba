"""The GPUs that are described are those that programs see, and no more."""

from __future__ import annotations

from pathlib import Path

import pytest

from gptq_hybrid.common.machine import gpus

# Two cards, or the one that is asked for by number.
SMI = """#!/bin/sh
for each in "$@"; do case "$each" in --id=*) only=${each#--id=};; esac; done
[ "$only" = 1 ] || echo "NVIDIA L40S, 46068, 8.9, 595.10"
[ "$only" = 0 ] || echo "NVIDIA GeForce RTX 3090, 24576, 8.6, 595.10"
"""


@pytest.mark.parametrize(
    ("chosen", "names"),
    [
        (None, ["NVIDIA L40S", "NVIDIA GeForce RTX 3090"]),
        ("0", ["NVIDIA L40S"]),
        ("1", ["NVIDIA GeForce RTX 3090"]),
        ("0,1", ["NVIDIA L40S", "NVIDIA GeForce RTX 3090"]),
        ("", []),
        ("-1", []),
        ("MIG-5", ["NVIDIA L40S", "NVIDIA GeForce RTX 3090"]),
    ],
)
def test_a_card_that_is_hidden_from_cuda_is_not_described(
    chosen: str | None, names: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "nvidia-smi"
    script.write_text(SMI)
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if chosen is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", chosen)
    assert [gpu.name for gpu in gpus()] == names
