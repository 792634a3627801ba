"""The one buffer, and how a weight is cut to fit it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

torch = pytest.importorskip("torch")
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from vllm_qwen36_plugin.prefill import scratch  # noqa: E402

CPU, OTHER = torch.device("cpu"), torch.device("meta")
LEAST = 64


@pytest.fixture(autouse=True)
def none_reserved() -> Iterator[None]:
    scratch.release()
    yield
    scratch.release()


sizes = {
    "k": st.integers(1, 1100).map(lambda tiles: 16 * tiles),
    "n": st.integers(1, 600).map(lambda tiles: 64 * tiles),
    "itemsize": st.sampled_from([1, 2]),
}


@settings(max_examples=200, deadline=None)
@given(**sizes, columns=st.integers(LEAST, 40_000), odd=st.integers(0, 63))
def test_parts_cover_every_column_once_and_fit(k: int, n: int, itemsize: int, columns: int, odd: int) -> None:
    size = columns * k * itemsize + odd
    parts = scratch.column_tiles(k, n, itemsize, size)
    assert [first for first, _ in parts] == [sum(width for _, width in parts[:i]) for i in range(len(parts))]
    assert sum(width for _, width in parts) == n
    assert all(width * k * itemsize <= size for _, width in parts)
    assert all(first % LEAST == width % LEAST == 0 < width for first, width in parts)


@settings(max_examples=200, deadline=None)
@given(**sizes, columns=st.integers(LEAST, 40_000))
def test_parts_are_few_and_of_like_width(k: int, n: int, itemsize: int, columns: int) -> None:
    parts = scratch.column_tiles(k, n, itemsize, columns * k * itemsize)
    align = 256 if columns >= 256 else LEAST
    assert len(parts) <= -(-n // (columns // align * align))
    widths = [width for _, width in parts]
    assert all(width == widths[0] for width in widths[:-1])
    assert widths[-1] <= widths[0]
    if len(parts) > 1:
        assert widths[0] % align == 0


@settings(max_examples=200, deadline=None)
@given(
    shapes=st.lists(st.tuples(sizes["k"], sizes["n"]), min_size=1, max_size=3), size=st.integers(0, 1 << 27)
)
def test_a_buffer_of_the_largest_part_makes_the_parts_that_all_of_it_would(
    shapes: list[tuple[int, int]], size: int
) -> None:
    least = max(scratch.largest_tile(k, n, (1, 2), size) for k, n in shapes)
    assert least <= size
    for k, n in shapes:
        for itemsize in (1, 2):
            if size >= LEAST * k * itemsize:
                assert scratch.column_tiles(k, n, itemsize, least) == scratch.column_tiles(
                    k, n, itemsize, size
                )


def test_the_27bs_fp8_scales_cost_its_e4m3_parts_nothing() -> None:
    """Those of 64 layers come out of the default scratch, and those of an MTP layer fit beside them."""
    attention, delta, both = 14336, 16384, 5120 + 34816 + 5120
    scales = 8 * (16 * (attention + both) + 48 * (delta + both))
    budget = 128 << 20
    left = scratch.beside(scales, budget)
    assert (scales, left >> 20) == (31_195_136, 96)
    assert left + scales + 8 * (5120 + attention + both) <= budget
    shapes = [(5120, attention), (5120, delta), (6144, 5120), (5120, 34816), (17408, 5120)]
    for k, n in shapes:
        assert scratch.column_tiles(k, n, 1, left) == scratch.column_tiles(k, n, 1, budget)
    assert max(scratch.largest_tile(k, n, (2,), budget) for k, n in shapes) == 115 << 20
    assert max(scratch.largest_tile(k, n, (1, 2), left) for k, n in shapes) == 85 << 20


def test_no_part_where_not_even_64_columns_fit() -> None:
    assert scratch.largest_tile(5120, 14336, (2,), 64 * 5120 * 2 - 1) == 0
    assert scratch.largest_tile(5120, 14336, (1, 2), 64 * 5120 * 2 - 1) == 64 * 5120


def test_the_27bs_widest_linear_in_the_default_scratch() -> None:
    parts = scratch.column_tiles(5120, 34816, 2, 128 << 20)
    assert parts == [(0, 11776), (11776, 11776), (23552, 11264)]


def test_what_fits_whole_is_one_part() -> None:
    assert scratch.column_tiles(128, 192, 2, 192 * 128 * 2) == [(0, 192)]


@pytest.mark.parametrize("size", [0, 1, 64 * 5120 * 2 - 1])
def test_too_little_is_an_error_that_says_how_much_is_needed(size: int) -> None:
    with pytest.raises(
        ValueError, match=rf"64 columns of 5120 values need 655,360 bytes; there are {size:,}"
    ):
        scratch.column_tiles(5120, 14336, 2, size)


def test_nothing_is_reserved_at_first() -> None:
    assert scratch.reserved(CPU) == 0
    with pytest.raises(KeyError):
        scratch.tiles(CPU, 128, 64, torch.bfloat16)


def test_tiles_are_the_parts_all_at_the_start_of_the_buffer() -> None:
    k, n = 128, 320
    scratch.reserve(CPU, 100 * k * 2)
    tiles = scratch.tiles(CPU, k, n, torch.bfloat16)
    parts = scratch.column_tiles(k, n, 2, scratch.reserved(CPU))
    assert [(tile.first, tile.last - tile.first) for tile in tiles] == parts
    for tile in tiles:
        assert tile.dense.shape == (tile.last - tile.first, k)
        assert tile.dense.dtype == torch.bfloat16
        assert tile.dense.is_contiguous()
        assert tile.dense.data_ptr() == tiles[0].dense.data_ptr()
        assert tile.transposed.shape == (k, tile.last - tile.first)
    tiles[0].dense.fill_(3)
    assert bool((tiles[-1].transposed == 3).all())


def test_more_columns_fit_in_fewer_bits() -> None:
    scratch.reserve(CPU, 64 * 128 * 2)
    assert len(scratch.tiles(CPU, 128, 256, torch.bfloat16)) == 4
    assert len(scratch.tiles(CPU, 128, 256, torch.float8_e4m3fn)) == 2


def test_a_buffer_too_small_for_a_weight_says_so() -> None:
    scratch.reserve(CPU, 1024)
    with pytest.raises(ValueError, match="64 columns of 128 values need 16,384 bytes; there are 1,024"):
        scratch.tiles(CPU, 128, 256, torch.bfloat16)


def test_it_never_moves_while_it_is_large_enough() -> None:
    scratch.reserve(CPU, 64 * 1024)
    first = scratch.tiles(CPU, 128, 64, torch.bfloat16)
    scratch.reserve(CPU, 64 * 1024)
    scratch.reserve(CPU, 100)
    assert scratch.reserved(CPU) == 64 * 1024
    assert scratch.tiles(CPU, 128, 64, torch.bfloat16) is first
    for k, dtype in ((64, torch.bfloat16), (128, torch.float8_e4m3fn), (256, torch.float16)):
        assert scratch.tiles(CPU, k, 64, dtype)[0].dense.data_ptr() == first[0].dense.data_ptr()


def test_a_larger_one_replaces_it_and_the_tiles_with_it() -> None:
    scratch.reserve(CPU, 64 * 128 * 2)
    before = scratch.tiles(CPU, 128, 256, torch.bfloat16)
    scratch.reserve(CPU, 256 * 128 * 2)
    after = scratch.tiles(CPU, 128, 256, torch.bfloat16)
    assert (len(before), len(after)) == (4, 1)
    assert after[0].dense.data_ptr() != before[0].dense.data_ptr()


def test_a_buffer_can_be_swapped_for_another_and_back() -> None:
    scratch.reserve(CPU, 64 * 128 * 2)
    before = scratch.tiles(CPU, 128, 256, torch.bfloat16)
    other = torch.empty(256 * 128 * 2, dtype=torch.uint8)
    usual = scratch.swap(CPU, other)
    assert usual is not None
    (tile,) = scratch.tiles(CPU, 128, 256, torch.bfloat16)
    assert tile.dense.data_ptr() == other.data_ptr()
    assert scratch.swap(CPU, usual) is other
    after = scratch.tiles(CPU, 128, 256, torch.bfloat16)
    assert [tile.dense.data_ptr() for tile in after] == [tile.dense.data_ptr() for tile in before]


def test_each_device_has_its_own() -> None:
    scratch.reserve(CPU, 64 * 128 * 2)
    scratch.reserve(OTHER, 128 * 128 * 2)
    assert (scratch.reserved(CPU), scratch.reserved(OTHER)) == (16_384, 32_768)
    assert len(scratch.tiles(CPU, 128, 128, torch.float16)) == 2
    (tile,) = scratch.tiles(OTHER, 128, 128, torch.float16)
    assert tile.dense.device == OTHER
    scratch.release()
    assert (scratch.reserved(CPU), scratch.reserved(OTHER)) == (0, 0)
    with pytest.raises(KeyError):
        scratch.tiles(OTHER, 128, 128, torch.float16)
