"""Evaluations as JSON, tables and a picture."""

from __future__ import annotations

import io
import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from gptq_hybrid.common.errors import HybridError
from gptq_hybrid.common.typed_json import FormatError
from gptq_hybrid.evaluate import (
    Estimate,
    Evaluation,
    ScoresError,
    as_json,
    build_evaluation,
    evaluation_summary,
    evaluation_tables,
    from_json,
    plot_evaluation,
    read_evaluation,
    write_evaluation,
    write_evaluation_page,
)
from gptq_hybrid.evaluate.table import choose_decimals, kld_unit
from tests.evaluate.made import random_scores, scores, shifted

DOMAINS = ("en", "de", "python", "a-domain-of-a-long-name")


@pytest.fixture(scope="module")
def result() -> Evaluation:
    """Three checkpoints, four domains, one of a single document and one without drafts."""
    rng = np.random.default_rng(0)
    documents = [d for i, name in enumerate(DOMAINS) for d in random_scores(rng, name, 12, drafts=i != 1)]
    documents.append(scores("single", "x", [0.1, 0.2]))
    return build_evaluation(
        {
            "static": documents,
            "plain [rounding] $x$": shifted(documents, 3),
            "_other": shifted(documents, 1.1),
        },
        reference="Qwen3.6-27B",
        environment={"device": "CPU, made up", "torch": "2.13.0"},
        settings={"max_length": 2048, "data": ["en.jsonl"]},
        fingerprints={"reference": "00ff"},
        resamples=300,
        seed=5,
    )


def printed(evaluation: Evaluation, width: int = 110, *, wide: bool = True) -> str:
    output = io.StringIO()
    Console(width=width, file=output).print(evaluation_tables(evaluation, wide=wide))
    return output.getvalue()


def numbers(text: str) -> list[str]:
    return re.findall(r"\d[\d.,]*", text)


def test_json_comes_back_equal(result: Evaluation, tmp_path: Path) -> None:
    path = tmp_path / "evaluation.json"
    write_evaluation(path, result)
    assert read_evaluation(path) == result
    content = json.loads(path.read_text())
    assert content["schema"] == 1
    assert content["environment"]["device"] == "CPU, made up"
    assert content["statistics"]["resamples"] == 300
    assert set(content["checkpoints"][0]["overall"]["kld_mean"]) == {"value", "low", "high"}


def test_json_of_the_same_scores_is_the_same_to_the_byte() -> None:
    documents = random_scores(np.random.default_rng(1), "en", 12)
    texts = {
        json.dumps(as_json(build_evaluation({"q": order}, reference="r", resamples=200)))
        for order in (documents, documents[::-1])
    }
    assert len(texts) == 1


def test_every_pair_is_compared(result: Evaluation) -> None:
    assert [(c.a, c.b) for c in result.comparisons] == [
        ("static", "plain [rounding] $x$"),
        ("static", "_other"),
        ("plain [rounding] $x$", "_other"),
    ]


def test_fields_of_later_versions_are_skipped(result: Evaluation) -> None:
    content = json.loads(json.dumps(as_json(result)))
    content["later"] = content["checkpoints"][0]["overall"]["later"] = 1
    assert from_json(content) == result


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(schema=2), "has schema 2; this version reads schema 1"),
        (lambda c: c.pop("schema"), "has schema None"),
        (lambda c: c.pop("reference"), "lacks reference"),
        (
            lambda c: c["checkpoints"][1]["domains"][0].pop("top1"),
            r"lacks checkpoints\[1\].domains\[0\].top1",
        ),
        (
            lambda c: c["checkpoints"][0]["overall"]["top1"].update(value="much"),
            r"overall.top1.value should be a number, and is 'much'",
        ),
        (
            lambda c: c["comparisons"][0]["overall"]["differences"][0].update(verdict="best"),
            "verdict should be",
        ),
        (lambda c: c.update(checkpoints={}), "checkpoints should be a list"),
    ],
)
def test_other_json_is_refused_by_field(result: Evaluation, change: Any, message: str) -> None:
    content = json.loads(json.dumps(as_json(result)))
    change(content)
    with pytest.raises(FormatError, match=message) as caught:
        from_json(content)
    assert caught.value.remedy


def test_nothing_to_evaluate_is_refused() -> None:
    with pytest.raises(ScoresError, match="no checkpoint"):
        build_evaluation({}, reference="r")


def test_tables_fit_in_110_columns_and_lose_no_digit(result: Evaluation) -> None:
    text = printed(result)
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 110
    assert "…" not in text
    overall = result.checkpoints[0].overall
    assert f"{overall.tokens:,}" in text
    assert f"{100 * overall.top1.value:.2f}"[:4] in text
    assert "plain [rounding] $x$ against Qwen3.6-27B" in text
    assert "better" in text


def test_80_columns_are_enough_without_intervals(result: Evaluation) -> None:
    # What the constructor of the fixture calls a domain of a long name is folded; no figure is.
    text, roomy = (printed(result, width, wide=False) for width in (80, 200))
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 80
    assert "…" not in text
    cells = [line for line in roomy.splitlines() if line.startswith(("all", "en", "de", "python"))]
    assert len(cells) > 10
    for line in cells:
        figures = numbers(line)
        assert any(numbers(other) == figures for other in text.splitlines()), line
    assert "99.9" not in text


def test_the_summary_says_who_is_closer_and_by_how_much(result: Evaluation) -> None:
    lines = evaluation_summary(result)
    assert lines[0].startswith("static is ")
    assert "m-nats per token from Qwen3.6-27B [" in lines[0]
    [line] = [line for line in lines if "closer" in line and "plain" in line and "static" in line]
    # Every document's KLD is three times the other's.
    assert line.startswith("static is 67 % closer to Qwen3.6-27B than plain [rounding] $x$ [67, 67].")
    ratio = result.comparisons[0].kld_ratio
    assert ratio is not None
    assert ratio.value == pytest.approx(1 / 3)


def test_the_summary_does_not_call_alike_what_it_cannot_tell_apart() -> None:
    documents = random_scores(np.random.default_rng(4), "en", 12)
    evaluation = build_evaluation({"a": documents, "b": documents}, reference="r", resamples=100)
    assert any(
        line.startswith("No difference between a and b is shown") for line in evaluation_summary(evaluation)
    )


@pytest.mark.parametrize(("shift", "said"), [(1.0, False), (400.0, True)])
def test_what_is_broken_is_remarked(shift: float, said: bool) -> None:
    documents = shifted(random_scores(np.random.default_rng(5), "en", 12), shift)
    lines = evaluation_summary(build_evaluation({"q": documents}, reference="r", resamples=100))
    assert any("broken rather than rounded" in line for line in lines) is said


@pytest.mark.parametrize(
    ("largest", "unit"),
    [(0.02, "m-nats"), (2e-4, "m-nats"), (2e-5, "µ-nats"), (1.6e-8, "n-nats"), (0.0, "m-nats")],
)
def test_the_unit_fits_the_figures(largest: float, unit: str) -> None:
    assert kld_unit(largest)[1] == unit


def test_warnings_stand_below_the_table_once(result: Evaluation) -> None:
    text = printed(result)
    assert "single !" in text
    lines = [line for line in text.splitlines() if line.startswith("! ") and "99.9th" in line]
    assert len(lines) == len(result.checkpoints)


def test_rows_left_out_are_counted_below_the_tables(result: Evaluation) -> None:
    counted = {"left_out": {"with_broken_text": 1, "with_images": 1200}}
    assert "left out" not in printed(result)
    assert "! rows of the data left out: 1 with broken text, 1,200 with images" in printed(
        replace(result, settings=counted)
    )


def test_without_heads_there_is_no_table_of_drafts() -> None:
    documents = random_scores(np.random.default_rng(2), "en", 10, drafts=False)
    assert "MTP drafts" not in printed(build_evaluation({"q": documents}, reference="r", resamples=100))


@pytest.mark.parametrize(
    ("estimate", "decimals"),
    [
        (Estimate(0.0376, 0.0358, 0.0394), 4),
        (Estimate(94.9, 92.0, 97.0), 1),
        (Estimate(1234.0, 1000.0, 1500.0), 0),
        (Estimate(0.0376, None, None), 4),
        (Estimate(0.0, 0.0, 0.0), 0),
        (Estimate(1e-12, 1e-13, 2e-12), 7),
    ],
)
def test_figures_are_rounded_to_two_digits_of_half_the_interval(estimate: Estimate, decimals: int) -> None:
    assert choose_decimals(estimate) == decimals


def test_the_picture_has_a_panel_for_each_figure(result: Evaluation, tmp_path: Path) -> None:
    path = tmp_path / "evaluation.png"
    plot_evaluation(result, path)
    from matplotlib.image import imread

    height, width = imread(path).shape[:2]
    assert path.read_bytes().startswith(b"\x89PNG")
    assert width > 1500 > 300 < height
    assert [p.name for p in tmp_path.iterdir()] == ["evaluation.png"]


def test_a_picture_of_no_loss_at_all_is_drawn_without_warnings(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    documents = shifted(random_scores(np.random.default_rng(3), "en", 10, drafts=False), 0.0)
    plot_evaluation(
        build_evaluation({"same": documents}, reference="r", resamples=100), tmp_path / "same.png"
    )
    assert (tmp_path / "same.png").stat().st_size > 10_000
    assert [str(w.message) for w in recwarn] == []


def test_without_matplotlib_the_error_names_the_extra(
    result: Evaluation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(HybridError, match="matplotlib is not installed") as caught:
        plot_evaluation(result, tmp_path / "never.png")
    assert caught.value.remedy == "Run: pip install 'vllm-qwen36-plugin[eval]'"
    assert not list(tmp_path.iterdir())


def test_the_page_has_the_result_and_its_picture(result: Evaluation, tmp_path: Path) -> None:
    plot_evaluation(result, tmp_path / "evaluation.png")
    write_evaluation_page(result, tmp_path / "evaluation.html", picture=tmp_path / "evaluation.png")
    text = (tmp_path / "evaluation.html").read_text()
    raw = text.partition('id="result">')[2].partition("</script>")[0]
    assert json.loads(raw) == json.loads(json.dumps(as_json(result)))
    assert "plain [rounding] $x$" in text
    assert text.count("data:image/png;base64,") == 1
    for domain in DOMAINS:
        assert f"<td>{domain}</td>" in text
    assert "<dt>fingerprint of reference</dt><dd>00ff</dd>" in text
    write_evaluation_page(result, tmp_path / "bare.html", picture=None)
    assert "data:image" not in (tmp_path / "bare.html").read_text()
