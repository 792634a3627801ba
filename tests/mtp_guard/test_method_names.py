"""Whatever name vLLM accepts for MTP, a lost head is refused before any engine process starts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gptq_hybrid.demo.builder import DemoCheckpoint

pytestmark = pytest.mark.engine


def configure(path: Path, **speculative: Any) -> Any:
    """What `vllm serve` does before it starts an engine."""
    from vllm.engine.arg_utils import EngineArgs

    return EngineArgs(
        model=str(path),
        enforce_eager=True,
        enable_prefix_caching=False,
        max_model_len=256,
        limit_mm_per_prompt={"image": 0, "video": 0},
        speculative_config=speculative or None,
    ).create_engine_config()


@pytest.mark.parametrize("method", ["mtp", "qwen3_5_mtp", "qwen3_next_mtp", "deepseek_mtp"])
def test_every_name_of_the_method_is_checked(build: Callable[..., DemoCheckpoint], method: str) -> None:
    path = build(mtp="unindexed").path
    with pytest.raises(ValueError, match="15 of 15 MTP tensors lie in mtp"):
        configure(path, method=method, num_speculative_tokens=2)


def test_a_draft_given_as_a_model_of_its_own_is_the_one_checked(
    build: Callable[..., DemoCheckpoint], original: DemoCheckpoint
) -> None:
    lost = build(mtp="unindexed").path
    with pytest.raises(ValueError, match="15 of 15 MTP tensors lie in mtp"):
        configure(original.path, method="mtp", model=str(lost), num_speculative_tokens=2)


def test_an_intact_head_and_no_speculation_pass(
    build: Callable[..., DemoCheckpoint], original: DemoCheckpoint
) -> None:
    assert configure(original.path, method="mtp", num_speculative_tokens=2).speculative_config.method == "mtp"
    assert configure(build(mtp="unindexed").path).speculative_config is None
