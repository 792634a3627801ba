"""How ``qwen36 tune prefill`` shows its result."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from gptq_hybrid.common import figures
from tests.tune.prefill.made import made_up
from vllm_qwen36_plugin.options import PluginOptions
from vllm_qwen36_plugin.prefill.profile import from_json
from vllm_qwen36_plugin.tune.prefill.picture import plot
from vllm_qwen36_plugin.tune.prefill.result import Tuned
from vllm_qwen36_plugin.tune.prefill.table import choose_counts, meaning, times_table


def shown(tuned: Tuned) -> str:
    console = Console(width=110, record=True, file=open("/dev/null", "w"))  # noqa: PTH123, SIM115
    console.print(times_table(tuned))
    return console.export_text()


def gate_up(tuned: Tuned) -> tuple[str, dict[int, list[str]]]:
    """The section of gate_up: its text, and the cells of each number of tokens."""
    text = shown(tuned)
    section = text[text.index("gate_up_proj") : text.index("down_proj")]
    cells: dict[int, list[str]] = {}
    for line in section.splitlines():
        words = line.split()
        wide = next(
            (i for i, w in enumerate(words) if w.replace(",", "").isdigit() and line.index(w) > 36), None
        )
        if wide is not None:
            cells[int(words[wide].replace(",", ""))] = words[wide + 1 :]
    return section, cells


def test_a_section_a_shape_with_times_and_starts() -> None:
    tuned = made_up()
    section, cells = gate_up(tuned)
    assert "5120 × 34816, 4 bit, groups of 128" in section
    assert "64 × Marlin" in section
    (shape,) = [shape for shape, kind in tuned.linears.items() if kind.name == "gate_up_proj"]
    starts = tuned.profile.starts[shape]
    assert starts.exact == 8192
    assert starts.fp8 == 1000
    assert "exact from 8,192 tokens" in section
    assert "fp8 from 1,000 tokens" in section
    times = tuned.profile.times_us[shape]
    assert cells[64] == [f"{times[route][64]:,.1f}" for route in ("stock", "exact", "fp8")] + ["vLLM", "vLLM"]
    assert cells[8192] == [f"{times[route][8192]:,.0f}" for route in ("stock", "exact", "fp8")] + [
        "exact",
        "fp8",
    ]
    assert cells[4096][-2:] == ["vLLM", "fp8"]


def by_torch(tuned: Tuned) -> Tuned:
    """The same, with the other GEMM for every shape."""
    starts = {shape: replace(each, fp8_gemm="torch") for shape, each in tuned.profile.starts.items()}
    return replace(tuned, profile=replace(tuned.profile, starts=starts))


def test_another_gemm_than_vllms_is_named() -> None:
    section, _ = gate_up(by_torch(made_up()))
    assert "fp8 by torch's GEMM from 1,000 tokens" in section
    assert "torch" not in gate_up(by_torch(made_up(slow=True)))[0]


@pytest.mark.parametrize("tuned", [made_up(), by_torch(made_up())], ids=["vllm", "torch"])
def test_it_fits_110_columns(tuned: Tuned) -> None:
    assert max(len(line) for line in shown(tuned).splitlines()) <= 110


def test_without_fp8() -> None:
    text = shown(made_up(fp8=False))
    assert "fp8" not in text
    assert "prefill=auto" in text


def test_a_route_that_never_wins() -> None:
    section, cells = gate_up(made_up(slow=True))
    assert "exact never" in section
    assert "fp8 never" in section
    assert all(line[-2:] == ["vLLM", "vLLM"] for line in cells.values())


def test_a_route_that_failed_its_test_for_one_shape() -> None:
    tuned = made_up()
    (shape,) = [shape for shape, kind in tuned.linears.items() if kind.name == "gate_up_proj"]
    tuned.profile.times_us[shape].pop("exact")  # type: ignore[attr-defined]
    section, cells = gate_up(tuned)
    assert "exact" not in section
    assert cells[8192][1] == "–"
    assert cells[8192][-2:] == ["vLLM", "fp8"]


def test_the_numbers_of_tokens_that_are_shown() -> None:
    assert choose_counts([64, 100]) == [64, 100]
    many = [64, 96, 128, 192, 256, 384, 512, 1000, 1024, 2048, 3000, 4096, 8192, 10000]
    assert choose_counts(many) == [128, 256, 512, 1024, 2048, 4096, 8192, 10000]


def words(tuned: Tuned, *, own_place: bool = True, scratch_mib: int = 128) -> str:
    return "\n".join(meaning(tuned, Path("/cache/p.json"), own_place=own_place, scratch_mib=scratch_mib))


def test_where_start_up_looks_nothing_need_be_passed() -> None:
    text = words(made_up(fp8=False))
    assert "/cache/p.json is used from the next start" in text
    assert "--additional-config" not in text


@pytest.mark.parametrize(("own_place", "scratch_mib"), [(False, 128), (False, 64), (True, 64)])
def test_the_options_are_ones_the_plugin_takes(own_place: bool, scratch_mib: int) -> None:
    first = words(made_up(), own_place=own_place, scratch_mib=scratch_mib).splitlines()[0]
    options = PluginOptions.of(json.loads(first.rpartition("--additional-config ")[2].strip("'")))
    assert options.prefill_scratch_mib == scratch_mib
    assert options.prefill_profile == (None if own_place else "/cache/p.json")


def test_what_a_prompt_gains() -> None:
    tuned = made_up()
    text = words(tuned)
    stock, auto, fp8 = (tuned.milliseconds(8192, mode) for mode in (None, "auto", "fp8"))
    assert f"8,192 tokens of a prompt at once spend {stock:,.1f} ms in the model's 256 linears" in text
    assert f"{auto:,.1f} with prefill=auto (−{100 * (1 - auto / stock):.1f} %)" in text
    assert f"{fp8:,.1f} with prefill=fp8 (−{100 * (1 - fp8 / stock):.1f} %)" in text
    assert "as many with prefill=auto" in text.splitlines()[2], "2,048 tokens are below every start of exact"
    assert "Up to 999 tokens, decoding included" in text
    assert """'{"qwen36": {"prefill": "fp8"}}'""" in text


def test_the_sum_is_over_all_layers() -> None:
    tuned = made_up()
    by_hand = sum(
        kind.count * tuned.profile.times_us[shape]["stock"][2048] for shape, kind in tuned.linears.items()
    )
    assert tuned.milliseconds(2048, None) == pytest.approx(by_hand / 1e3)


def test_nothing_won() -> None:
    text = words(made_up(slow=True))
    assert "No route was faster than vLLM's own kernels up to 8,192 tokens" in text
    assert "tokens of a prompt" not in text


def test_a_grid_that_ends_early() -> None:
    assert "start-up measures again" in words(made_up((64, 1024, 2048)))
    assert "start-up measures again" not in words(made_up())


def test_json_holds_the_profile_itself() -> None:
    tuned = made_up(notes=("fp8 is off",))
    content = json.loads(json.dumps(tuned.as_json()))
    again = from_json(content["profile"], "here")
    assert again.starts == tuned.profile.starts
    assert again.card == tuned.profile.card
    assert content["notes"] == ["fp8 is off"]
    assert {entry["shape"] for entry in content["linears"]} == {shape.key for shape in tuned.linears}


def test_json_without_fp8_has_no_figure_for_it() -> None:
    assert set(made_up(fp8=False).as_json()["milliseconds"]) == {"stock", "auto"}


@pytest.mark.parametrize("tuned", [made_up(), made_up((128, 256), fp8=False, slow=True)])
def test_a_picture_with_a_panel_a_shape(
    tuned: Tuned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures: list[Any] = []
    save = figures.save

    def saved(figure: Any, path: Path) -> None:
        pictures.append(figure)
        save(figure, path)

    monkeypatch.setattr(figures, "save", saved)
    plot(tuned, tmp_path / "new" / "plot.png")
    assert (tmp_path / "new" / "plot.png").read_bytes().startswith(b"\x89PNG")
    (figure,) = pictures
    panels = [ax for ax in figure.axes if ax.axison]
    assert len(panels) == len(tuned.linears)
    for ax, (shape, kind) in zip(panels, tuned.linears.items(), strict=True):
        assert kind.name in ax.get_title()
        assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
        drawn = [line for line in ax.get_lines() if len(line.get_xdata()) == len(tuned.counts)]
        assert [list(line.get_ydata()) for line in drawn[: len(tuned.routes)]] == [
            list(tuned.profile.times_us[shape][route].values()) for route in tuned.routes
        ]
        starts = tuned.profile.starts[shape]
        expected = {start for start in (starts.exact, starts.fp8) if start is not None}
        assert {line.get_xdata()[0] for line in ax.get_lines() if line.get_linestyle() == "--"} == expected


def test_a8_has_its_column_its_start_and_its_option() -> None:
    tuned = made_up(a8=True)
    text = shown(tuned)
    assert "prefill=a8" in text
    assert max(map(len, text.splitlines())) <= 110
    assert "a8 from" in text
    said = words(tuned)
    assert """'{"qwen36": {"prefill": "a8"}}'""" in said
    assert """'{"qwen36": {"prefill": "fp8"}}'""" in said
    milliseconds = tuned.as_json()["milliseconds"]
    assert list(milliseconds) == ["stock", "auto", "a8", "fp8"]
    assert milliseconds["fp8"]["8192"] < milliseconds["a8"]["8192"] < milliseconds["auto"]["8192"]
