"""`bench/quality`: the report holds what the results say, and the recipes follow it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gptq_hybrid.quantize._estimate import quantized_bytes

from bench.quality.changes import change, same_seed, seed_names, small_runs
from bench.quality.grid import BY_NAME, Experiment
from bench.quality.report import README, filled
from bench.quality.results import ALL, Results, load, merge, text_of
from bench.quality.sizes import extra_bytes, layout_27b, size_of
from gptq_hybrid.checkpoint.formats.gptq import settings as module_settings
from gptq_hybrid.checkpoint.quantization import dynamic_rule
from gptq_hybrid.evaluate import compare, summarize
from gptq_hybrid.recipes import load_recipe
from gptq_hybrid.recipes._recipe import DEFAULT_RECIPE
from gptq_hybrid.writer import Packaging
from tests.evaluate.made import random_scores


@pytest.fixture(scope="module")
def results() -> Results:
    return load()


def settings_of(experiment: Experiment) -> Mapping[str, Any]:
    if experiment.base is not None:
        return settings_of(BY_NAME[experiment.base])
    assert experiment.settings is not None
    return experiment.settings


def bits_by_module(settings: Mapping[str, Any]) -> dict[str, tuple[int, int] | None]:
    """Bits and group size of every module of the 27B, by gptqmodel's names and by vLLM's fused ones."""
    layout = layout_27b()
    names = [linear.name for linear in layout.quantized] + [fused.name for fused in layout.fused]
    names += [name.replace("model.language_model.", "language_model.model.") for name in names]
    return {
        name: None if dynamic_rule(settings, name) is False else module_settings(settings, name)
        for name in names
    }


def test_readme_holds_the_tables_of_the_results(results: Results) -> None:
    text = README.read_text(encoding="utf-8")
    assert filled(text, results) == text, "run python -m bench.quality.report"


def test_a_marker_without_a_table_is_an_error(results: Results) -> None:
    text = README.read_text(encoding="utf-8").replace("<!-- table: heads -->", "<!-- table: feet -->")
    with pytest.raises(ValueError, match="feet"):
        filled(text, results)


def test_every_experiment_has_every_domain_and_is_in_the_grid(results: Results) -> None:
    for run in results.runs.values():
        assert run.group == BY_NAME[run.name].group
        assert set(run.figures["kld_mean"]) == set(results.domains)
        if run.against is not None:
            assert run.against == BY_NAME[run.name].control
            assert set(run.differences["kld_mean"]) == set(results.domains)
            # Both values have six digits: the difference of these has fewer.
            control = results.control(run).kld.value
            expected = run.kld.value - control
            assert run.differences["kld_mean"][ALL].value == pytest.approx(expected, abs=1e-5 * control)


def call(seed: int, names: tuple[str, ...]) -> dict[str, Any]:
    """What `experiments.py` writes, of made-up scores: the first name is the control."""
    # Only the KLD may differ: the reference's figures are those of one model.
    scores = {
        name: random_scores(np.random.default_rng(0), "de", 12, level=0.01 * (i + 1 + seed))
        for i, name in enumerate(names)
    }
    found = {}
    for name in names:
        found[name] = {
            "group": "method",
            "seconds": 1.23456789,
            "summary": asdict(summarize(name, scores[name])),
        }
        if name != names[0]:
            against = compare((names[0], name), scores[names[0]], scores[name])
            found[name]["against"] = asdict(against)
    settings = {"max_length": 1024, "drafts": 2, "dtype": "float32", "control": names[0]}
    return {"environment": {"device": "none"}, "settings": settings, "experiments": found}


def test_merging_keeps_the_first_call_and_turns_differences_round(tmp_path: Path) -> None:
    first, second = call(0, ("static", "a")), call(1, ("static", "a", "b"))
    path = tmp_path / "results.json"
    path.write_text(text_of(merge([json.loads(json.dumps(c)) for c in (first, second)])), encoding="utf-8")
    found = load(path)
    assert {name: run.call for name, run in found.runs.items()} == {"static": 0, "a": 0, "b": 1}
    assert [run.call for run in found.again["a"]] == [1]
    assert found.control(found.runs["b"]) is found.again["static"][0]
    original = first["experiments"]["a"]["against"]["overall"]["differences"][0]["difference"]
    stored = found.runs["a"].differences["kld_mean"][ALL]
    assert stored.value == pytest.approx(-original["value"], rel=1e-5)
    assert (stored.low, stored.high) == pytest.approx((-original["high"], -original["low"]), rel=1e-5)
    assert stored.value > 0, "a was made worse than its control"


def test_calls_with_other_settings_are_not_merged() -> None:
    first, second = call(0, ("static",)), call(0, ("static",))
    second["settings"]["max_length"] = 512
    with pytest.raises(ValueError, match="other settings"):
        merge([first, second])


def test_sizes_of_packed_heads_are_those_the_producer_announces() -> None:
    static = load_recipe("static").settings
    packed = quantized_bytes(layout_27b(), static, Packaging(lm_head_bits=8, mtp_bits=4))
    assert size_of(BY_NAME["lm-head-w8-mtp-w4"], layout_27b()).total == packed


def test_the_default_recipe_is_the_search_for_scales_and_beats_static_with_every_seed(
    results: Results,
) -> None:
    recipe = load_recipe(DEFAULT_RECIPE)
    assert recipe.settings == settings_of(BY_NAME["static-mse"])
    assert recipe.packaging == Packaging()
    names = seed_names(results, "static-mse")
    assert len(names) == 4
    for name in names:
        run = results.runs[name]
        control = same_seed(run, results)
        assert run.kld.high < control.kld.low, name


def test_nothing_else_of_the_same_size_is_better_than_the_default(results: Results) -> None:
    default = results.runs["static-mse"]
    size = size_of(BY_NAME["static-mse"], layout_27b())
    for run in results.runs.values():
        if run.group == "method" and size_of(BY_NAME[run.name], layout_27b()) == size:
            assert run.kld.value >= default.kld.value, run.name


@pytest.mark.parametrize(
    ("recipe", "experiment"),
    [("compact", "mse-compact"), ("careful", "mse-out-attention-8"), ("static", "static")],
)
def test_recipe_gives_every_module_of_the_27b_what_its_experiment_did(recipe: str, experiment: str) -> None:
    settings, tried = load_recipe(recipe).settings, settings_of(BY_NAME[experiment])
    assert {k: v for k, v in settings.items() if k != "dynamic"} == {
        k: v for k, v in tried.items() if k != "dynamic"
    }
    assert bits_by_module(settings) == bits_by_module(tried)


def test_what_the_readmes_say_of_gptaq_is_in_its_results() -> None:
    runs = small_runs()
    readmes = [
        README.read_text(encoding="utf-8"),
        (README.parents[2] / "gptq_hybrid" / "recipes" / "README.md").read_text(encoding="utf-8"),
    ]
    for name, among in (("small-mse-gptaq", readmes), ("small-gptaq", readmes[:1])):
        experiment, run = BY_NAME[name], runs[name]
        assert run["against"]["a"] == experiment.control
        (found,) = [d for d in run["against"]["overall"]["differences"] if d["measure"] == "kld_mean"]
        base = runs[experiment.control]["summary"]["overall"]["kld_mean"]["value"]
        value, low, high = (100 * found["difference"][end] / base for end in ("value", "low", "high"))
        for text in among:
            assert f"{value:.1f} % [{low:.1f}, {high:.1f}]" in text, name
        assert found["p"] == 0.0001
        assert f"{1000 * run['summary']['overall']['kld_mean']['value']:.2f}" in readmes[0]


def test_the_recipe_with_gptaq_is_its_experiment() -> None:
    experiment = BY_NAME["small-mse-gptaq"]
    recipe = load_recipe("static-mse-gptaq")
    assert recipe.settings == {**(experiment.settings or {}), "gptaq": experiment.gptaq}
    assert recipe.packaging == Packaging()


def test_stock_vllm_served_every_checkpoint_as_the_readme_says() -> None:
    text = README.read_text(encoding="utf-8")
    found = json.loads(README.with_name("served-vllm-0.26.json").read_text(encoding="utf-8"))
    assert found["plugin"] == "off"
    for served in found["served"]:
        assert served["sample"].strip()
        name = {"checkpoint": "the mini model itself, BF16"}.get(
            served["checkpoint"], f"`{served['checkpoint']}`"
        )
        (row,) = [line for line in text.splitlines() if line.startswith(f"| {name} | ")][-1:]
        assert row.endswith(f"| {served['acceptance_length']:.2f} |")
        bits = {kernel.split()[-1] for kernel in served["kernels"].values() if "Marlin" in kernel}
        assert all(f"{b} bit" in row for b in bits)
        assert ("Marlin" in row) is bool(bits)


def test_compact_packs_the_heads_as_its_experiment_did_and_that_costs_no_drafts(results: Results) -> None:
    packaging = load_recipe("compact").packaging
    assert packaging == Packaging(lm_head_bits=8, mtp_bits=8, text_only=True)
    packed = quantized_bytes(layout_27b(), load_recipe("compact").settings, Packaging(8, 8))
    assert size_of(BY_NAME["mse-compact"], layout_27b()).total == packed
    run = results.runs["mse-compact"]
    assert run.against == "static-mse"
    assert change(run, results).high < 0.01
    assert run.differences["acceptance_length"][ALL].p > 0.05
    assert change(results.runs["mtp-w4"], results, "acceptance_length").high < -0.02


def test_careful_is_closer_to_the_original_than_the_default(results: Results) -> None:
    run = results.runs["mse-out-attention-8"]
    default = next(
        r for r in (results.runs["static-mse"], *results.again["static-mse"]) if r.call == run.call
    )
    assert run.kld.high < default.kld.low


def test_careful_spares_the_kinds_of_module_that_gain_most_by_the_byte_at_27b(results: Results) -> None:
    kinds = {
        "static-gdn-out-8": "layers.0.linear_attn.out_proj",
        "static-gdn-in-8": "layers.0.linear_attn.in_proj_z",
        "static-attention-8": "layers.3.self_attn.q_proj",
        "static-down-8": "layers.0.mlp.down_proj",
        "static-gate-up-8": "layers.0.mlp.up_proj",
    }
    careful = load_recipe("careful").settings
    gain: dict[bool, list[float]] = {True: [], False: []}
    for name, module in kinds.items():
        by_byte = -change(results.runs[name], results).high / extra_bytes(name, "static", layout_27b())
        spared = module_settings(careful, f"model.language_model.{module}")[0] == 8
        gain[spared].append(by_byte)
    assert min(gain[True]) > max(gain[False])


def test_every_picture_is_drawn_and_kept(results: Results, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from bench.quality.pictures import PICTURES, save

    text = README.read_text(encoding="utf-8")
    for name, draw in PICTURES.items():
        assert README.with_name(f"{name}.png").is_file()
        assert f"]({name}.png)" in text
        save(draw(results), tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").stat().st_size > 20_000
