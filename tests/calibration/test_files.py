"""Local texts and mix files: what is read from where, and what is wrong with one that cannot be."""

from __future__ import annotations

import gzip
import lzma
import subprocess
import sys
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from gptq_hybrid.calibration import LeftOut, load_rows, mix_names
from gptq_hybrid.calibration._hub import parse_hub_spec
from gptq_hybrid.calibration._mix import load_mix
from gptq_hybrid.calibration._sources import source_rows
from gptq_hybrid.common.errors import HybridError

# As JSON writes the first half of an emoji.
HALF = '{"text": "an emoji cut in half: \\ud83d"}\n'
PART = '[[part]]\nname = "a"\nsource = "a.jsonl"\n'


def test_a_folder_of_texts_is_read_at_any_depth(tmp_path: Path) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "one.md").write_text("# One")
    (tmp_path / "deep" / "er" / "two.txt").write_text("Two\n")
    (tmp_path / "blank.txt").write_text(" \n")
    (tmp_path / "image.png").write_bytes(b"\x89")
    assert sorted(row["text"] for row in load_rows(str(tmp_path), 9, 0)) == ["# One", "Two\n"]


def test_a_long_text_comes_in_pieces_ended_at_a_paragraph_and_loses_nothing(tmp_path: Path) -> None:
    text = "\n\n".join(f"Paragraph {n}. " + "word " * 200 for n in range(90))
    (tmp_path / "book.txt").write_text(text)
    pieces = [row["text"] for row in load_rows(str(tmp_path / "book.txt"), 9, 0)]
    assert sum(map(len, pieces)) == len(text)
    assert all(16_000 < len(piece) <= 32_000 for piece in pieces[:-1])
    assert all(piece.startswith("Paragraph ") for piece in pieces)
    (tmp_path / "book.txt").write_text("x" * 70_000)
    assert sorted(len(row["text"]) for row in load_rows(str(tmp_path / "book.txt"), 9, 0)) == [
        6_000,
        32_000,
        32_000,
    ]


def test_rows_of_a_file_are_drawn_by_seed(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("".join(f'{{"text": "row {n}"}}\n' for n in range(50)))
    first, second = (load_rows(str(tmp_path / "a.jsonl"), 50, seed) for seed in (0, 1))
    assert first != second
    assert sorted(row["text"] for row in first) == sorted(row["text"] for row in second)
    assert load_rows(str(tmp_path / "a.jsonl"), 7, 0) == first[:7]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.txt", b"\xff\xfe", r"a\.txt cannot be read"),
        ("a.jsonl.gz", b"not gzip", r"a\.jsonl\.gz cannot be read"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "fine"}\n{}\n', mtime=0), "line 2 has neither"),
        ("a.jsonl.xz", b"not xz", r"a\.jsonl\.xz cannot be read"),
        ("a.jsonl", b'{"text": "x"}\n\n', "line 2 is empty"),
        ("a.txt", b"  ", "has no rows"),
        ("a.jsonl", b'{"text": "x"}\n{"text": "caf\xe9"}\n', r"a\.jsonl cannot be read: line 2 is not UTF-8"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "\xe9"}\n', mtime=0), "line 1 is not UTF-8"),
        ("a.json", b'[\n{"text": "x"}\n]\n', r"line 1 is not valid JSON(.|\n)*jq -c"),
        ("a.jsonl", b"[" * 100_000, "line 1 is nested too deeply"),
        ("a.jsonl", b"words\n", r"line 1 is not valid JSON(.|\n)*\.parquet"),
        ("a.csv", b"text\nwords\n", r"a\.csv is a table(.|\n)*csv\.DictReader\(sys\.stdin\)"),
        ("a.tsv", b"text\twords\n", r"a\.tsv is a table(.|\n)*delimiter="),
        ("a.parquet", b"not parquet", r"a\.parquet cannot be read"),
        (
            "a.jsonl",
            HALF.encode(),
            r"no row can be used; the last of 1 left out, .*a\.jsonl: line 1, holds half",
        ),
    ],
)
def test_files_that_cannot_be_used(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(HybridError, match=says):
        load_rows(str(tmp_path / name), 5, 0)


def test_hidden_files_of_a_folder_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"text": "shown"}\n')
    (tmp_path / "._x.jsonl").write_bytes(b"\x00\x05\x16\x07")
    assert load_rows(str(tmp_path), 9, 0) == [{"domain": "x", "text": "shown"}]
    texts = tmp_path / "texts"
    (texts / ".git").mkdir(parents=True)
    (texts / ".git" / "notes.txt").write_text("hidden")
    (texts / "._a.txt").write_bytes(b"\x00\xff")
    (texts / "a.txt").write_text("shown")
    assert [row["text"] for row in load_rows(str(texts), 9, 0)] == ["shown"]


def test_texts_in_a_hidden_folder_are_read_if_it_is_the_one_given(tmp_path: Path) -> None:
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "a.txt").write_text("asked for")
    assert [row["text"] for row in load_rows(str(tmp_path / ".cache"), 9, 0)] == ["asked for"]


@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz", ".jsonl.xz", ".txt"])
def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path: Path, ending: str) -> None:
    content = "words" if ending == ".txt" else '{"text": "words"}\n'
    data = content.encode("utf-8-sig")
    packed = {".jsonl.gz": gzip.compress, ".jsonl.xz": lzma.compress}.get(ending, bytes)(data)
    (tmp_path / f"a{ending}").write_bytes(packed)
    assert [row["text"] for row in load_rows(str(tmp_path / f"a{ending}"), 9, 0)] == ["words"]


def test_a_mix_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    (tmp_path / "m.toml").write_bytes(PART.encode("utf-8-sig"))
    assert load_mix(str(tmp_path / "m.toml")).parts[0].name == "a"


def test_parquet_holds_the_rows_that_jsonl_does(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "Why?", "image": None}]
    rows = [
        {"messages": [{"role": "user", "content": parts}], "text": None, "domain": "talk", "id": 1},
        {"messages": None, "text": "plain", "domain": None, "id": 2},
        {"messages": None, "text": "", "domain": None, "id": 3},
    ]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    (tmp_path / "b.jsonl").write_text('{"text": "beside it"}\n')
    expected = [
        {"domain": "a", "text": "plain"},
        {"domain": "b", "text": "beside it"},
        {"domain": "talk", "messages": [{"role": "user", "content": "Why?"}]},
    ]
    left_out: list[LeftOut] = []
    read = source_rows(str(tmp_path), 9, 0, left_out.append)
    assert sorted(read, key=lambda row: str(row["domain"])) == expected
    [row] = left_out
    assert (row.domain, row.reason, row.where) == ("a", "malformed", f"{tmp_path / 'a.parquet'}: row 3")


def test_parquet_without_a_column_of_text_names_the_columns_it_has(tmp_path: Path) -> None:
    parquet.write_table(pyarrow.table({"instruction": ["x"], "output": ["y"]}), tmp_path / "a.parquet")
    with pytest.raises(HybridError, match="it has instruction, output") as caught:
        load_rows(str(tmp_path / "a.parquet"), 9, 0)
    assert "messages, conversations, text" in str(caught.value.remedy)


def test_parquet_without_pyarrow_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(HybridError, match="pyarrow, which is not installed") as caught:
        load_rows(str(tmp_path / "a.parquet"), 9, 0)
    assert "pip install pyarrow" in str(caught.value.remedy)


def test_a_folder_of_other_files_says_which_it_holds_and_which_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text\nwords\n")
    with pytest.raises(HybridError, match=r"it holds \.csv") as caught:
        load_rows(str(tmp_path), 9, 0)
    assert ".jsonl" in str(caught.value.remedy)


def test_the_command_that_converts_csv_works(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('id,words\n1,"one, and\nanother"\n')
    with pytest.raises(HybridError) as caught:
        load_rows(str(tmp_path / "a.csv"), 9, 0)
    command = str(caught.value.remedy).partition("python -c")[2].replace("COLUMN", "words")
    subprocess.run(f"{sys.executable} -c{command}", shell=True, cwd=tmp_path, check=True)
    assert load_rows(str(tmp_path / "a.jsonl"), 9, 0) == [{"domain": "a", "text": "one, and\nanother"}]


def test_paths_of_a_mix_are_relative_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mixes" / "texts").mkdir(parents=True)
    (tmp_path / "mixes" / "a.jsonl").write_text('{"text": "of the mix"}\n')
    (tmp_path / "a.jsonl").write_text('{"text": "of the working folder"}\n')
    (tmp_path / "mixes" / "texts" / "b.txt").write_text("a text")
    other = '[[part]]\nname = "b"\nsource = "texts"\n[[part]]\nname = "c"\nsource = "demo"\nweight = 0.5\n'
    (tmp_path / "mixes" / "m.toml").write_text(PART + other)
    monkeypatch.chdir(tmp_path)
    rows = load_rows("mixes/m.toml", 5, 0)
    assert [row["text"] for row in rows if row["domain"] != "c"] == ["of the mix", "a text"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", r"must hold `description` and one or more \[\[part\]\]"),
        ("part = 3", "must hold"),
        ("[part", "is not valid TOML"),
        (PART + 'colour = "red"', "part 1: unknown key 'colour'"),
        (PART + "weight = 0", "weight = 0 is not a number above 0"),
        (PART + "weight = true", "weight = True is not a number above 0"),
        (PART + "hold_out = 1", "hold_out = 1 is not a share"),
        (PART + "max_rows = -1", "max_rows = -1 is not a number of rows"),
        (PART + 'domains = "x"', "domains = 'x' is not a list of domains"),
        (PART + 'template = "x"', "template = 'x' is not a table"),
        ('[[part]]\nname = "a"', "source = None is not a source"),
        ('[[part]]\nsource = "demo"', "name = None is not a name"),
        ('[[part]]\nname = "a"\nsource = "mix:broad"', "itself a mix"),
        (PART + PART, "two parts are called 'a'"),
        ('colour = "red"\n' + PART, "must hold"),
    ],
)
def test_a_mix_that_is_none_says_why(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "m.toml").write_text(text)
    with pytest.raises(HybridError, match=says):
        load_mix(str(tmp_path / "m.toml"))


@pytest.mark.parametrize("spec", ["x" * 5000, "a\0b", "", "./nowhere", "no/such/folder"])
def test_what_names_nothing(spec: str) -> None:
    with pytest.raises(HybridError, match="is neither a file nor a data set id"):
        load_rows(spec, 1, 0)


def test_an_unknown_mix() -> None:
    with pytest.raises(HybridError, match="no calibration mix is called 'grand'") as caught:
        load_rows("mix:grand", 1, 0)
    assert "broad, reference" in str(caught.value.remedy)
    with pytest.raises(HybridError, match=r"nowhere\.toml cannot be read"):
        load_rows("nowhere.toml", 1, 0)


@pytest.mark.parametrize("name", mix_names())
def test_mixes_that_ship_are_pinned_and_keep_something_for_evaluation(name: str) -> None:
    mix = load_mix(f"mix:{name}")
    assert mix.description
    for part in mix.parts:
        spec = parse_hub_spec(part.source)
        assert spec.revision is not None
        assert len(spec.revision) == 40
        assert part.licence
        assert (part.evaluation is None) == (part.hold_out > 0)
        if part.evaluation is not None:
            other = parse_hub_spec(part.evaluation)
            assert (other.repo, other.revision, other.config) == (spec.repo, spec.revision, spec.config)
            assert other.split != spec.split
