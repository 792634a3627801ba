"""Profiles: from how many tokens a route wins, and their files."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_qwen36_plugin.prefill import profile as module
from vllm_qwen36_plugin.prefill.profile import (
    FORMAT,
    Card,
    Profile,
    ProfileError,
    Starts,
    first_win,
    from_json,
    read,
    to_json,
    write,
)
from vllm_qwen36_plugin.prefill.shape import Shape

GATE_UP = Shape("marlin", 5120, 34816, 4, 128, "bfloat16")
DOWN = Shape("marlin", 17408, 5120, 4, 128, "bfloat16")
CARD = Card("NVIDIA L40S", "580.1", {"torch": "2.11", "vllm": "0.26"}, 128)
MEASURED = Profile(
    "measured: NVIDIA L40S, 2026-11-27, in 3.2 s",
    {GATE_UP: Starts(512, 256), DOWN: Starts(None, 1024)},
    CARD,
    {GATE_UP: {"stock": {128: 10.5, 256: 20.25}, "exact": {128: 11.0, 256: 9.75}}},
)

shapes = st.builds(
    Shape,
    st.sampled_from(["marlin", "machete"]),
    st.integers(1, 1 << 20),
    st.integers(1, 1 << 20),
    st.sampled_from([4, 8]),
    st.sampled_from([-1, 16, 32, 64, 128, 1024]),
    st.sampled_from(["bfloat16", "float16"]),
)
counts = st.integers(1, 1 << 16)
hundredths = st.integers(0, 10**8).map(lambda value: value / 100)


# Where a route starts to win.


@pytest.mark.parametrize(
    ("stock", "other", "start"),
    [
        ([10, 20, 40, 80], [30, 30, 30, 30], 512),  # from where the lines cross
        ([50, 60, 70, 80], [30, 30, 30, 30], 128),  # always
        ([10, 20, 20, 20], [30, 30, 30, 30], None),  # never
        ([50, 20, 40, 80], [30, 30, 30, 30], 512),  # a win at few tokens, lost again, is none
        ([50, 60, 40, 20], [30, 30, 30, 30], None),  # lost at the most tokens measured
        ([50, 20, 29, 80], [30, 30, 30, 30], 1024),  # a loss in the middle
    ],
)
def test_a_route_starts_where_it_is_faster_from_there_on(
    stock: list[float], other: list[float], start: int | None
) -> None:
    tokens = (128, 256, 512, 1024)
    assert (
        first_win(dict(zip(tokens, stock, strict=True)), dict(zip(tokens, other, strict=True)), 0.0) == start
    )


def test_a_win_within_the_margin_is_none() -> None:
    stock = {128: 100.0, 256: 100.0}
    assert first_win(stock, {128: 97.0, 256: 97.0}, 0.03) == 128
    assert first_win(stock, {128: 97.1, 256: 97.0}, 0.03) == 256
    assert first_win(stock, {128: 97.0, 256: 97.1}, 0.03) is None


def test_numbers_of_tokens_that_one_of_them_lacks_count_for_nothing() -> None:
    assert first_win({128: 10, 256: 90, 512: 90}, {256: 30, 1024: 99}, 0.0) == 256
    assert first_win({128: 10}, {256: 1}, 0.0) is None
    assert first_win({128: 10}, {}, 0.0) is None


times = st.dictionaries(st.integers(1, 12).map(lambda i: 64 * i), st.floats(1, 1000), max_size=8)


@given(stock=times, other=times, margin=st.sampled_from([0.0, 0.03, 0.5]))
def test_a_start_is_the_least_number_of_tokens_with_wins_alone_from_there_on(
    stock: dict[int, float], other: dict[int, float], margin: float
) -> None:
    both = sorted(set(stock) & set(other))
    wins = [tokens for tokens in both if other[tokens] <= stock[tokens] * (1 - margin)]
    good = [
        tokens for i, tokens in enumerate(both) if both[i:] == [later for later in wins if later >= tokens]
    ]
    assert first_win(stock, other, margin) == (good[0] if good else None)


# Files.


profiles = st.builds(
    Profile,
    st.text(min_size=1),
    st.dictionaries(shapes, st.builds(Starts, st.none() | counts, st.none() | counts), max_size=4),
    st.none()
    | st.builds(
        Card, st.text(), st.text(), st.dictionaries(st.text(), st.text(), max_size=3), st.integers(1, 9999)
    ),
)
measurements = st.dictionaries(
    st.sampled_from(["stock", "exact", "fp8"]), st.dictionaries(counts, hundredths, max_size=3), max_size=3
)


@given(profile=profiles, data=st.data())
def test_a_profile_comes_back_from_its_file_as_it_was(profile: Profile, data: st.DataObject) -> None:
    profile = replace(profile, times_us={shape: data.draw(measurements) for shape in profile.starts})
    assert from_json(json.loads(json.dumps(to_json(profile))), "a file") == profile


def test_a_shape_without_times_comes_back_with_none(tmp_path: Path) -> None:
    write(tmp_path / "new" / "folder" / "profile.json", MEASURED)
    profile = read(tmp_path / "new" / "folder" / "profile.json")
    assert profile.starts == MEASURED.starts
    assert (profile.source, profile.card) == (MEASURED.source, CARD)
    assert profile.times_us == {**MEASURED.times_us, DOWN: {}}


def test_a_profile_from_before_a8_has_no_start_for_it() -> None:
    data = to_json(MEASURED)
    for entry in data["shapes"].values():
        assert "a8" in entry
        del entry["a8"]
    assert all(starts.a8 is None for starts in from_json(data, "a file").starts.values())


def test_of_two_profiles_the_later_counts() -> None:
    other = Profile("measured: later", {DOWN: Starts(64)}, None, {DOWN: {"stock": {64: 1.0}}})
    merged = MEASURED.merged(other)
    assert merged.starts == {GATE_UP: Starts(512, 256), DOWN: Starts(64)}
    assert (merged.source, merged.card) == ("measured: later", CARD)
    assert merged.times_us == {**MEASURED.times_us, **other.times_us}


def changed(**entry: Any) -> dict[str, Any]:
    data = to_json(MEASURED)
    data["shapes"][GATE_UP.key].update(entry)
    return data


def without(key: str) -> dict[str, Any]:
    data = to_json(MEASURED)
    del data["shapes"][GATE_UP.key][key]
    return data


@pytest.mark.parametrize(
    "data",
    [
        [],
        None,
        {},
        {"format": FORMAT},
        {**to_json(MEASURED), "shapes": ["marlin"]},
        {**to_json(MEASURED), "shapes": {"gate_up": {}}},
        {**to_json(MEASURED), "card": {"gpu": "L40S"}},
        {**to_json(MEASURED), "card": {**to_json(MEASURED)["card"], "memory": 1}},
        changed(exact=0),
        changed(exact=-1),
        changed(exact=True),
        changed(fp8="512"),
        changed(fp8=1.5),
        changed(times_us={"stock": {"many": 1.0}}),
        changed(times_us={"stock": {"128": None}}),
        changed(times_us=[1]),
        without("fp8"),
        without("fp8_gemm"),
        changed(fp8_gemm="cutlass"),
        changed(fp8_gemm=None),
        without("times_us"),
    ],
)
def test_what_is_no_profile_is_an_error_that_names_the_file_and_its_maker(data: Any, tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(data))
    with pytest.raises(ProfileError) as caught:
        read(path)
    assert f"{path} is no profile of qwen36 tune prefill: " in str(caught.value)


def test_another_format_says_to_measure_again(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    path.write_text(json.dumps({**to_json(MEASURED), "format": 1}))
    with pytest.raises(ProfileError) as caught:
        read(path)
    assert str(caught.value) == f"{path} has format 1, not 3: run qwen36 tune prefill again"


@pytest.mark.parametrize("content", [None, b"", b"{", b"\xff\xfe"])
def test_what_cannot_be_read_is_an_error_that_names_it(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ProfileError) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_a_folder_is_no_profile(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match="is no file"):
        read(tmp_path)


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "profile.json"
    write(path, MEASURED)

    def full(self: Path, target: Path) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="no space left"):
        write(path, replace(MEASURED, source="measured: later"))
    assert read(path).source == MEASURED.source
    assert [file.name for file in tmp_path.iterdir()] == ["profile.json"]


def test_reading_profiles_imports_no_torch() -> None:
    """The check before a start reads them."""
    code = f"import sys, {module.__name__}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
