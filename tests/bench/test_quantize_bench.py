"""bench/quantize: the slice is the 27B's layers, and figures are those of the runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench.quantize import report, run
from bench.quantize.slice import slice_config, write_slice
from bench.quantize.timing import Watch, covered
from gptq_hybrid.checkpoint import layout_for
from gptq_hybrid.demo.tokenizer import build_tokenizer


def figures(seconds: float, *, loss: float | str = 1.0) -> Any:
    return {"layer_seconds": [100.0, seconds, seconds, 0.1], "losses": {"a": 2.0, "b": loss}}


def test_what_changes_the_figures_is_part_of_the_settings() -> None:
    usual = run.settings(run.parsed(["out.json"]))
    for more in (
        ["--layers", "6"], ["--samples", "9"], ["--length", "64"], ["--tiny"],
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


def test_rows_are_the_same_for_every_variant() -> None:
    args = run.parsed(["out.json", "--samples", "6", "--length", "64"])
    assert run.rows(args, 300) == run.rows(args, 300)
    assert [len(row["input_ids"]) for row in run.rows(args, 300)] == [64] * 6


def test_a_layer_lasts_until_the_next_one_begins() -> None:
    watch = Watch()
    watch.passes = [(0, 1.0, 1.5), (0, 2.0, 2.5), (1, 4.0, 6.0), (2, 9.0, 10.0)]
    assert watch.layers(10.5) == {"layer_seconds": [3.0, 5.0, 1.5], "pass_seconds": [1.0, 2.0, 1.0]}


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
    assert report.layer_seconds(figures(2.0)) == 2.0
    assert report.layer_seconds({"layer_seconds": [3.0, 5.0]}) == 4.0


@pytest.mark.parametrize(
    ("loss", "other", "worst"),
    [
        (1.02, 1.0, pytest.approx(0.02)),
        (1.0, 1.0, 0.0),
        ("rtn fallback", 1.0, float("inf")),
        ("rtn fallback", "rtn fallback", 0.0),
    ],
)
def test_the_worst_module_s_loss_is_what_counts(loss: Any, other: Any, worst: Any) -> None:
    assert report.loss_difference(figures(1, loss=loss), figures(1, loss=other)) == worst


def test_a_whole_model_takes_its_passes_by_rows_and_the_rest_by_layers() -> None:
    given = {"layer_seconds": [9.0, 5.0, 7.0, 1.0], "pass_seconds": [9.0, 2.0, 2.0, 9.0]}
    # A layer: 2 s of passes, 4 s else; four times the rows.
    assert report.whole_model_minutes(given, {"samples": 128}) == pytest.approx((8 + 4) * 64 / 60)


def test_other_bytes_are_said_aloud() -> None:
    same, other = ({"runs": {"stock": {"bytes": "a"}, "ours": {"bytes": b}}} for b in ("a", "b"))
    assert report.same_bytes(same) == "`ours` and `stock`: the same bytes (a)"
    assert "OTHER BYTES" in report.same_bytes(other)


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
    assert found["passes"] == 4 * 4 + 3
    assert found["mixers"] == found["batches"]["whole"] == 2 * 4 * 2
    assert found["batches"]["short"] == 2 * (2 * 4 + 3)
    assert len(found["losses"]) == 3 * 6 + 7
    assert sum(found["layer_seconds"]) <= found["seconds"]["quantize"]
    assert 0 < found["seconds"]["solver"] < found["seconds"]["quantize"]
    assert (tmp_path / "slices" / "4-tiny" / "config.json").is_file()
    assert "of a tiny model" in report.speed(json.loads((tmp_path / "out.json").read_text()))
