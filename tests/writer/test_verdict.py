"""A run fails when too many modules did; below that, they are listed."""

from __future__ import annotations

from dataclasses import replace

from gptq_hybrid.losses import ModuleRecord
from gptq_hybrid.writer import Limits, judge

GOOD = ModuleRecord(
    "m", columns=256, tokens=4096, loss=1e-6, damp=0.01, relative_error=0.002, dead_columns=0, outcome="gptq"
)


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


def test_a_run_that_goes_on_fails_early_only_for_what_the_rest_cannot_mend() -> None:
    bad = replace(GOOD, module="bad", outcome="fallback", loss=None, relative_error=None)
    assert judge([GOOD] * 9 + [bad], expected=400).ok
    assert not judge([GOOD] * 5 + [bad] * 5, expected=400).ok
    assert judge([GOOD] * 5 + [bad] * 4, expected=400).ok
    assert not judge([replace(GOOD, module="n", outcome="nan")], expected=400).ok


def test_a_failure_names_the_modules_and_why_they_were_given_up() -> None:
    bad = replace(GOOD, outcome="fallback", loss=None, relative_error=None, reason="not positive definite")
    (failure,) = judge([replace(bad, module=f"m{i}") for i in range(5)]).failures
    assert "(limit 1 %): m0 (not positive definite), m1 (not positive definite), m2" in failure
    assert "m3" not in failure


def test_raised_damping_is_listed_and_fails_nothing() -> None:
    raised = [replace(GOOD, module="d", damp=0.5, damp_asked=0.01), replace(GOOD, module="f", floor=0.1)]
    assert judge([GOOD, *raised]).damped == ("d", "f")
    assert judge([GOOD, *raised]).ok
