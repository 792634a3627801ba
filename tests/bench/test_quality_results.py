"""`bench/quality`: merging keeps what was measured, and the recipes follow the results."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.quality.grid import BY_NAME, Experiment
from bench.quality.results import FILE, Results, merge
from bench.quality.sizes import extra_bytes, layout_27b, size_of
from bench.results import load, save
from gptq_hybrid.checkpoint.formats.gptq import settings as module_settings
from gptq_hybrid.checkpoint.quantization import dynamic_rule
from gptq_hybrid.evaluate import compare, summarize
from gptq_hybrid.recipes import DEFAULT_RECIPE, load_recipe
from gptq_hybrid.recipes.packaging import Packaging
from gptq_hybrid.recipes.sizes import quantized_bytes
from tests.evaluate.made import random_scores


@pytest.fixture(scope="module")
def results() -> Results:
    return Results.of(load(FILE) or {})


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


def test_differences_are_those_of_the_figures_over_all_and_by_domain(results: Results) -> None:
    for run in results.runs.values():
        assert run.against == (None if run.name == "static" else BY_NAME[run.name].control)
        if run.against is None:
            continue
        control = results.control(run)
        pairs = [(run.kld.value, control.kld.value, run.differences["kld_mean"].value)]
        pairs += [(d.kld, control.domains[n].kld, d.difference or 0.0) for n, d in run.domains.items()]
        assert len(pairs) == 16
        for own, base, difference in pairs:
            # Both values have six digits: the difference of these has fewer.
            assert difference == pytest.approx(own - base, abs=1e-5 * base), run.name


def call(seed: int, names: tuple[str, ...]) -> dict[str, Any]:
    """What `experiments.py` writes, of made-up scores: the first name is the control."""
    # Only the KLD may differ: the reference's figures are those of one model.
    scores = {
        name: [
            score
            for domain, factor in (("de", 1), ("fr", 2))
            for score in random_scores(
                np.random.default_rng(0), domain, 12, level=factor * 0.01 * (i + 1 + seed)
            )
        ]
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
    first, second = call(0, ("static", "rtn")), call(1, ("static", "rtn", "reference"))
    # The order of the second call's domains is another: rows must follow the first's.
    for experiment in second["experiments"].values():
        experiment["summary"]["domains"] = list(reversed(experiment["summary"]["domains"]))
    path = tmp_path / "results.json"
    save(path, merge([json.loads(json.dumps(c)) for c in (first, second)]))
    found = Results.of(load(path) or {})
    assert {name: run.call for name, run in found.runs.items()} == {"static": 0, "rtn": 0, "reference": 1}
    assert [run.call for run in found.again["rtn"]] == [1]
    assert found.control(found.runs["reference"]) is found.again["static"][0]
    original = first["experiments"]["rtn"]["against"]
    overall = original["overall"]["differences"][0]["difference"]
    stored = found.runs["rtn"].differences["kld_mean"]
    assert stored.value == pytest.approx(-overall["value"], rel=1e-5)
    assert (stored.low, stored.high) == pytest.approx((-overall["high"], -overall["low"]), rel=1e-5)
    assert stored.value > 0, "it was made worse than its control"
    for part in second["experiments"]["reference"]["summary"]["domains"]:
        kept = found.runs["reference"].domains[part["domain"]].kld
        assert kept == pytest.approx(part["kld_mean"]["value"], rel=1e-5)


@pytest.mark.parametrize("key", ["settings", "domains"])
def test_calls_with_other_settings_or_documents_are_not_merged(key: str) -> None:
    first, second = call(0, ("static",)), call(0, ("static",))
    if key == "settings":
        second["settings"]["max_length"] = 512
    else:
        second["experiments"]["static"]["summary"]["domains"][0]["tokens"] += 1
    with pytest.raises(ValueError, match=f"other {key}"):
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
    runs = results.seeds("static-mse")
    assert len(runs) == 4
    for run in runs:
        assert run.kld.high < results.same_seed(run).kld.low, run.name


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


def test_the_recipe_with_gptaq_is_its_experiment() -> None:
    experiment = BY_NAME["small-mse-gptaq"]
    recipe = load_recipe("static-mse-gptaq")
    assert recipe.settings == {**(experiment.settings or {}), "gptaq": experiment.gptaq}
    assert recipe.packaging == Packaging()


def test_compact_packs_the_heads_as_its_experiment_did_and_that_costs_no_drafts(results: Results) -> None:
    packaging = load_recipe("compact").packaging
    assert packaging == Packaging(lm_head_bits=8, mtp_bits=8, text_only=True)
    packed = quantized_bytes(layout_27b(), load_recipe("compact").settings, Packaging(8, 8))
    assert size_of(BY_NAME["mse-compact"], layout_27b()).total == packed
    run = results.runs["mse-compact"]
    assert run.against == "static-mse"
    assert results.change(run).high < 0.01
    assert run.differences["acceptance_length"].p > 0.05
    assert results.change(results.runs["mtp-w4"], "acceptance_length").high < -0.02


def test_careful_is_closer_to_the_original_than_the_default(results: Results) -> None:
    run = results.runs["mse-out-attention-8"]
    assert run.kld.high < results.in_call("static-mse", run.call).kld.low


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
        by_byte = -results.change(results.runs[name]).high / extra_bytes(name, "static", layout_27b())
        spared = module_settings(careful, f"model.language_model.{module}")[0] == 8
        gain[spared].append(by_byte)
    assert min(gain[True]) > max(gain[False])
