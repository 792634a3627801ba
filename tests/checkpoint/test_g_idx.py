"""Natural order of ``g_idx``: feature by feature in groups of one size."""

from __future__ import annotations

import numpy as np
import pytest

from gptq_hybrid.checkpoint.g_idx import is_natural, natural_bytes


@pytest.mark.parametrize(
    ("features", "group_size", "expected"),
    [
        (6, 2, [0, 0, 1, 1, 2, 2]),
        (5, 2, [0, 0, 1, 1, 2]),
        (3, 128, [0, 0, 0]),
        (4, -1, [0, 0, 0, 0]),
        (4, 0, [0, 0, 0, 0]),
    ],
)
def test_natural_order_counts_groups_up(features: int, group_size: int, expected: list[int]) -> None:
    assert np.frombuffer(natural_bytes(features, group_size), "<i4").tolist() == expected


def test_only_the_whole_g_idx_in_order_is_natural() -> None:
    order = np.arange(256, dtype="<i4") // 128
    assert is_natural(order.tobytes(), 256, 128)
    assert is_natural(np.zeros(256, "<i4").tobytes(), 256, -1)
    assert not is_natural(order[::-1].tobytes(), 256, 128)
    assert not is_natural(order.tobytes()[:-4], 256, 128)
    assert not is_natural(order.tobytes(), 256, 64)
