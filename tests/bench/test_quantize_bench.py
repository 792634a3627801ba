"""bench/quantize: the slice is the 27B's layers, and tables say what runs found."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from gptq_hybrid.demo._tokenizer import build_tokenizer

from bench.quantize import kill, report, run, tables
from bench.quantize.slice import slice_config, write_slice
from bench.quantize.timing import Watch, covered
from gptq_hybrid.checkpoint import layout_for


def figures(seconds: float, *, loss: float | str = 1.0, gpu: float | None = 20.0, text: str = "a") -> Any:
    memory = {"cpu_gib": 3.0} if gpu is None else {"cpu_gib": 3.0, "gpu_gib": gpu}
    return {
        "environment": {"device": "some card", "torch": "2.11"},
        "seconds": {"quantize": 5 * seconds},
        "stages": dict.fromkeys((*tables.STAGES,), seconds),
        "layer_seconds": [100.0, seconds, seconds, 0.1],
        "passes": [{"layer": 1, "seconds": seconds, "hessian": seconds / 2, "mixers": 3, "modules": []}],
        "losses": {"a": 2.0, "b": loss},
        "memory": memory,
        "bytes": text,
    }


def result(**runs: Any) -> Any:
    return {"settings": run.settings(run.parsed(["out.json"])), "runs": runs}


def test_what_changes_the_figures_is_part_of_the_settings() -> None:
    usual = run.settings(run.parsed(["out.json"]))
    for more in (
        ["--layers", "6"], ["--samples", "9"], ["--length", "64"], ["--batch", "4"], ["--mixed"], ["--tiny"],
        ["--recipe", "static"], ["--calibration-on-cpu"], ["--room", "2"],
    ):  # fmt: skip
        assert run.settings(run.parsed(["out.json", *more])) != usual
    assert run.settings(run.parsed(["out.json", "--slice", "there", "--seconds", "9"])) == usual


def test_the_slice_has_the_27b_s_linears() -> None:
    layout = layout_for(slice_config(5, build_tokenizer()))
    shapes = {linear.name.rpartition(".layers.")[2]: linear for linear in layout.quantized}
    assert {name.partition(".")[0] for name in shapes} == set("01234")
    assert [(shapes[n].out_features, shapes[n].in_features) for n in (
        "0.linear_attn.in_proj_qkv", "0.linear_attn.in_proj_z", "3.self_attn.q_proj", "4.mlp.down_proj",
    )] == [(10240, 5120), (6144, 5120), (12288, 5120), (5120, 17408)]  # fmt: skip


def test_a_tiny_slice_is_a_checkpoint_with_every_tensor_and_no_head(tmp_path: Path) -> None:
    folder = write_slice(tmp_path / "slice", 4, tiny=True)
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    config = json.loads((folder / "config.json").read_text())
    assert {f"{linear.name}.weight" for linear in layout_for(config).quantized} <= index.keys()
    assert not [name for name in index if name.startswith("mtp.")]
    assert config["text_config"]["mtp_num_hidden_layers"] == 0
    with pytest.raises(FileExistsError):
        write_slice(folder, 4, tiny=True)


def test_rows_are_the_same_for_every_variant_and_of_unequal_length_where_asked() -> None:
    import torch  # noqa: F401 - rows are drawn with it

    args = run.parsed(["out.json", "--samples", "6", "--length", "64"])
    assert run.rows(args, 300) == run.rows(args, 300)
    assert {len(row["input_ids"]) for row in run.rows(args, 300)} == {64}
    mixed = run.rows(run.parsed(["out.json", "--samples", "6", "--length", "64", "--mixed"]), 300)
    lengths = {len(row["input_ids"]) for row in mixed}
    assert len(lengths) > 1
    assert min(lengths) >= 16


def test_a_layer_lasts_until_the_next_one_begins() -> None:
    watch = Watch()
    watch.passes = [
        {"layer": layer, "begin": begin} for layer, begin in ((0, 1.0), (0, 2.0), (1, 4.0), (2, 9.0))
    ]
    assert watch.layer_seconds(10.5) == [3.0, 5.0, 1.5]


@pytest.mark.parametrize(
    ("intervals", "length"),
    [
        ([], 0.0),
        ([(1.0, 3.0), (2.0, 4.0)], 3.0),
        ([(5.0, 6.0), (1.0, 4.0), (2.0, 3.0)], 4.0),
    ],
)
def test_solvers_side_by_side_count_once(intervals: list[tuple[float, float]], length: float) -> None:
    assert covered(intervals) == length


def test_first_and_last_layer_are_not_in_the_seconds_a_layer() -> None:
    assert tables.layer_seconds(figures(2.0)) == 2.0
    assert tables.layer_seconds({"layer_seconds": [3.0, 5.0]}) == 4.0


@pytest.mark.parametrize(
    ("loss", "other", "worst"),
    [
        (1.02, 1.0, ("b", pytest.approx(0.02))),
        (1.0, 1.0, ("a", 0.0)),
        ("rtn fallback", 1.0, ("b", float("inf"))),
        ("rtn fallback", "rtn fallback", ("a", 0.0)),
    ],
)
def test_the_worst_module_s_loss_is_what_counts(loss: Any, other: Any, worst: Any) -> None:
    assert tables.loss_difference(figures(1, loss=loss), figures(1, loss=other)) == worst


def test_a_whole_model_takes_its_passes_by_rows_and_the_rest_by_layers() -> None:
    given = figures(3.0)
    given["layer_seconds"] = [9.0, 5.0, 7.0, 1.0]
    given["passes"] = [{"layer": layer, "seconds": 2.0} for layer in (0, 1, 2, 3)]
    # A layer: 2 s of passes, 4 s else; four times the rows.
    assert tables.whole_model_minutes(given, {"samples": 128}) == pytest.approx((8 + 4) * 64 / 60)
    (line,) = tables.extrapolations(
        {"settings": run.settings(run.parsed(["out.json"])), "runs": {"ours": given}}
    )
    assert line == "ours: 13 min for 64 layers and 512 rows, extrapolated"


def test_memory_is_compared_with_stocks() -> None:
    both = result(stock=figures(1, gpu=10.0), fast=figures(1, gpu=5.0))
    for found in both["runs"].values():
        found["memory"]["gpu_reserved_gib"] = 12.0
    text = tables.memory_table(both)
    assert "| fast | 5.00 | 0.50 | 12.00 | 1.00 | 3.00 | 1.00 |" in text
    assert "Hidden states on the GPU." in text


def test_both_inverses_and_their_difference_are_shown() -> None:
    def estimate(value: float) -> Any:
        return {"value": value, "low": value - 0.001, "high": value + 0.001}

    found = {
        "environment": {"device": "CPU"},
        "settings": {"documents": 90, "tokens": 37321},
        "checkpoints": {
            way: {"kld_mean": estimate(kld), "top1": estimate(0.92)}
            for way, kld in (("gptqmodel", 0.02), ("direct", 0.021))
        },
        "difference": {
            "differences": [
                {"measure": "top1", "difference": estimate(0.5), "p": 0.1},
                {"measure": "kld_mean", "difference": estimate(0.001), "p": 0.98},
            ]
        },
    }
    text = tables.quality_table(found)
    assert "| direct | 0.02100 [0.02000, 0.02200] | 92.00 |" in text
    assert "+0.001000 [+0.000000, +0.002000], p = 0.98" in text
    assert "37,321 tokens" in text


def test_aims_are_met_or_missed_by_the_figures() -> None:
    given = result(stock=figures(10), ours=figures(3), fast=figures(6.1, loss=1.02, gpu=21.0))
    assert "GPU memory" not in " ".join(tables.aims(given))
    given["settings"]["samples"] = 512
    assert [line.rpartition(" ")[2] for line in tables.aims(given)] == ["met"] * 4 + ["missed"] * 4
    for found in given["runs"].values():
        found["memory"] = {"cpu_gib": 3.0}
    assert "GPU memory" not in " ".join(tables.aims(given))
    assert tables.aims(result(ours=figures(3))) == []
    tiny = result(stock=figures(10), ours=figures(3))
    tiny["settings"]["tiny"] = True
    assert tables.aims(tiny) == []


def test_ours_is_held_against_stock_where_the_definition_alone_was_not_run() -> None:
    (line,) = tables.same_bytes(result(stock=figures(1), ours=figures(1), fast=figures(1, text="c")))
    assert line == "ours and stock: the same bytes (a)"
    text = tables.bytes_table(
        result(stock=figures(1, text="2 tensors, aa"), ours=figures(1, text="2 tensors, bb"))
    )
    assert "| ours | 1.00 | 1.0 | 2 tensors: bb |" in text
    assert "ours and stock: OTHER BYTES" in text


def test_kills_and_what_differs_after_them_are_shown() -> None:
    found = {
        "environment": {"device": "some card"},
        "settings": {"layers": 5, "samples": 64, "length": 512, "recipe": "reference", "tiny": False},
        "kills": [{"exit": -9, "layers": 1, "target": False}, {"exit": -9, "layers": 3, "target": False}],
        "seconds": {"whole": 60.0, "again": 61.0, "killed-0": 20.0, "killed-1": 30.0, "continued": 25.0},
        "files": ["model.safetensors", "quant_log.csv"],
        "again_differs": [],
        "continued_differs": ["model.safetensors"],
    }
    text = tables.kill_table(found)
    assert "| killed-1 | 30 | -9 | 3 | no |" in text
    assert "| continued | 25 | 0 |  | yes |" in text
    assert "A run and its repetition: of 2 files these differ: none" in text
    assert "the continued one: of 2 files these differ: model.safetensors" in text


def test_files_differ_by_bytes_or_by_being_there(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    for folder, files in ((one, {"a": "1", "b": "1", "c": "1"}), (other, {"a": "1", "b": "2", "d": "1"})):
        folder.mkdir()
        for name, text in files.items():
            (folder / name).write_text(text)
            # Of one size and one time: only the bytes can tell.
            os.utime(folder / name, (0, 0))
    assert kill.differing(one, other) == ["b", "c", "d"]


def test_other_bytes_are_said_aloud() -> None:
    same = result(
        stock=figures(1), definition=figures(1), ours=figures(1, text="b"), fast=figures(1, text="c")
    )
    assert [line.partition(" (")[0] for line in tables.same_bytes(same)] == [
        "definition and stock: the same bytes", "ours and definition: OTHER BYTES",
    ]  # fmt: skip


def test_a_run_that_was_cut_off_before_its_figures_is_left_out() -> None:
    text = tables.report(
        result(stock={"complete": False, "environment": {"device": "card"}}, ours=figures(3.0))
    )
    assert "| ours | 3.00 |  |" in text
    assert "| stock" not in text


def test_every_variant_has_a_bar_in_the_picture() -> None:
    figure = tables.picture(result(stock=figures(10), ours=figures(3)))
    labels = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert labels == ["stock", "ours"]


def test_the_readme_holds_the_tables_of_the_results() -> None:
    text = report.PAGE.readme.read_text(encoding="utf-8")
    assert report.PAGE.filled(text, report.PAGE.results()) == text
    files = report.PAGE.results()
    files[report.REFERENCE] = result(stock=figures(10), ours=figures(3))
    assert "| ours | 3.00 | 0.30 |" in report.PAGE.filled(text, files)


def test_a_digest_is_of_the_tensors_whatever_files_they_are_in(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    tensors = {"a.qweight": torch.arange(4), "b.scales": torch.ones(2), "b.weight": torch.zeros(1)}
    for name in ("one", "two", "other"):
        (tmp_path / name).mkdir()
    save_file(tensors, tmp_path / "one" / "model.safetensors")
    for name, tensor in tensors.items():
        save_file({name: tensor}, tmp_path / "two" / f"{name}.safetensors")
    save_file({**tensors, "a.qweight": torch.arange(4) + 1}, tmp_path / "other" / "model.safetensors")
    one, two, other = (run.digest(tmp_path / name) for name in ("one", "two", "other"))
    assert one == two != other
    assert one.startswith("2 tensors")


def test_figures_of_a_run_add_up(tmp_path: Path) -> None:
    """The one that quantizes: two rows of a tiny slice."""
    given = ["--tiny", "--layers", "4", "--samples", "2", "--length", "32", "--recipe", "static", "--slice"]
    args = run.parsed([str(tmp_path / "out.json"), *given, str(tmp_path / "slices")])
    run.run("ours", args, tmp_path)
    (found,) = json.loads((tmp_path / "out.json").read_text())["runs"].values()
    assert found["complete"]
    assert len(found["passes"]) == 4 * 4 + 3
    assert sum(one["mixers"] for one in found["passes"]) == found["batches"]["whole"] == 2 * 4 * 2
    assert found["batches"]["short"] == 2 * (2 * 4 + 3)
    assert len(found["losses"]) == 3 * 6 + 7
    assert sum(found["layer_seconds"]) <= found["seconds"]["quantize"]
    assert found["stages"]["hessian"] > 0
    assert found["stages"]["solver"] > found["stages"]["inverse"] > 0
    assert found["stages"]["moves"] > 0
    assert (tmp_path / "slices" / "4-tiny" / "config.json").is_file()
    assert "of the tiny model" in tables.report(json.loads((tmp_path / "out.json").read_text()))
