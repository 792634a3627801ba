"""Linears rounded again: the solver against plain definitions, and a run that is stopped."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from gptq_hybrid.checkpoint import Checkpoint, layout_for
from gptq_hybrid.doctor import Severity, run_rules
from gptq_hybrid.packing import quantize_rtn
from gptq_hybrid.recipes import TuneSettings
from gptq_hybrid.streaming import CheckpointWeights, OutputHead, TextStack
from gptq_hybrid.tuning import AlignRequest, TuneRequest, align, tune
from gptq_hybrid.tuning._align import LayerAligner
from gptq_hybrid.tuning._codes import best_weight, round_to
from gptq_hybrid.tuning._head import head_tensors
from gptq_hybrid.tuning._sums import Sums
from gptq_hybrid.writer import replace_tensors
from tests.streaming.conftest import packed
from tests.streaming.rounded import CHECKPOINT, HELDOUT, read_config, read_tensors

__all__ = ["packed"]  # a fixture


def correlated(tokens: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(width, width, generator=generator) / width**0.5
    return torch.randn(tokens, width, generator=generator) @ (mixing + 0.3 * torch.eye(width))


def test_the_best_weight_is_that_of_ridge_regression() -> None:
    generator = torch.Generator().manual_seed(1)
    inputs, weight = correlated(400, 64), torch.randn(8, 64, generator=generator)
    targets = inputs @ torch.randn(64, 8, generator=generator)
    hessian = inputs.t() @ inputs
    found = best_weight(weight, hessian, targets.t() @ inputs)
    pull = (0.01 * hessian.diagonal().mean()).sqrt()
    wide, aim = torch.cat([inputs, pull * torch.eye(64)]), torch.cat([targets, pull * weight.t()])
    assert torch.allclose(found, torch.linalg.lstsq(wide, aim).solution.t(), atol=1e-3)
    # Where the targets are the weight's own outputs, it is that weight.
    same = best_weight(weight, hessian, weight @ hessian)
    assert torch.allclose(same, weight, atol=1e-5)


@pytest.mark.parametrize("bits", [4, 8])
def test_rounding_beats_the_nearest_codes_and_no_single_move_betters_it(bits: int) -> None:
    inputs = correlated(2000, 256)
    weight = torch.randn(32, 256, generator=torch.Generator().manual_seed(2))
    hessian = inputs.t() @ inputs

    def error(dense: torch.Tensor) -> float:
        return float(((inputs @ (dense - weight).t()) ** 2).sum())

    found = round_to(weight, hessian, bits, 128)
    codes, scales = quantize_rtn(weight, bits, 128, importance=hessian.diagonal())
    nearest = (codes.float() - (1 << (bits - 1))).unflatten(1, (2, 128)) * scales.float()[:, :, None]
    assert error(found.dense(bits)) < 0.7 * error(nearest.flatten(1))
    assert torch.equal(found.scales.bfloat16().float(), found.scales)
    assert int(found.codes.max()) < 1 << bits
    # What it says of its error is so, but for the unit and a trace of damping.
    assert found.error * float(hessian.diagonal().mean()) == pytest.approx(error(found.dense(bits)), rel=0.05)
    least = error(found.dense(bits))
    for row, column in [(0, 0), (3, 100), (31, 255), (17, 128)]:
        for move in (-1, 1):
            moved = found.dense(bits)
            moved[row, column] += move * found.scales[row, column // 128]
            assert error(moved) > least * 0.999


@pytest.fixture(scope="module")
def rows() -> list[list[int]]:
    from transformers import AutoTokenizer

    tokenizer, texts = AutoTokenizer.from_pretrained(CHECKPOINT), []
    for domain in ("en", "python", "de", "chat"):
        for line in (HELDOUT / f"{domain}.jsonl").read_text().splitlines()[:16]:
            row = json.loads(line)
            text = row.get("text") or row["messages"][-1]["content"]
            texts.append(tokenizer(text, add_special_tokens=False)["input_ids"][:160])
    return texts


def test_a_stopped_rounding_ends_with_the_same_file_nearer_to_the_original_on_other_texts(
    packed: Callable[..., Path], rows: list[list[int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # One round instead of three: half the time.
    monkeypatch.setattr("gptq_hybrid.tuning._codes._ROUNDS", 1)
    folder, learned, kept = packed(), rows[::2], rows[1::2]

    def request(name: str, work: Path | None) -> AlignRequest:
        return AlignRequest(CHECKPOINT, folder, tmp_path / name, learned, 1 << 20, work, save_every=0)

    assert align(request("whole", None)) == tmp_path / "whole"
    layers: list[int] = []
    work = tmp_path / "work"
    assert align(request("again", work), on_layer=lambda n, _: layers.append(n), stop=lambda: True) is None
    assert not (tmp_path / "again").exists()
    assert align(request("again", work), on_layer=lambda n, _: layers.append(n)) == tmp_path / "again"
    assert layers == [*range(1, 9)]
    assert not list(work.iterdir())
    before, after = read_tensors(folder), read_tensors(tmp_path / "whole")
    again = read_tensors(tmp_path / "again")
    assert all(torch.equal(after[name], again[name]) for name in after)

    assert {n: (t.dtype, t.shape) for n, t in before.items()} == {
        n: (t.dtype, t.shape) for n, t in after.items()
    }
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    linears = [linear.name for linear in layout_for(read_config()).quantized]
    assert changed == {
        "lm_head.weight", *(f"{name}.{part}" for name in linears for part in ("qweight", "scales"))
    }  # fmt: skip
    errors = [f for f in run_rules(Checkpoint.open(tmp_path / "whole")) if f.severity is Severity.ERROR]
    assert errors == []

    settings = TuneSettings(steps=0, tokens=200, align_tokens=1)
    measured = tune(TuneRequest(CHECKPOINT, tmp_path / "whole", kept, settings, before=folder))
    assert measured is not None
    assert measured.tensors == {}
    assert not measured.brought_nothing
    (check,) = measured.report["stopping_kld"]
    assert check["kld"] < 0.8 * measured.report["stopping_kld_before_rounding"]
    # The other way round it brings nothing, and is noticed.
    swapped = tune(TuneRequest(CHECKPOINT, folder, kept, settings, before=tmp_path / "whole"))
    assert swapped is not None
    assert swapped.brought_nothing


@pytest.mark.parametrize("bits", [8, 16])
def test_an_output_head_learns_what_the_final_states_have_lost(
    packed: Callable[..., Path], bits: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gptq_hybrid.tuning._codes._ROUNDS", 0)
    how: dict[str, Any] = {"also": "lm_head", "dynamic": {"+:^lm_head$": {"bits": 8}}} if bits == 8 else {}
    folder = tmp_path / "head"
    shutil.copytree(packed(**how), folder)
    original, weights = CheckpointWeights(CHECKPOINT), CheckpointWeights(folder)
    right = correlated(4000, 256)
    lost = 0.9 * right + 0.1 * torch.randn(4000, 256, generator=torch.Generator().manual_seed(3))
    sums = Sums()
    sums.add(lost[:3000], [("states", right[:3000])])
    head = head_tensors(original, weights, sums)
    before = {name: weights.read(name) for name in head}
    parts = ("qweight", "scales") if bits == 8 else ("weight",)
    assert {n: (t.dtype, t.shape) for n, t in head.items()} == {
        f"lm_head.{part}": (t.dtype, t.shape)
        for part, t in ((part, before[f"lm_head.{part}"]) for part in parts)
    }

    def error(checkpoint: CheckpointWeights) -> float:
        logits = OutputHead(TextStack(checkpoint, torch.device("cpu"), torch.float32)).logits(lost[3000:])
        return float((logits - right[3000:] @ original.read("lm_head.weight").float().t()).square().mean())

    was = error(weights)
    replace_tensors(folder, head)
    # A tenth of the size was missing; the noise cannot be taken back.
    assert error(CheckpointWeights(folder)) < 0.6 * was


def test_a_head_that_is_the_embedding_is_left_alone() -> None:
    tied: Any = SimpleNamespace(layout=SimpleNamespace(output_head=None))
    sums = Sums()
    sums.add(torch.ones(3, 4), [("states", torch.ones(3, 4))])
    assert head_tensors(tied, tied, sums) == {}


def test_rows_are_taken_up_to_the_tokens_that_were_asked_for() -> None:
    def taken(tokens: int) -> int:
        return len(AlignRequest(Path(), Path(), Path(), [[1] * 10] * 5, tokens).taken())

    assert [taken(n) for n in (1, 10, 29, 30, 1000)] == [1, 1, 2, 3, 5]


class Layer(nn.Module):
    """A decoder layer as far as it is walked through: linear, so that any error of the stream can be taken back."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.input_layernorm, self.post_attention_layernorm = nn.Identity(), nn.Identity()
        self.linear_attn, self.mlp = nn.Sequential(), nn.Sequential()
        for block, names in ((self.linear_attn, ("in_proj", "out_proj")), (self.mlp, ("up", "down_proj"))):
            for name in names:
                block.add_module(name, nn.Linear(width, width, bias=False))


def test_what_writes_to_the_residual_stream_takes_back_the_error_of_what_came_before() -> None:
    width, tokens = 128, 600
    torch.manual_seed(0)
    original = Layer(width)
    layer = copy.deepcopy(original)
    right = correlated(tokens, width)[None]
    states = [right.clone()], [0.9 * right]
    forms = {"linear_attn.out_proj": (8, 128)}
    batches: Any = [SimpleNamespace(lengths=[tokens])]
    stack: Any = SimpleNamespace(device=torch.device("cpu"))
    found = LayerAligner(stack, original, layer, batches, states, forms).run()
    assert list(found) == ["linear_attn.out_proj"]
    (first,), (second,) = states
    # A tenth of the stream was missing.
    assert float((first - second).norm() / first.norm()) < 0.03
