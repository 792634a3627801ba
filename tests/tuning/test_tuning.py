"""A tuning that is killed, what it writes, and what it learns from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gptq_hybrid.checkpoint import Checkpoint
from gptq_hybrid.common.errors import HybridError
from gptq_hybrid.doctor import Severity, run_rules
from gptq_hybrid.recipes import TuneSettings
from gptq_hybrid.streaming import CheckpointWeights
from gptq_hybrid.tuning import REPORT, TuneRequest, tune, write_tuned
from gptq_hybrid.tuning.texts import split_texts
from tests.streaming.conftest import packed
from tests.streaming.rounded import CHECKPOINT, HELDOUT, read_tensors

__all__ = ["packed"]  # a fixture
SETTINGS = TuneSettings(steps=6, tokens=400, scale_rate=5e-3, norm_rate=2e-3)


@pytest.fixture(scope="module")
def texts() -> list[list[int]]:
    from transformers import AutoTokenizer

    tokenizer, texts = AutoTokenizer.from_pretrained(CHECKPOINT), []
    for domain in ("en", "python", "de", "chat"):
        for line in (HELDOUT / f"{domain}.jsonl").read_text().splitlines()[:10]:
            row = json.loads(line)
            text = row.get("text") or row["messages"][-1]["content"]
            texts.append(tokenizer(text, add_special_tokens=False)["input_ids"][:64])
    return texts


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_stopped_tuning_ends_with_the_same_tensors_and_writes_scales_and_norms_alone(
    packed: Callable[..., Path], texts: list[list[int]], tmp_path: Path
) -> None:
    folder = packed()
    whole = tune(TuneRequest(CHECKPOINT, folder, texts, SETTINGS))
    assert whole is not None

    def request(settings: TuneSettings = SETTINGS) -> TuneRequest:
        return TuneRequest(CHECKPOINT, folder, texts, settings, tmp_path / "state", save_every=0)

    steps: list[int] = []
    stopped = tune(request(), on_step=lambda done, total: steps.append(done), stop=lambda: steps[-1] == 2)
    assert stopped is None
    assert steps == [0, 1, 2]
    with pytest.raises(HybridError, match="of another tuning"):
        tune(request(TuneSettings(steps=7, tokens=400)))
    steps.clear()
    again = tune(request(), on_step=lambda done, total: steps.append(done))
    assert again is not None
    assert steps == [3, 4, 5, 6]
    assert same(whole.tensors, again.tensors)
    assert whole.report == again.report

    # The divergence that is reported is of documents that no gradient saw, as the file holds it.
    checks = {check["step"]: check["kld"] for check in whole.report["stopping_kld"]}
    assert whole.report["step_taken"] > 0
    assert checks[whole.report["step_taken"]] == min(checks.values()) < 0.97 * checks[0]
    assert whole.report["in_sample_kld"]["after"] < whole.report["in_sample_kld"]["before"]

    before, target = read_tensors(folder), tmp_path / "tuned"
    write_tuned(folder, target, whole, keep_mtp=True)
    after = read_tensors(target)
    assert {n: (t.dtype, t.shape) for n, t in before.items()} == {
        n: (t.dtype, t.shape) for n, t in after.items()
    }
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == set(whole.tensors)
    assert all(name.endswith((".scales", "norm.weight")) for name in changed)
    # Scales are BF16 numbers in float16 tensors: serving in BF16 does not round them again.
    for name in changed:
        if name.endswith(".scales"):
            assert torch.equal(after[name].bfloat16().half(), after[name])
    errors = [f for f in run_rules(Checkpoint.open(target)) if f.severity is Severity.ERROR]
    assert errors == []
    assert json.loads((target / REPORT).read_text()) == whole.report
    # What was tuned is untouched, though most files are links to it.
    assert same(read_tensors(folder), before)
    fresh = tune(
        TuneRequest(CHECKPOINT, target, texts, TuneSettings(steps=1, tokens=400, scale_rate=0, norm_rate=0))
    )
    assert fresh is not None
    assert fresh.tensors == {}
    assert fresh.report["stopping_kld"][0]["kld"] == pytest.approx(min(checks.values()), abs=2e-8)


def test_nothing_learned_changes_nothing(packed: Callable[..., Path], texts: list[list[int]]) -> None:
    """A rate that ruins the model is noticed on the stopping part, and what was there before is taken."""
    ruined = tune(TuneRequest(CHECKPOINT, packed(), texts, TuneSettings(steps=2, tokens=400, scale_rate=5.0)))
    assert ruined is not None
    assert ruined.report["step_taken"] == 0
    assert ruined.tensors == {}


def test_texts_to_stop_on_are_none_of_those_learned_from(texts: list[list[int]]) -> None:
    split = split_texts(texts, 300)
    learned = {ids for step in split.steps for ids in step}
    assert learned.isdisjoint(split.stopping)
    assert len(split.stopping) == len({tuple(t) for t in texts}) // 10
    assert all(sum(map(len, step)) >= 300 for step in split.steps)
    # The order of the documents that come in does not matter.
    assert split_texts(texts[::-1], 300) == split
    with pytest.raises(HybridError, match="it takes 20"):
        split_texts(texts[:19], 300)


def test_a_checkpoint_in_act_order_is_refused(packed: Callable[..., Path], texts: list[Any]) -> None:
    folder = packed(act_order=1)
    assert CheckpointWeights(folder).checkpoint.quantization_config
    with pytest.raises(HybridError, match="act order"):
        tune(TuneRequest(CHECKPOINT, folder, texts, SETTINGS))
