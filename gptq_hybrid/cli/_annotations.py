"""Findings for machines that show them beside code: SARIF 2.1.0, and the commands of GitHub Actions."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gptq_hybrid
from gptq_hybrid.doctor import Finding, Report, Rule, Severity

from ._findings import place

_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"


def sarif_log(reports: Sequence[Report], rules: Sequence[Rule]) -> str:
    """Return a SARIF 2.1.0 log with one run (OASIS standard, section 3.13), as indented JSON.

    Rules of findings that no rule made, such as ``unreadable``, are listed without a description.
    """
    known = {rule.id: rule for rule in rules}
    results = [(report, finding) for report in reports for finding in report.findings]
    ids = list(dict.fromkeys([*known, *(finding.rule for _, finding in results)]))
    log = {
        "$schema": _SCHEMA,
        "version": "2.1.0",
        "runs": [
            {
                "tool": {
                    "driver": {
                        "name": "qwen36 check",
                        "version": gptq_hybrid.__version__,
                        "rules": [_rule(id, known.get(id)) for id in ids],
                    }
                },
                "results": [
                    {
                        "ruleId": finding.rule,
                        "ruleIndex": ids.index(finding.rule),
                        "level": _level(finding),
                        "message": {"text": f"{finding.message}\n{finding.remedy}"},
                        "locations": [
                            {"physicalLocation": {"artifactLocation": {"uri": _uri(report, finding)}}}
                        ],
                    }
                    for report, finding in results
                ],
            }
        ],
    }
    return json.dumps(log, indent=2, ensure_ascii=False)


def _rule(id: str, rule: Rule | None) -> dict[str, Any]:
    if rule is None:
        return {"id": id}
    return {
        "id": id,
        "shortDescription": {"text": rule.explanation},
        "help": {"text": rule.remedy},
        "defaultConfiguration": {"level": "error" if rule.severity is Severity.ERROR else "warning"},
    }


def _level(finding: Finding) -> str:
    return "error" if finding.severity is Severity.ERROR else "warning"


def _uri(report: Report, finding: Finding) -> str:
    """A relative path as it is, which code scanning takes for one in the repository; an absolute one as file:."""
    where = place(report.path, finding)
    return Path(where).as_uri() if where.startswith("/") else where


def github_lines(report: Report) -> Iterator[str]:
    """Yield the workflow command of each finding: ``::error file=…,title=…::message``."""
    for finding in report.findings:
        properties = f"file={_property(place(report.path, finding))},title={_property(finding.rule)}"
        yield f"::{_level(finding)} {properties}::{_data(finding.message)}%0Ahelp: {_data(finding.remedy)}"


def _data(text: str) -> str:
    """Escape the message of a workflow command, as GitHub's toolkit does."""
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
