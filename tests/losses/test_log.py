"""``quant_log.csv``: what is written is read back, and gptqmodel's own logs are read as far as they go."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from gptq_hybrid.common.errors import HybridError
from gptq_hybrid.losses import ModuleRecord, extend_log, find_flags, read_log, write_log
from gptq_hybrid.losses.quant_log import ADDED, STOCK
from tests.losses.made import changed, records

HEADER = ",".join(STOCK)


def faulty() -> dict[str, ModuleRecord]:
    made = changed(records(), "2.mlp.up_proj", outcome="fallback", reason="too few tokens", tokens=3)
    made = changed(made, "2.mlp.up_proj", loss=None, relative_error=None, damp=0.0)
    made = changed(made, "5.mlp.down_proj", damp=0.42, floor=1e-4, dead_columns=7)
    made = changed(made, "6.mlp.gate_proj", outcome="nan", reason="NaN loss", loss=None, relative_error=None)
    return changed(made, "9.linear_attn.out_proj", relative_error=0.7, nonfinite_columns=2)


def stock_log(path: Path, made: dict[str, ModuleRecord], *, samples: bool = True) -> None:
    """As gptqmodel writes it; 6.0.3 has all headers, and no samples."""
    with path.open("w", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(STOCK)
        for record in made.values():
            loss = "rtn fallback" if record.loss is None else f"{record.loss:.10f}"
            row = [str(record.layer), record.kind, loss, str(record.tokens), f"{record.damp:.5f}", "0.123"]
            writer.writerow(row if samples else row[:3] + row[4:])


def test_what_a_run_recorded_is_what_is_read(tmp_path: Path) -> None:
    made = faulty()
    stock_log(tmp_path / "quant_log.csv", made)
    extend_log(tmp_path / "quant_log.csv", list(made.values()))
    log = read_log(tmp_path)
    expected = {record.name: record for record in made.values()}
    assert log.lacking == ()
    assert {m.name for m in log.modules} == set(expected)
    for module in log.modules:
        other = expected[module.name]
        if other.relative_error is None:
            assert module.relative_error is None
        else:
            assert module.relative_error == pytest.approx(other.relative_error, rel=1e-6)
        for name in ("layer", "kind", "tokens", "columns", "damp", "damp_asked", "floor", "dead_columns"):
            assert getattr(module, name) == getattr(other, name), (module.name, name)
        assert (module.nonfinite_columns, module.outcome, module.reason) == (
            other.nonfinite_columns,
            other.outcome,
            other.reason,
        )
    assert find_flags(log.modules) == find_flags(list(expected.values()))


def test_the_flags_stand_in_the_log(tmp_path: Path) -> None:
    stock_log(tmp_path / "quant_log.csv", faulty())
    extend_log(tmp_path / "quant_log.csv", list(faulty().values()))
    rows = list(csv.DictReader((tmp_path / "quant_log.csv").open(newline="")))
    flags = {f"{row['layer']}.{row['module']}": row["flags"] for row in rows if row["flags"]}
    assert flags == {
        "2.mlp.up_proj": "fallback starved",
        "5.mlp.down_proj": "floor damped dead",
        "6.mlp.gate_proj": "nan",
        "9.linear_attn.out_proj": "nonfinite outlier",
    }
    assert [int(row["layer"]) for row in rows] == sorted(int(row["layer"]) for row in rows)


def test_a_failed_run_leaves_a_log_that_says_the_same(tmp_path: Path) -> None:
    made = faulty()
    write_log(tmp_path / "failed.csv", list(made.values()))
    stock_log(tmp_path / "quant_log.csv", made)
    extend_log(tmp_path / "quant_log.csv", list(made.values()))
    alone, joined = read_log(tmp_path / "failed.csv"), read_log(tmp_path)
    assert alone.modules == joined.modules


def test_the_samples_that_6_0_3_leaves_out_are_filled_in(tmp_path: Path) -> None:
    made = records()
    stock_log(tmp_path / "quant_log.csv", made, samples=False)
    before = read_log(tmp_path)
    assert {m.tokens for m in before.modules} == {None}
    assert {m.damp for m in before.modules} == {0.01}
    extend_log(tmp_path / "quant_log.csv", list(made.values()))
    after = read_log(tmp_path)
    assert {m.tokens for m in after.modules} == {4096}
    assert {m.damp for m in after.modules} == {0.01}
    rows = list(csv.DictReader((tmp_path / "quant_log.csv").open(newline="")))
    assert {row["time"] for row in rows} == {"0.123"}


def test_gptqmodels_own_log_is_read_and_what_it_lacks_is_named(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text(
        f"{HEADER}\n0,mlp.up_proj,0.0000012,100,0.01000,1.0\n1,mlp.up_proj,fallback(rtn): 0.0012,0,0.00000,1.0\n"
        "2,mlp.up_proj,rtn fallback,100,1.00000,1.0\n3,mlp.up_proj,nan,100,0.01000,1.0\n"
        "4,mlp.up_proj,999999999.0000000000,0,0.01000,1.0\n"
    )
    log = read_log(path)
    assert log.lacking == tuple(name for name in ADDED if name != "flags")
    assert log.modules[0].loss == 1.2e-6
    assert [m.outcome for m in log.modules] == [None, "fallback", "fallback", "nan", "fallback"]
    assert log.modules[1].reason == "fallback(rtn): 0.0012"
    assert all(m.loss is None for m in log.modules[1:])
    flags = find_flags(log.modules)
    assert [flags[m.name] for m in log.modules] == [(), ("fallback",), ("fallback",), ("nan",), ("fallback",)]


def test_losses_are_compared_where_a_log_has_no_relative_errors(tmp_path: Path) -> None:
    rows = [f"{layer},mlp.up_proj,{1e-6 + layer * 1e-8:.10f},9,0.01,1" for layer in range(12)]
    rows[4] = "4,mlp.up_proj,0.0000900,9,0.01,1"
    (tmp_path / "quant_log.csv").write_text("\n".join([HEADER, *rows]))
    flagged = [name for name, flags in find_flags(read_log(tmp_path).modules).items() if flags]
    assert flagged == ["4.mlp.up_proj"]


def test_control_characters_do_not_reach_the_terminal(tmp_path: Path) -> None:
    (tmp_path / "quant_log.csv").write_text(f"{HEADER}\n0,mlp.\x1b[2Jup,fallback \x1b[31m,1,0.01,1\n")
    (module,) = read_log(tmp_path).modules
    assert "\x1b" not in module.kind + module.reason


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "does not name the columns"),
        ("a,b,c\n1,2,3\n", "does not name the columns"),
        (f"{HEADER}\n", "has no modules"),
        (f"{HEADER}\n0,mlp.up_proj,0.1\n", "line 2"),
        (f"{HEADER}\n0,mlp.up_proj,0.1,few,0.01,1\n", "line 2"),
        (b"\xff\xfe\x00", "is not a log"),
    ],
)
def test_a_file_that_is_no_log_is_refused(tmp_path: Path, content: str | bytes, message: str) -> None:
    (tmp_path / "quant_log.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(HybridError, match=message):
        read_log(tmp_path)


def test_a_folder_without_a_log_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HybridError, match=r"has no quant_log\.csv") as caught:
        read_log(tmp_path)
    assert "qwen36 quantize" in str(caught.value.remedy)
    with pytest.raises(HybridError, match="neither a folder nor a log"):
        read_log(tmp_path / "nowhere")
