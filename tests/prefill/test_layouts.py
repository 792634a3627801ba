"""The order in which vLLM's kernels store a weight."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from vllm_qwen36_plugin.prefill.layouts import (  # noqa: E402
    LAYOUTS,
    MACHETE_4,
    MACHETE_8,
    MARLIN_4,
    MARLIN_8,
    Layout,
    marlin_scale_places,
)

from .made import pack  # noqa: E402

layouts = st.sampled_from([MARLIN_4, MARLIN_8, MACHETE_4, MACHETE_8])
tiles = st.integers(1, 4)


def name_of(layout: Layout) -> str:
    return f"{layout.name}-{layout.bits}"


def test_each_is_found_by_name_and_bits() -> None:
    assert {key: (layout.name, layout.bits) for key, layout in LAYOUTS.items()} == {
        ("marlin", 4): ("marlin", 4),
        ("marlin", 8): ("marlin", 8),
        ("machete", 4): ("machete", 4),
        ("machete", 8): ("machete", 8),
    }


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=name_of)
def test_tiles_are_what_the_kernels_read_at_a_time(layout: Layout) -> None:
    assert layout.tile == ((16, 64) if layout.name == "marlin" else (64, 16))
    assert 1 << len(layout.lanes) == 32 // layout.bits


@settings(max_examples=40, deadline=None)
@given(layout=layouts, down=tiles, across=tiles)
def test_every_value_has_one_place_and_every_place_one_value(layout: Layout, down: int, across: int) -> None:
    k, n = down * layout.tile[0], across * layout.tile[1]
    assert torch.equal(layout.places(k, n).reshape(-1).sort().values, torch.arange(k * n))


@settings(max_examples=20, deadline=None)
@given(layout=layouts, down=tiles, across=tiles)
def test_tiles_follow_each_other_along_n_then_along_k(layout: Layout, down: int, across: int) -> None:
    height, width = layout.tile
    places = layout.places(down * height, across * width) // (height * width)
    for i in range(down):
        for j in range(across):
            tile = places[i * height : (i + 1) * height, j * width : (j + 1) * width]
            assert bool((tile == i * across + j).all())


@settings(max_examples=20, deadline=None)
@given(layout=layouts, down=tiles, across=tiles, seed=st.integers(0, 2**31))
def test_what_is_packed_comes_out_again(layout: Layout, down: int, across: int, seed: int) -> None:
    k, n = down * layout.tile[0], across * layout.tile[1]
    codes = torch.randint(0, 1 << layout.bits, (k, n), generator=torch.Generator().manual_seed(seed))
    words = pack(codes, layout)
    assert words.dtype == torch.int32
    assert words.numel() == k * n * layout.bits // 32
    assert torch.equal(layout.codes(words, k, n), codes)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=name_of)
def test_broken_tiles_are_refused(layout: Layout) -> None:
    k, n = layout.tile
    for broken in ((k // 2, n), (k, n // 2), (k + 1, n), (k, n + 8)):
        with pytest.raises(
            ValueError, match=rf"{broken[0]} × {broken[1]} is not made of {layout.name} tiles"
        ):
            layout.places(*broken)


@pytest.mark.engine  # no engine, but vLLM is imported: some seconds
@pytest.mark.parametrize("layout", [MARLIN_4, MARLIN_8], ids=name_of)
def test_marlins_order_is_that_of_vllms_own_packing(layout: Layout) -> None:
    """`marlin_weights` is what vLLM's tests compare `gptq_marlin_repack` with. For Machete see `test_gpu`."""
    pytest.importorskip("vllm")
    from vllm.model_executor.layers.quantization.utils import marlin_utils_test as theirs

    codes = torch.randint(0, 1 << layout.bits, (128, 256), generator=torch.Generator().manual_seed(1))
    order = theirs.get_weight_perm(layout.bits)
    packed = theirs.marlin_weights(codes.to(torch.int32), 128, 256, layout.bits, order)
    assert torch.equal(packed.reshape(-1), pack(codes, layout))


@pytest.mark.engine  # no engine, but vLLM is imported: some seconds
@pytest.mark.parametrize("n", [64, 192, 1024])
@pytest.mark.parametrize(("k", "group_size"), [(256, 32), (256, 128), (256, -1), (256, 256)])
def test_marlins_scales_are_where_vllm_puts_them(n: int, k: int, group_size: int) -> None:
    pytest.importorskip("vllm")
    from vllm.model_executor.layers.quantization.utils.marlin_utils import marlin_permute_scales

    grouped = group_size not in (-1, k)
    scales = torch.arange(n * (k // group_size if grouped else 1)).reshape(-1, n).float()
    permuted = marlin_permute_scales(scales, k, n, group_size)
    assert torch.equal(permuted[:, marlin_scale_places(n, grouped=grouped)], scales)


@pytest.mark.parametrize("grouped", [True, False])
def test_every_scale_has_a_place_of_its_own(grouped: bool) -> None:
    assert sorted(marlin_scale_places(320, grouped=grouped).tolist()) == list(range(320))
