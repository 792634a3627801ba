"""The name of a linear's shape, and which shapes the expansion kernel takes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_qwen36_plugin.prefill.shape import Shape

shapes = st.builds(
    Shape,
    st.sampled_from(["marlin", "machete"]),
    st.integers(1, 1 << 20),
    st.integers(1, 1 << 20),
    st.sampled_from([4, 8]),
    st.sampled_from([-1, 16, 32, 64, 128, 1024]),
    st.sampled_from(["bfloat16", "float16"]),
)


@given(shapes)
def test_a_shapes_name_says_all_of_it(shape: Shape) -> None:
    assert Shape.parse(shape.key) == shape


def test_a_shapes_name_can_be_read_by_people() -> None:
    assert Shape("marlin", 5120, 34816, 4, 128, "bfloat16").key == "marlin 5120x34816 w4 g128 bfloat16"


@pytest.mark.parametrize(
    "key",
    [
        "",
        "marlin",
        "marlin 5120x34816 w4 g128",
        "marlin 5120x w4 g128 bfloat16",
        "marlin 5120x34816 w4 g128 bf16 x",
    ],
)
def test_what_names_no_shape_is_an_error_with_an_example(key: str) -> None:
    with pytest.raises(
        ValueError, match="names no shape; one is 'marlin 5120x34816 w4 g128 bfloat16'"
    ) as caught:
        Shape.parse(key)
    assert repr(key) in str(caught.value)


@pytest.mark.parametrize(
    ("layout", "k", "n", "group_size", "expandable"),
    [
        ("marlin", 5120, 34816, 128, True),
        ("marlin", 16, 64, -1, True),
        ("marlin", 64, 64, 16, True),
        ("marlin", 64, 96, 16, False),  # half a tile of columns
        ("marlin", 72, 64, -1, False),  # half a tile along k
        ("marlin", 64, 64, 8, False),  # two groups in a tile
        ("marlin", 192, 64, 128, False),  # a group and a half
        ("marlin", 64, 64, 128, False),  # half a group
        ("machete", 64, 128, -1, True),
        ("machete", 256, 128, 128, True),
        ("machete", 256, 64, 128, False),
        ("machete", 96, 128, -1, False),
        ("machete", 256, 128, 32, False),
    ],
)
def test_whole_tiles_and_groups_alone_are_expandable(
    layout: str, k: int, n: int, group_size: int, expandable: bool
) -> None:
    assert Shape(layout, k, n, 4, group_size, "bfloat16").expandable is expandable
