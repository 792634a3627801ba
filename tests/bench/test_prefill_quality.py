"""`bench/prefill/quality`: the emulated FP8 linear, the checkpoint it is put into, and the summary."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from bench.prefill import quality
from bench.prefill.quality import CONTEXT, Linear, Stack, Way, behind, passed, quantize_rows, rounded, summary
from bench.results import load
from gptq_hybrid.evaluate import as_json, build_evaluation
from gptq_hybrid.packing import pack
from gptq_hybrid.streaming import CheckpointWeights, TextStack, make_batches
from tests.evaluate.made import random_scores, shifted
from tests.streaming.rounded import rounded as rounded_checkpoint
from tests.streaming.rounded import short_documents

K, N, GROUP = 256, 64, 128
# Every finite e4m3.
GRID = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).double()
GRID = GRID[GRID.isfinite()].unique()


class Packed:
    """A random packed linear, and the same numbers unpacked in float64."""

    def __init__(self, scales: torch.Tensor, codes: torch.Tensor | None = None) -> None:
        generator = torch.Generator().manual_seed(1)
        self.codes = torch.randint(0, 16, (N, K), generator=generator) if codes is None else codes
        self.scales = scales
        self.words = pack(self.codes, scales.t().contiguous(), 4)["qweight"]
        wide = scales.double().repeat_interleave(GROUP, dim=0).t()
        self.dense = (self.codes.double() - 8) * wide
        self.column = scales.double().abs().amax(dim=0) * 8 / 448

    def linear(self, way: Way) -> Linear:
        return Linear(self.words, self.scales, way)


def scales_of(dtype: torch.dtype = torch.bfloat16, spread: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(K // GROUP, N, generator=generator) * spread).exp().mul(0.01).to(dtype)


@pytest.fixture
def linear() -> Packed:
    return Packed(scales_of())


@pytest.fixture
def x() -> torch.Tensor:
    """Rows of very different size, an outlier and a row of zeros among them."""
    rows = torch.randn(3, 7, K, generator=torch.Generator().manual_seed(2))
    rows *= torch.logspace(-6, 3, 7)[None, :, None]
    rows[0, 0, 5], rows[1, 3] = 40.0, 0.0
    return rows


def nearest(values: torch.Tensor) -> torch.Tensor:
    """The e4m3 that is nearest, by trying all of them. float64."""
    return GRID[(values.flatten()[:, None] - GRID).abs().argmin(dim=1)].reshape(values.shape)


def test_fp8_is_the_product_of_the_e4m3_values_times_both_scales(linear: Packed, x: torch.Tensor) -> None:
    # That these are the right values is the next test's.
    rows, scales = quantize_rows(x)
    weight = linear.linear("fp8").values.double()
    expected = (rows.double() @ weight.t()) * scales.double() * linear.column
    # float32 sums of 256 products: of the sizes that are added up, not of what is left of them.
    size = (rows.double().abs() @ weight.abs().t()) * scales.double() * linear.column
    found = linear.linear("fp8")(x)
    assert found.dtype == x.dtype
    assert ((found.double() - expected).abs() <= 1e-5 * size).all()
    # And the rounding is there: it is no product of unrounded numbers.
    assert not torch.allclose(found.double(), x.double() @ linear.dense.t(), rtol=1e-3, atol=0)


def test_both_operands_are_rounded_to_the_nearest_e4m3(linear: Packed, x: torch.Tensor) -> None:
    rows, scales = quantize_rows(x)
    for found, wanted in (
        (rows.double(), x.double() / scales.double()),
        (linear.linear("fp8").values.double(), linear.dense / linear.column[:, None]),
    ):
        # Of two that are as near either will do.
        off, least = (found - wanted).abs(), (nearest(wanted) - wanted).abs()
        assert (off <= least + 1e-6 * wanted.abs()).all()


def test_a_row_of_any_size_fills_e4m3_and_zeros_stay_zeros(x: torch.Tensor) -> None:
    rows, scales = quantize_rows(x)
    largest = rows.float().abs().amax(dim=-1)
    least = 1 / (448 * 512)
    small = x.abs().amax(dim=-1) < 448 * least
    assert small[1, 3]
    assert (scales[..., 0][small] == least).all()
    assert (largest[~small] == 448).all()
    assert (largest[1, 3], scales[1, 3, 0]) == (0, least)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_column_never_saturates(dtype: torch.dtype) -> None:
    scales = scales_of(dtype, spread=3.0)
    scales[:, 0], scales[0, 1] = torch.finfo(torch.float16).max, -scales[0, 1] * 100
    scales[:, 2] = torch.finfo(torch.float16).smallest_normal
    found = Packed(scales, torch.zeros(N, K, dtype=torch.int64))
    values = found.linear("fp8").values
    assert values.isfinite().all()
    # -8 in the group of the largest scale is the end of the range, and is nothing else than that.
    assert (values.abs().amax(dim=1) == 448).all()
    exact = found.dense / found.column[:, None]
    # Half a step of three bits of mantissa, down to e4m3's least normal.
    assert ((values.double() - exact).abs() <= exact.abs().clamp(min=2.0**-6) / 16).all()


@pytest.mark.parametrize("way", ["fp8", "fp8-context"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_row_that_is_not_finite_leaves_other_rows_alone(
    linear: Packed, x: torch.Tensor, way: Way, bad: float
) -> None:
    module, broken = linear.linear(way), x.clone()
    broken[1, 2, 17] = bad
    found, expected = module(broken), module(x)
    others = torch.ones(x.shape[:2], dtype=torch.bool)
    others[1, 2] = False
    assert torch.equal(found[others], expected[others])
    assert not found[1, 2].isfinite().all()


def test_a_prompt_is_fp8_and_what_follows_is_not(linear: Packed) -> None:
    x = torch.randn(2, CONTEXT + 9, K, generator=torch.Generator().manual_seed(3))
    found = linear.linear("fp8-context")(x)
    fp8, packed = (linear.linear(way)(x) for way in ("fp8", "w4a16"))
    assert torch.allclose(found[:, :CONTEXT], fp8[:, :CONTEXT], rtol=0, atol=1e-5)
    assert torch.allclose(found[:, CONTEXT:], packed[:, CONTEXT:], rtol=0, atol=1e-5)
    assert not torch.allclose(fp8, packed, rtol=0, atol=1e-2)
    short = linear.linear("fp8-context")(x[:, :5])
    assert torch.allclose(short, fp8[:, :5], rtol=0, atol=1e-5)


def test_weights_alone_leave_rows_as_they_are(linear: Packed, x: torch.Tensor) -> None:
    module = linear.linear("fp8-weights")
    weight = module.values.double() * linear.column[:, None]
    expected, size = x.double() @ weight.t(), x.double().abs() @ weight.abs().t()
    found = module(x).double()
    assert ((found - expected).abs() <= 1e-5 * size).all()


def test_a8_rounds_rows_in_groups_and_leaves_weights_as_they_are(linear: Packed, x: torch.Tensor) -> None:
    exact = x.double() @ linear.dense.t()
    errors: dict[Way, float] = {}
    ways: tuple[Way, ...] = ("a8", "a8-e4m3", "a8-x10")
    for way in ways:
        module = linear.linear(way)
        module.keeps = False
        found = module(x).double()
        assert not found[1, 3].any()
        errors[way] = float(((found - exact).norm(dim=-1) / exact.norm(dim=-1)).nanmean())
    assert 0.001 < errors["a8"] < errors["a8-x10"] < 0.05
    assert errors["a8"] < 0.5 * errors["a8-e4m3"] < 0.05


def test_its_guard_is_the_plugins(linear: Packed) -> None:
    x = torch.randn(2, 40, K, generator=torch.Generator().manual_seed(3))
    module = linear.linear("a8")
    module(x)
    assert module.keeps is False
    wild = linear.linear("a8")
    spoilt = x.clone()
    spoilt[..., 7::GROUP] *= 300
    assert torch.equal(wild(spoilt), wild._packed(spoilt))
    assert wild.keeps is True
    # Decided once.
    assert torch.equal(wild(x), wild._packed(x))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> CheckpointWeights:
    return CheckpointWeights(rounded_checkpoint(tmp_path_factory.mktemp("rounded") / "w4"))


def test_the_emulation_is_in_every_packed_linear_and_changes_nothing_else(
    checkpoint: CheckpointWeights,
) -> None:
    batches = make_batches(short_documents()[:2], 4096)
    plain, _ = passed(TextStack(checkpoint, torch.device("cpu"), torch.float32), batches)
    stacks: dict[Way, Stack] = {way: Stack(checkpoint, way) for way in ("w4a16", "fp8-weights", "fp8")}
    runs = {way: passed(stack, batches)[0] for way, stack in stacks.items()}
    assert {len(stack.linears) for stack in stacks.values()} == {len(checkpoint.layout.quantized)}
    hidden = {way: run.hidden[0][0] for way, run in runs.items()}
    assert torch.allclose(hidden["w4a16"], plain.hidden[0][0], rtol=0, atol=1e-4)
    off = {way: (found - hidden["w4a16"]).square().mean().sqrt() for way, found in hidden.items()}
    assert 0 < off["fp8-weights"] < off["fp8"] < 0.5 * hidden["w4a16"].square().mean().sqrt()


def test_an_order_of_groups_that_the_route_cannot_read_is_refused(
    tmp_path: Path, checkpoint: CheckpointWeights
) -> None:
    module = checkpoint.layout.quantized[0].name
    words, scales = quality.packed(checkpoint, module)
    assert words.shape[1] == scales.shape[1]
    ordered = CheckpointWeights(rounded_checkpoint(tmp_path / "ordered", act_order=0))
    # 256 inputs are two groups; a random order of them is not contiguous.
    with pytest.raises(ValueError, match=f"{module} has groups that are not contiguous"):
        quality.packed(ordered, module)


def test_zero_points_are_refused(checkpoint: CheckpointWeights, monkeypatch: pytest.MonkeyPatch) -> None:
    read = CheckpointWeights.read

    def shifted_zeros(self: CheckpointWeights, name: str) -> torch.Tensor:
        return read(self, name) + 1 if name.endswith(".qzeros") else read(self, name)

    monkeypatch.setattr(CheckpointWeights, "read", shifted_zeros)
    with pytest.raises(ValueError, match="is not symmetric"):
        quality.packed(checkpoint, checkpoint.layout.quantized[0].name)


def test_scores_behind_a_prompt_are_those_of_later_rows() -> None:
    found = random_scores(np.random.default_rng(0), "de", 20)
    kept = behind(found, 30, 16)
    assert {s.key for s in kept} == {s.key for s in found if len(s.kld) >= 46}
    assert 0 < len(kept) < len(found)
    by_key = {s.key: s for s in found}
    for s in kept:
        whole = by_key[s.key]
        for name in ("kld", "top1", "nll_ref", "nll", "drafts_ref", "drafts"):
            assert np.array_equal(getattr(s, name), getattr(whole, name)[30:])


def test_a_summary_has_the_difference_to_w4a16_of_each_way_and_domain() -> None:
    base = [s for d in ("de", "c") for s in random_scores(np.random.default_rng(0), d, 12)]
    factors: dict[Way, float] = {"fp8": 1.25, "fp8-weights": 1.1, "a8-e4m3": 1.1, "a8-x10": 1.05, "a8": 1.02}
    scores = {way: shifted(base, factors.get(way, 1.0)) for way in quality.EVERYWHERE}
    found = summary(as_json(build_evaluation(scores, reference="bf16", resamples=200)))
    means = {way: row["kld_mean"]["value"] for way, row in found["ways"].items()}
    assert means["fp8"] == pytest.approx(1.25 * means["w4a16"])
    assert list(found["less_w4a16"]) == list(factors)
    kld = found["less_w4a16"]["fp8"]["kld_mean"]
    assert kld["value"] == pytest.approx(means["fp8"] - means["w4a16"])
    assert kld["low"] < kld["value"] < kld["high"]
    assert kld["p"] == pytest.approx(0.0001)  # of 9,999 random signs none did as much
    assert {name: row["share"] for name, row in found["domains"].items()} == {
        "de": pytest.approx(0.25),
        "c": pytest.approx(0.25),
    }


def test_six_digits_are_kept() -> None:
    assert rounded({"a": [0.123456789, {"b": (1234567.8, 3)}]}) == {"a": [0.123457, {"b": [1234570.0, 3]}]}


def test_the_committed_result_is_whole_and_its_differences_are_of_its_means() -> None:
    found = load(Path(quality.__file__).with_name("quality.json"))
    assert found is not None
    for name, ways in (("everywhere", quality.EVERYWHERE), ("context", quality.BEHIND)):
        part = found[name]
        assert tuple(part["ways"]) == ways
        means = {way: row["kld_mean"]["value"] for way, row in part["ways"].items()}
        for way, less in part["less_w4a16"].items():
            assert less["kld_mean"]["value"] == pytest.approx(means[way] - means["w4a16"], abs=1e-6)
        assert len(part["domains"]) == 15
    assert found["settings"]["recipe"] == quality.RECIPE
