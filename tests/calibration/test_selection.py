"""Which rows are drawn: by weight in tokens, once each, the same for the same seed, none of the evaluation's."""

from __future__ import annotations

import json
import random
from collections import Counter
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from transformers import AutoTokenizer

from gptq_hybrid.calibration import Calibration, load_calibration, load_documents, load_rows
from gptq_hybrid.calibration._duplicates import TextIndex
from gptq_hybrid.cli._quantize import calibration_table
from gptq_hybrid.common.errors import HybridError
from gptq_hybrid.demo.builder import DemoCheckpoint

SENTENCE = "one two three four five six seven eight red blue green fast slow old"
WORDS = SENTENCE.split()


@pytest.fixture(scope="module")
def tokenizer(original: DemoCheckpoint) -> Any:
    return AutoTokenizer.from_pretrained(original.path)


def passage(number: int, length: int = 60) -> str:
    rng = random.Random(number)
    return f"{number}: " + " ".join(rng.choices(WORDS, k=length))


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def mix(folder: Path, *parts: str) -> str:
    (folder / "mix.toml").write_text("".join(f"[[part]]\n{part}\n" for part in parts))
    return str(folder / "mix.toml")


def tokens(calibration: Calibration) -> dict[str, int]:
    return {name: domain["tokens"] for name, domain in calibration.manifest["domains"].items()}


def dropped(calibration: Calibration) -> Counter[str]:
    counts: Counter[str] = Counter()
    for domain in calibration.manifest["domains"].values():
        counts.update(domain["dropped"])
    return counts


@pytest.fixture
def two(tmp_path: Path) -> Path:
    """Many short rows and as many long ones."""
    write(tmp_path / "short.jsonl", *({"text": passage(n, 30)} for n in range(400)))
    write(tmp_path / "long.jsonl", *({"text": passage(n, 150)} for n in range(1000, 1200)))
    return tmp_path


SHORT, LONG = 'name = "short"\nsource = "short.jsonl"', 'name = "long"\nsource = "long.jsonl"\nweight = 3'


def test_weights_are_shares_of_tokens_whatever_the_lengths_of_rows(two: Path, tokenizer: Any) -> None:
    calibration = load_calibration(mix(two, SHORT, LONG), tokenizer, samples=64, max_length=512)
    assert len(calibration.rows) == calibration.manifest["rows"] == 64
    assert tokens(calibration)["long"] / tokens(calibration)["short"] == pytest.approx(3, rel=0.1)
    assert (
        sum(tokens(calibration).values())
        == calibration.manifest["tokens"]
        == sum(len(r["input_ids"]) for r in calibration.rows)
    )


@pytest.mark.parametrize("pack", [False, True])
def test_documents_beside_those_of_the_rows_leave_the_rows_as_they_are(
    two: Path, tokenizer: Any, pack: bool
) -> None:
    def draw(further: int) -> Calibration:
        return load_calibration(str(two), tokenizer, samples=20, max_length=128, pack=pack, further=further)

    alone, with_more = draw(0), draw(30)
    assert alone.rows == with_more.rows
    assert alone.further == []
    assert len(with_more.further) == 30
    inside = {tuple(row["input_ids"]) for row in draw(0).rows}
    text = [",".join(map(str, row)) for row in inside]
    assert not any(",".join(map(str, ids)) in row for ids in with_more.further for row in text)
    assert sum(with_more.manifest["further"]["documents"].values()) == 30
    assert "further" not in alone.manifest


def test_the_order_of_parts_and_of_lines_makes_no_difference(two: Path, tokenizer: Any) -> None:
    first = load_calibration(mix(two, SHORT, LONG), tokenizer, samples=32, max_length=512)
    lines = (two / "long.jsonl").read_text().splitlines(keepends=True)
    (two / "long.jsonl").write_text("".join(reversed(lines)))
    second = load_calibration(mix(two, LONG, SHORT), tokenizer, samples=32, max_length=512)
    assert first.rows == second.rows
    assert first.manifest["sha256"] == second.manifest["sha256"]
    other = load_calibration(mix(two, SHORT, LONG), tokenizer, samples=32, max_length=512, seed=1)
    assert other.manifest["sha256"] != first.manifest["sha256"]


def test_a_part_that_runs_dry_or_is_capped_leaves_its_share_to_the_others(two: Path, tokenizer: Any) -> None:
    write(two / "few.jsonl", *({"text": passage(n)} for n in range(2000, 2003)))
    parts = SHORT, LONG + "\nmax_rows = 2", 'name = "few"\nsource = "few.jsonl"'
    calibration = load_calibration(mix(two, *parts), tokenizer, samples=20, max_length=512)
    rows = {name: domain["documents"] for name, domain in calibration.manifest["domains"].items()}
    assert rows == {"few": 3, "long": 2, "short": 15}
    assert [s["domain"] for s in calibration.manifest["sources"] if s.get("exhausted")] == ["few"]


def test_only_full_rows(two: Path, tokenizer: Any) -> None:
    full = 'name = "long"\nsource = "short.jsonl"\nonly_full = true'
    calibration = load_calibration(mix(two, full), tokenizer, samples=8, max_length=32)
    assert {len(row["input_ids"]) for row in calibration.rows} == {32}
    with pytest.raises(HybridError, match=r"400 short"):
        load_calibration(mix(two, full), tokenizer, samples=8, max_length=512)


def test_a_part_may_take_some_domains_of_a_source(tmp_path: Path, tokenizer: Any) -> None:
    write(tmp_path / "all.jsonl", *({"text": passage(n), "domain": "abc"[n % 3]} for n in range(30)))
    spec = mix(tmp_path, 'name = "two"\nsource = "all.jsonl"\ndomains = ["a", "c"]')
    calibration = load_calibration(spec, tokenizer, samples=30, max_length=512)
    assert calibration.manifest["domains"]["two"]["documents"] == 20
    expected = {passage(n) for n in range(30) if n % 3 != 1}
    assert {tokenizer.decode(row["input_ids"]) for row in calibration.rows} == expected


def test_equal_and_nearly_equal_texts_are_taken_once_across_parts(tmp_path: Path, tokenizer: Any) -> None:
    text = passage(1, 100)
    write(tmp_path / "a.jsonl", {"text": text}, {"text": passage(2, 100)})
    write(
        tmp_path / "b.jsonl",
        {"text": text.upper()},
        {"text": text + " and three more words"},
        {"text": passage(3)},
    )
    spec = mix(tmp_path, 'name = "a"\nsource = "a.jsonl"', 'name = "b"\nsource = "b.jsonl"')
    calibration = load_calibration(spec, tokenizer, samples=10, max_length=512)
    assert len(calibration.rows) == 3
    assert dropped(calibration)["duplicate"] + dropped(calibration)["near_duplicate"] == 2


def test_texts_without_spaces_are_compared_by_character() -> None:
    index = TextIndex(0.7, 1000)
    text = "".join(chr(0x4E00 + 7 * n) for n in range(60))
    index.add({"text": text})
    assert index.find({"text": f"\n{text} "}) == "exact"
    assert index.find({"text": text[10:] + "".join(chr(0x5E00 + n) for n in range(10))}) == "near"
    assert index.find({"text": text[:12] + "".join(chr(0x5E00 + n) for n in range(48))}) is None
    assert index.find({"text": text[:12]}) is None


def test_texts_that_share_a_sentence_are_both_taken(tmp_path: Path, tokenizer: Any) -> None:
    start = passage(0, 20)
    path = write(tmp_path / "a.jsonl", *({"text": f"{start} {passage(n, 80)}"} for n in range(1, 9)))
    assert len(load_calibration(str(path), tokenizer, samples=8, max_length=512).rows) == 8


def test_what_is_evaluated_on_is_not_calibrated_on(tmp_path: Path, tokenizer: Any) -> None:
    rows = write(tmp_path / "rows.jsonl", *({"text": passage(n, 120)} for n in range(10)))
    cut = passage(3, 120)[:250]
    held = write(tmp_path / "held.jsonl", {"text": passage(7, 120).title()}, {"text": cut, "domain": "x"})
    calibration = load_calibration(str(rows), tokenizer, samples=10, max_length=512, exclude=[held])
    texts = [tokenizer.decode(row["input_ids"]) for row in calibration.rows]
    assert dropped(calibration) == {"excluded": 2}
    assert sorted(text.split(":")[0] for text in texts) == sorted("01245689")
    [note] = calibration.manifest["excluded"]
    assert note["file"] == "held.jsonl"
    with pytest.raises(HybridError, match="cannot be excluded"):
        load_calibration(str(rows), tokenizer, exclude=["demo"])


def test_held_out_rows_are_evaluated_on_and_never_calibrated_on(two: Path, tokenizer: Any) -> None:
    spec = mix(two, SHORT + "\nhold_out = 0.25")
    documents = load_documents([spec], limit=1000)
    assert {document.domain for document in documents} == {"short"}
    assert 60 < len(documents) < 140
    for seed in range(2):
        calibration = load_calibration(spec, tokenizer, samples=400, max_length=512, seed=seed)
        drawn = {tokenizer.decode(row["input_ids"]) for row in calibration.rows}
        assert not drawn & {document.row["text"] for document in documents}
        assert len(drawn) + len(documents) == 400


def test_another_source_may_be_evaluated_on(two: Path) -> None:
    spec = mix(two, SHORT + '\nevaluation = "long.jsonl"')
    documents = load_documents([spec], limit=5)
    assert [document.domain for document in documents] == ["short"] * 5
    assert all(int(document.row["text"].split(":")[0]) >= 1000 for document in documents)
    with pytest.raises(HybridError, match="keeps nothing for evaluation"):
        load_documents([mix(two, SHORT)])


def test_a_mix_is_a_source_too(two: Path) -> None:
    rows = load_rows(mix(two, SHORT, LONG), 40, 0)
    assert Counter(row["domain"] for row in rows) == {"long": 30, "short": 10}


def test_rows_of_a_plugins_source_are_checked(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from gptq_hybrid.calibration import _sources
    from gptq_hybrid.hooks import CalibrationSource

    rows: list[dict[str, Any]] = [{"text": passage(n)} for n in range(3)]
    source = CalibrationSource("mine", lambda spec: spec == "mine", lambda *_: [{"text": ""}, *rows])
    monkeypatch.setattr(_sources, "calibration_sources", lambda: [source])
    calibration = load_calibration("mine", tokenizer, samples=5, max_length=512)
    assert (len(calibration.rows), dropped(calibration)) == (3, {"malformed": 1})
    rows[:] = [{"prompt": "x"}] * 200
    with pytest.raises(HybridError, match="none of the first 100 rows can be used"):
        load_calibration("mine", tokenizer)


def test_rows_the_template_refuses_are_left_out_and_counted(tmp_path: Path, tokenizer: Any) -> None:
    good = [{"messages": [{"role": "user", "content": passage(n)}]} for n in range(3)]
    tokenizer = type(tokenizer).from_pretrained(tokenizer.name_or_path)
    tokenizer.chat_template = (
        "{{ messages[0].content if messages | length == 1 else raise_exception('one!') }}"
    )
    bad = {"messages": [{"role": "user", "content": passage(9)}, {"role": "user", "content": "again"}]}
    path = write(tmp_path / "a.jsonl", *good, bad)
    calibration = load_calibration(str(path), tokenizer, samples=9, max_length=512)
    assert (len(calibration.rows), dropped(calibration)) == (3, {"rejected": 1})
    with pytest.raises(HybridError, match=r"1 rejected\); the chat template rejects .*one!"):
        load_calibration(str(write(tmp_path / "b.jsonl", bad)), tokenizer)


def test_one_broken_row_of_many_stops_nothing_and_is_counted_by_reason(
    tmp_path: Path, tokenizer: Any
) -> None:
    image = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}
    bad = [
        {"text": "cut: \ud83d"},
        {"messages": [image], "domain": "seen"},
        {"text": "x", "domain": "\ud83d"},
    ]
    path = write(tmp_path / "a.jsonl", *bad, *({"text": passage(n)} for n in range(300)))
    calibration = load_calibration(str(path), tokenizer, samples=2, max_length=512)
    domains = json.loads(json.dumps(calibration.manifest, ensure_ascii=False).encode())["domains"]
    assert domains["a"]["documents"] == 2
    assert domains["a"]["dropped"] == {"with_broken_text": 1}
    assert domains["seen"]["dropped"] == {"with_images": 1}
    assert domains["?"]["dropped"] == {"with_broken_text": 1}
    table = Console(width=100, file=StringIO())
    table.print(calibration_table(calibration.manifest))
    assert "1 with images" in table.file.getvalue()  # type: ignore[attr-defined]


def test_rows_of_domains_that_a_part_does_not_take_are_not_counted(tmp_path: Path, tokenizer: Any) -> None:
    rows = [{"text": "\ud83d", "domain": name} for name in ("a", "b")]
    write(tmp_path / "all.jsonl", *rows, {"text": passage(1), "domain": "a"})
    spec = mix(tmp_path, 'name = "one"\nsource = "all.jsonl"\ndomains = ["a"]')
    assert dropped(load_calibration(spec, tokenizer, samples=5)) == {"with_broken_text": 1}


def test_a_file_of_nothing_but_images_says_so_and_where(tmp_path: Path, tokenizer: Any) -> None:
    image = {"messages": [{"role": "user", "content": [{"type": "image"}]}]}
    path = write(tmp_path / "a.jsonl", *([image] * 150))
    with pytest.raises(
        HybridError, match=r"last of 150 left out, .*a\.jsonl: line 150, holds images"
    ) as caught:
        load_calibration(str(path), tokenizer)
    assert "nothing but text" in str(caught.value.remedy)


def test_a_name_that_is_not_utf8_does_not_stop_the_manifest(tmp_path: Path, tokenizer: Any) -> None:
    folder = tmp_path / "caf\udce9"
    folder.mkdir()
    write(folder / "\udce9.jsonl", {"text": passage(1)})
    manifest = load_calibration(str(folder), tokenizer, samples=1).manifest
    json.dumps(manifest, ensure_ascii=False).encode()
    assert (manifest["calibration"], list(manifest["domains"])) == ("caf\ufffd", ["\ufffd"])
