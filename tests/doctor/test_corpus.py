"""Every case of the corpus gets the verdict it deserves, with the rule that explains it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gptq_hybrid.doctor import check, check_rules
from tests.corpus import BASES, CASES, Bases, CorpusCase, Workshop

from .folders import snapshot

RECORD = Path(__file__).parents[2] / "bench" / "doctor" / "agreement.json"
# These are reported for something that is no checkpoint at all.
_NOT_RULES = {"config-dimensions", "unreadable"}
# It looks at what a deep check alone reads: `test_values.py`.
_DEEP = {"file-digest"}


@pytest.mark.parametrize("name", [name for name in BASES if name != "gptq-act-order"])
def test_a_good_checkpoint_serves_without_a_word(bases: Bases, name: str) -> None:
    report = check(bases[name], vllm="0.32.0")
    assert report.findings == ()
    assert report.verdict == "serves"


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_a_case_gets_its_verdict(bases: Bases, case: CorpusCase, tmp_path: Path) -> None:
    shop = Workshop(bases[case.base], tmp_path / "case")
    case.apply(shop)
    before = snapshot(shop.folder)
    report = check(shop.folder, vllm=case.vllm, mtp=case.mtp, plugin=case.plugin)
    rules = {finding.rule for finding in report.findings}
    assert report.verdict == case.verdict, report.findings
    assert case.rules <= rules, report.findings
    if case.verdict == "serves":
        assert rules == case.rules, report.findings
    assert "rule-failed" not in rules, report.findings
    assert all(finding.message and finding.remedy for finding in report.findings)
    severities = [str(finding.severity) for finding in report.findings]
    assert severities == sorted(severities), "errors come before warnings"
    content = report.as_json()
    json.dumps(content)
    assert set(content) == {"path", "findings", "verdict"}
    keys = {"rule", "severity", "message", "remedy"}
    assert all(keys <= set(f) <= keys | {"tensor", "file"} for f in content["findings"])
    assert snapshot(shop.folder) == before


def test_what_engines_did_still_agrees_with_what_is_said(bases: Bases, tmp_path: Path) -> None:
    """Compare recorded starts of engines (`tests/corpus/engines.py`) with the present rules."""
    recorded = json.loads(RECORD.read_text())
    cases = {case.id: case for case in CASES}
    assert len(recorded["cases"]) >= 12
    for name, row in recorded["cases"].items():
        base = name.removeprefix("good-")
        shop = Workshop(bases[cases[name].base if name in cases else base], tmp_path / name)
        if name in cases:
            cases[name].apply(shop)
        verdict = check(shop.folder, vllm=recorded["vllm"]).verdict
        assert verdict == row["verdict"], name
        assert row["engine"] == "fine" or verdict != "serves", name


def test_the_corpus_is_large_and_its_names_are_unique() -> None:
    assert len({case.id for case in CASES}) == len(CASES)
    assert sum(case.verdict == "faulty" for case in CASES) >= 40


def test_every_rule_has_a_case() -> None:
    covered = {rule for case in CASES for rule in case.rules}
    assert covered - _NOT_RULES == {rule.id for rule in check_rules()} - _DEEP


def test_no_two_rules_share_an_id() -> None:
    ids = [rule.id for rule in check_rules()]
    assert len(ids) == len(set(ids))
    assert all(rule.explanation and rule.remedy for rule in check_rules())
