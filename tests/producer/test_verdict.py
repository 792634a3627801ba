"""A run fails when too many modules did; below that, they are listed."""

from __future__ import annotations

from dataclasses import replace

from gptq_hybrid.compat import ModuleRecord
from gptq_hybrid.writer import Limits, judge

GOOD = ModuleRecord("m", 256, 4096, 1e-6, 0.01, 0.002, 0, "gptq")


def test_a_clean_run_passes() -> None:
    assert judge([GOOD] * 100).ok


def test_fallbacks_fail_past_the_limit_and_are_listed_below_it() -> None:
    bad = replace(GOOD, module="bad", outcome="fallback", loss=None, relative_error=None)
    assert judge([GOOD] * 199 + [bad]).ok
    assert judge([GOOD] * 199 + [bad]).fallbacks == ("bad",)
    failed = judge([GOOD] * 9 + [bad])
    assert not failed.ok
    assert "bad" in failed.failures[0]
    assert judge([GOOD] * 9 + [bad], Limits(fallback_fraction=0.2)).ok


def test_one_nan_fails() -> None:
    assert not judge([GOOD] * 999 + [replace(GOOD, module="n", outcome="nan")]).ok


def test_dead_columns_fail_by_their_share_of_one_module() -> None:
    assert judge([replace(GOOD, dead_columns=10)]).ok
    assert judge([replace(GOOD, dead_columns=10)]).dead == ("m",)
    assert not judge([replace(GOOD, dead_columns=100)]).ok


def test_a_module_with_fewer_tokens_than_inputs_is_starved() -> None:
    assert judge([replace(GOOD, tokens=255)]).starved == ("m",)
    assert judge([replace(GOOD, tokens=256)]).starved == ()
