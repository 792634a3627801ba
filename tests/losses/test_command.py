"""``qwen36 losses``: what it prints and draws, from a log alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gptq_hybrid.cli.app import build_app
from gptq_hybrid.common.errors import HybridError
from gptq_hybrid.losses import ModuleRecord, plot_losses, read_log, write_log
from tests.losses.made import changed, records

Command = Callable[..., str]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Command:
    """Run the command; what it refuses is raised."""
    monkeypatch.setenv("COLUMNS", "110")

    def run(*arguments: str) -> str:
        result = CliRunner().invoke(build_app(), ["losses", *arguments])
        if isinstance(result.exception, HybridError):
            raise result.exception
        assert result.exit_code == 0, result.output
        return result.stdout

    return run


def write(path: Path, made: dict[str, ModuleRecord]) -> None:
    write_log(path, list(made.values()))


@pytest.fixture
def fine(tmp_path: Path) -> Path:
    write(tmp_path / "fine" / "quant_log.csv", records())
    return tmp_path / "fine"


@pytest.fixture
def faulty(tmp_path: Path) -> Path:
    made = changed(records(), "9.linear_attn.out_proj", relative_error=0.7)
    made = changed(made, "2.mlp.up_proj", outcome="fallback", loss=None, relative_error=None)
    made = changed(made, "2.mlp.up_proj", reason="not positive definite")
    made = changed(made, "5.mlp.down_proj", damp=0.42, dead_columns=7)
    write(tmp_path / "faulty" / "quant_log.csv", made)
    return tmp_path / "faulty"


def test_a_fine_checkpoint_is_said_to_be_in_one_line(command: Command, fine: Path) -> None:
    printed = command(str(fine))
    assert "All 64 modules are fine" in printed
    assert "worth a look" not in printed
    assert "this log lacks" not in printed


def test_faults_are_named_gravest_first_and_counted(command: Command, faulty: Path) -> None:
    printed = command(str(faulty))
    assert "3 of 64 modules are worth a look" in printed
    places = [printed.index(what) for what in ("2.mlp.up_proj", "5.mlp.down_proj", "9.linear_attn.out_proj")]
    assert places[0] < places[1] < places[2]
    assert "rounded: not positive definite" in printed
    assert "damping 0.01 → 0.42; 7 of 256 inputs always zero" in printed
    assert "× the median of its kind" in printed
    assert "fell back to plain rounding: 1" in printed
    assert all(len(line) <= 110 for line in printed.splitlines())


def test_many_faults_stay_few_lines(command: Command, tmp_path: Path) -> None:
    made = records()
    for layer in range(16):
        made = changed(made, f"{layer}.mlp.up_proj", dead_columns=layer + 1)
    write(tmp_path / "quant_log.csv", made)
    printed = command(str(tmp_path))
    assert "inputs that were always zero: 16" in printed
    assert "not shown: 8" in printed
    assert len(printed.splitlines()) < 30


def test_json_has_every_module_with_its_flags(command: Command, faulty: Path) -> None:
    report = json.loads(command(str(faulty), "--json"))["result"]
    assert (report["schema"], report["measure"], report["lacking"]) == (1, "relative_error", [])
    flags = {f"{m['layer']}.{m['kind']}": m["flags"] for m in report["modules"] if m["flags"]}
    assert flags == {
        "2.mlp.up_proj": ["fallback"],
        "5.mlp.down_proj": ["damped", "dead"],
        "9.linear_attn.out_proj": ["outlier"],
    }
    assert report["counts"]["fallback"] == 1
    (times,) = [m["of_median"] for m in report["modules"] if m["of_median"]]
    assert 50 < times < 150
    assert report["modules"][0].keys() == {
        "layer", "kind", "relative_error", "loss", "tokens", "columns", "damp", "damp_asked", "floor",
        "dead_columns", "nonfinite_columns", "outcome", "reason", "flags", "of_median",
    }  # fmt: skip


def test_what_a_log_of_gptqmodel_lacks_is_said(command: Command, tmp_path: Path) -> None:
    log = tmp_path / "quant_log.csv"
    log.write_text("layer,module,loss,samples,damp,time\n0,mlp.up_proj,0.0000012,100,0.01000,1.0\n")
    printed = command(str(log))
    assert "not comparable between kinds" in printed
    lacking = "Columns that this log lacks, and so not checked: relative_error, dead_columns"
    assert lacking in " ".join(printed.split())


def test_the_plot_has_a_panel_a_block_a_line_a_kind_and_marks_what_stands_out(
    faulty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gptq_hybrid.common import figures

    saved = []
    monkeypatch.setattr(figures, "save", lambda figure, path: saved.append(figure))
    plot_losses(read_log(faulty), tmp_path / "losses.png")
    (figure,) = saved
    panels = {ax.get_title(loc="left"): ax for ax in figure.axes}
    assert list(panels) == ["linear_attn", "mlp"]
    assert {ax.get_yscale() for ax in figure.axes} == {"log"}
    lines = {line.get_label(): line for line in panels["mlp"].get_lines()}
    assert {"gate_proj", "up_proj", "down_proj", "no loss"} == set(lines)
    # The fallback has no loss: its line has a point less, and it is a cross in layer 2.
    assert [len(lines[kind].get_xdata()) for kind in ("gate_proj", "up_proj")] == [16, 15]
    assert list(lines["no loss"].get_xdata()) == [2]
    ring = next(line for line in panels["linear_attn"].get_lines() if line.get_label() == "outlier")
    assert (list(ring.get_xdata()), list(ring.get_ydata())) == ([9], [0.7])


def test_the_plot_is_a_picture(command: Command, faulty: Path, tmp_path: Path) -> None:
    picture = tmp_path / "new" / "losses.png"
    with pytest.raises(HybridError, match="there is no folder"):
        command(str(faulty), "--plot", str(picture))
    assert not picture.parent.exists()
    picture.parent.mkdir()
    assert "losses.png" in command(str(faulty), "--plot", str(picture))
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert [p.name for p in picture.parent.iterdir()] == ["losses.png"]


def test_nothing_to_draw_is_an_error(command: Command, tmp_path: Path) -> None:
    log = tmp_path / "quant_log.csv"
    log.write_text("layer,module,loss,samples,damp,time\n0,mlp.up_proj,rtn fallback,0,1.00000,1.0\n")
    with pytest.raises(HybridError, match="nothing to draw"):
        command(str(log), "--plot", str(tmp_path / "losses.png"))


def test_a_folder_without_a_log_is_one_clear_error(command: Command, tmp_path: Path) -> None:
    with pytest.raises(HybridError, match=r"has no quant_log\.csv"):
        command(str(tmp_path))
