"""A recipe with ``[tune]``: killed while it tunes, the run goes on there and does no layer again.

gptqmodel's part is left out: in its place stands the trained small model, rounded to nearest.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from gptq_hybrid.checkpoint import layout_for
from gptq_hybrid.cli._quantize import tuning_line
from gptq_hybrid.losses import LOG_NAME, ModuleRecord, write_log
from gptq_hybrid.quantize import QuantizeRequest, QuantizeResult, plan_run, quantize, run
from gptq_hybrid.quantize.state import RunState, state_folder
from gptq_hybrid.recipes import load_recipe
from gptq_hybrid.writer import judge
from tests.streaming.rounded import CHECKPOINT, HELDOUT, read_config, read_tensors, rounded

RECIPE = """
description = "Tuned."
[quantize_config]
bits = 4
group_size = 128
sym = true
desc_act = true
static_groups = true
[tune]
steps = 4
tokens = 300
documents = 30
scale_rate = 5e-4
norm_rate = 2e-4
align_tokens = 6000
"""


class KilledError(Exception):
    """Stands for a kill."""


@dataclass
class Tuned:
    """A run that was killed in its third step, and the one that went on."""

    untuned: Path
    target: Path
    quantized: list[Path] = field(default_factory=list)
    rounded: list[int] = field(default_factory=list)
    facts: dict[str, str] = field(default_factory=dict)
    result: QuantizeResult | None = None


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Tuned:
    folder = tmp_path_factory.mktemp("tuned")
    (folder / "tuned.toml").write_text(RECIPE)
    request = QuantizeRequest(
        CHECKPOINT,
        folder / "out",
        recipe=load_recipe(folder / "tuned.toml"),
        calibration=str(HELDOUT / "en.jsonl"),
        samples=12,
        max_length=512,
    )
    observed = Tuned(folder / "untuned", request.target)
    modules = [linear.name for linear in layout_for(read_config()).quantized]
    records = {name: ModuleRecord(name, relative_error=0.01, outcome="gptq") for name in modules}

    def round_to_nearest(
        plan: Any, state: Any, calibration: Any, draft_vocab: Any, target: Path, **_: Any
    ) -> QuantizeResult:
        observed.quantized.append(target)
        rounded(target)
        write_log(target / LOG_NAME, list(records.values()))
        verdict = judge(records.values(), request.limits)
        return QuantizeResult(target, records, verdict, calibration.manifest, 1, 1, 0.0)

    def kill(done: int, total: int) -> None:
        if done == 2:
            raise KilledError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "_quantize", round_to_nearest)
        patch.setattr("gptq_hybrid.tuning._codes._ROUNDS", 0)
        with pytest.raises(KilledError):
            quantize(request, on_step=kill, on_rounded=lambda done, total: observed.rounded.append(done))
        assert not request.target.exists()
        shutil.copytree(RunState(state_folder(request.target)).untuned, observed.untuned)
        plan = plan_run(request)
        observed.facts = dict(plan.facts)
        observed.result = quantize(plan, on_rounded=lambda done, total: observed.rounded.append(done))
    return observed


def test_a_run_that_was_killed_while_tuning_does_no_layer_again(tuned: Tuned) -> None:
    state = state_folder(tuned.target)
    assert tuned.quantized == [RunState(state).untuned]
    # Its linears were rounded again in the run that was killed, and not in the other.
    assert tuned.rounded == [*range(1, 9)]
    assert "continuing with tuning" in tuned.facts["state"]
    assert "at most 6,000 tokens of the calibration; 4 steps of 300 tokens" in tuned.facts["tuning"]
    assert not state.exists()
    assert tuned.result is not None
    assert tuned.result.target == tuned.target
    assert len(tuned.result.records) == len(layout_for(read_config()).quantized)


def test_the_target_has_other_codes_scales_norms_and_head_and_is_else_the_same(tuned: Tuned) -> None:
    before, after = read_tensors(tuned.untuned), read_tensors(tuned.target)
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    endings = (".qweight", ".scales", "norm.weight", "lm_head.weight")
    assert changed == {name for name in changed if name.endswith(endings)}
    assert all(any(name.endswith(ending) for name in changed) for ending in endings)
    for name in ("config.json", "tokenizer.json", LOG_NAME):
        assert (tuned.untuned / name).read_bytes() == (tuned.target / name).read_bytes()


def test_what_is_said_of_a_tuning_is_of_texts_that_no_gradient_saw(tuned: Tuned) -> None:
    assert tuned.result is not None
    report = json.loads((tuned.target / "tuning.json").read_text())
    assert report == tuned.result.tuning
    assert sum(tuned.result.calibration["further"]["documents"].values()) == 30
    assert report["tuning_documents"] + report["stopping_documents"] <= 30
    # Two stages, and the divergence before the first of them.
    assert report.pop("stopping_kld_before_rounding") > report["stopping_kld"][-1]["kld"] > 0
    checks = [{"step": 0, "kld": 0.02}, {"step": 4, "kld": 0.018}]
    line = tuning_line({**report, "step_taken": 4, "stopping_kld": checks})
    assert "0.0200 → 0.0180 nats a token (-10.0%)" in line
    assert f"{report['stopping_documents']} documents kept apart" in line
    rounded = {**report, "stopping_kld_before_rounding": 0.04, "stopping_kld": checks}
    assert "Codes rounded again: divergence" in (line := tuning_line({**rounded, "step_taken": 0}))
    assert "0.0400 → 0.0200 nats a token (-50.0%)" in line
    worse = {**rounded, "stopping_kld_before_rounding": 0.01}
    assert "stays as it was" in tuning_line({**worse, "step_taken": 4})
    assert "Codes rounded again; Tuning, 4 steps: " in tuning_line({**rounded, "step_taken": 4})
    assert "brought nothing" in tuning_line({**report, "step_taken": 0, "stopping_kld": checks})
