"""Ranks that measured otherwise serve alike: the slowest decides."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("vllm")

from tests.ranks import Ranks  # noqa: E402
from vllm_qwen36_plugin.prefill import ranks  # noqa: E402
from vllm_qwen36_plugin.prefill.profile import Starts  # noqa: E402
from vllm_qwen36_plugin.prefill.ranks import Choice, slowest  # noqa: E402

pytestmark = pytest.mark.engine  # no engine, but vLLM is imported: some seconds

PLAIN = Choice(Starts(exact=512), ("exact",), ("vllm",))


def joined(*choices: Choice) -> Choice:
    return slowest([{"shape": choice} for choice in choices])["shape"]


def with_starts(**starts: Any) -> Choice:
    return replace(PLAIN, starts=Starts(**starts))


def test_ranks_that_agree_keep_their_choice() -> None:
    assert joined(PLAIN, PLAIN) == PLAIN


def test_a_route_begins_where_it_wins_on_every_rank() -> None:
    assert joined(PLAIN, with_starts(exact=1024)).starts.exact == 1024
    assert joined(PLAIN, with_starts(exact=None), PLAIN).starts.exact is None
    assert joined(with_starts(a8=256), with_starts(a8=384)).starts.a8 == 384
    assert joined(with_starts(a8=256), PLAIN).starts.a8 is None


def test_a_route_that_failed_on_one_rank_is_off_on_all() -> None:
    two = replace(PLAIN, routes=("fp8", "exact"))
    assert joined(two, PLAIN).routes == ("exact",)
    assert joined(PLAIN, replace(PLAIN, routes=())).routes == ()


def test_one_gemm_serves_fp8_on_all_ranks_or_it_never_starts() -> None:
    both = replace(PLAIN, starts=Starts(fp8=256, fp8_gemm="torch"), gemms=("vllm", "torch"))
    assert joined(both, both).starts.fp8_gemm == "torch"
    assert joined(both, replace(both, gemms=("vllm",))).starts == Starts(fp8=256, fp8_gemm="vllm")
    assert joined(replace(both, gemms=("torch",)), replace(both, gemms=("vllm",))).starts.fp8 is None


@pytest.mark.parametrize(
    ("one", "other", "both"),
    [
        (((1, 64),), ((1, 64),), ((1, 64),)),
        (((1, 64), (512, None)), ((1, 16),), ((1, 16),)),
        (((1, None),), ((5, 8), (128, None)), ((5, 8), (128, None))),
        (((1, 16),), ((17, 32),), ()),
        (((1, 16),), (), ()),
    ],
)
def test_another_kernel_takes_the_numbers_of_tokens_that_it_wins_everywhere(
    one: Any, other: Any, both: Any
) -> None:
    assert joined(with_starts(humming=one), with_starts(humming=other)).starts.humming == both


def test_one_rank_tells_what_serves_each_gpu(
    shown: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    two = Ranks(2)
    monkeypatch.setattr(ranks, "rank", two.rank)
    two.run(lambda _: ranks.tell("prefill", "auto", "vllm-qwen36-plugin: it serves"))
    assert shown() == "INFO vllm-qwen36-plugin: it serves (on each of 2 GPUs)"


def test_a_shape_that_one_rank_lacks_is_left_to_those_that_have_it() -> None:
    late = with_starts(exact=2048)
    common = slowest([{"a": PLAIN, "b": PLAIN}, {"a": late}])
    assert common == {"a": late, "b": PLAIN}


class Entry:
    """An entry of the dispatch table, as far as ranks look at it."""

    def __init__(self, key: str, choice: Choice) -> None:
        from types import SimpleNamespace

        self.shape = SimpleNamespace(key=key)
        self.starts, self.routes, self.gemms = choice.starts, choice.routes, choice.gemms


def one_of_two(number: int, folder: str) -> None:
    """What each of two processes does: vLLM's own groups over gloo, as two workers have them."""
    os.environ |= {"VLLM_DIST_IDENT": "test", "LOCAL_RANK": str(number)}
    from vllm.config import VllmConfig, set_current_vllm_config
    from vllm.distributed import (
        destroy_distributed_environment,
        destroy_model_parallel,
        ensure_model_parallel_initialized,
        init_distributed_environment,
    )

    from vllm_qwen36_plugin.prefill.ranks import agree
    from vllm_qwen36_plugin.upstream.tensor_parallel import Rank, gathered, gathered_logits, rank, told

    with set_current_vllm_config(VllmConfig()):
        init_distributed_environment(2, number, f"file://{folder}/store", number, "gloo")
        ensure_model_parallel_initialized(2, 1)
    assert rank() == Rank(number, 2)
    assert told({"from": number}) == [{"from": 0}, {"from": 1}]
    part = torch.arange(6, dtype=torch.int32).view(2, 3) + 100 * number
    for dim in (0, 1):
        assert torch.equal(
            gathered(part, dim), torch.cat([part - 100 * number, part - 100 * number + 100], dim)
        )
    logits = torch.full((2, 4), float(number), dtype=torch.bfloat16)
    assert gathered_logits(logits)[0].tolist() == [0.0] * 4 + [1.0] * 4
    mine = with_starts(exact=512 * (number + 1))
    entries = [Entry("marlin", mine), Entry("other", PLAIN)]
    agree(entries)  # type: ignore[arg-type]
    assert [entry.starts.exact for entry in entries] == [1024, 512]
    Path(folder, f"done-{number}").touch()
    destroy_model_parallel()
    destroy_distributed_environment()


def test_two_processes_agree_and_gather_over_vllms_groups(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=one_of_two, args=(number, str(tmp_path))) for number in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
        process.kill()
    assert [process.exitcode for process in processes] == [0, 0]
    assert sorted(path.name for path in tmp_path.glob("done-*")) == ["done-0", "done-1"]
