"""Run the tests of proposals on a source, before and after their patches."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

from .overlay import PatchError, installed, make_overlay
from .proposals import Proposal, count_lines

# Of the running process: in its own way each would let this project in, or hide a defect.
_DROPPED = ("PYTHONPATH", "PYTEST_ADDOPTS", "PYTEST_XDIST_WORKER", "PYTHONHOME")
_SET = {
    "VLLM_PLUGINS": "",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    # gptqmodel builds no pool on two cores without; its own test takes the variable away.
    "GPTQMODEL_CPU_WORKERS": "2",
    "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
}


@dataclass
class Outcome:
    """How the tests of one proposal ended on one source: names of tests, without the parameters' file.

    ``broken`` are those that could not be collected or set up. They prove nothing.
    """

    passed: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)

    @property
    def all_pass(self) -> bool:
        return bool(self.passed) and not self.failed and not self.broken

    def __str__(self) -> str:
        words = {"passed": self.passed, "failed": self.failed, "skipped": self.skipped, "broken": self.broken}
        return ", ".join(f"{len(names)} {word}" for word, names in words.items() if names) or "none"


@dataclass
class Proof:
    """A proposal, and what its tests do before and after the patch."""

    proposal: Proposal
    version: str
    lines: tuple[int, int] = (0, 0)
    before: Outcome = field(default_factory=Outcome)
    after: Outcome = field(default_factory=Outcome)
    refused: str = ""

    @property
    def verdict(self) -> str:
        """One of ``mended``, ``fixed upstream``, ``proposal``, or what is wrong."""
        if self.proposal.patch is None:
            return "proposal"
        if self.before.all_pass:
            return "fixed upstream"
        if self.refused:
            return "does not apply"
        if self.before.broken or self.after.broken:
            return "tests do not run"
        if not self.before.failed:
            return "not shown"
        return "mended" if self.after.all_pass else "not mended"

    @property
    def good(self) -> bool:
        return self.verdict in ("mended", "fixed upstream", "proposal")


def prove(
    proposals: Sequence[Proposal], sources: dict[str, Path], *, each: bool = False, jobs: int = 1
) -> list[Proof]:
    """Run every test of ``proposals`` on each package's source without and with the patches.

    Args:
        sources: folders of packages in place of the installed ones, by name.
        each: one patch at a time, in a process of its own; else all patches of a package at once, after each has
            been applied alone.
        jobs: how many processes run at once.
    """
    with tempfile.TemporaryDirectory(prefix="upstream-") as scratch, ThreadPoolExecutor(jobs) as pool:
        tasks = []
        for package in dict.fromkeys(proposal.package for proposal in proposals):
            source = sources.get(package) or installed(package)
            own = [proposal for proposal in proposals if proposal.package == package]
            written = [proposal for proposal in own if proposal.patch]
            proofs = {proposal.name: Proof(proposal, version_of(package, source)) for proposal in own}
            folder = Path(scratch) / package
            folder.mkdir()
            for proposal in written:
                try:
                    proofs[proposal.name].lines = count_lines(proposal.diff(source.parent))
                    _overlay(folder / f"alone-{proposal.name}", package, source, [proposal])
                except (PatchError, ValueError) as error:
                    proofs[proposal.name].refused = str(error)
            tasks.append(
                (proofs, "before", pool.submit(_outcomes, folder / "before", package, source, [], written))
            )
            apply = [proposal for proposal in written if not proofs[proposal.name].refused]
            groups = [[proposal] for proposal in apply] if each else [apply]
            for number, group in enumerate(groups):
                run = pool.submit(_outcomes, folder / f"after-{number}", package, source, group, group)
                tasks.append((proofs, "after", run))
        found: dict[str, Proof] = {}
        for proofs, moment, run in tasks:
            for name, outcome in run.result().items():
                setattr(proofs[name], moment, outcome)
            found |= proofs
    return [found[proposal.name] for proposal in proposals]


def version_of(package: str, source: Path) -> str:
    """Return the version that a package's own files give: ``_version.py`` of vLLM, ``version.py`` of gptqmodel."""
    for name in ("_version.py", "version.py"):
        if (source / name).is_file():
            names: dict[str, object] = {}
            exec((source / name).read_text(encoding="utf-8"), names)
            return str(names["__version__"])
    raise FileNotFoundError(f"{source} does not say which version of {package} it is")


def _overlay(target: Path, package: str, source: Path, proposals: Sequence[Proposal]) -> None:
    diffs = [diff for proposal in proposals if (diff := proposal.diff(source.parent))]
    make_overlay(target, package, source, diffs, [file for p in proposals for file in p.files])


def _outcomes(
    folder: Path, package: str, source: Path, applied: Sequence[Proposal], tested: Sequence[Proposal]
) -> dict[str, Outcome]:
    """Run the tests of ``tested`` in one process, with the patches of ``applied``."""
    _overlay(folder / "site", package, source, applied)
    tests = folder / "tests"
    for proposal in tested:
        (tests / proposal.name).mkdir(parents=True)
        for path in proposal.tests:
            shutil.copyfile(path, tests / proposal.name / path.name)
    tests.mkdir(exist_ok=True)
    (tests / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
    (tests / "conftest.py").write_text(_conftest(package, folder / "site"), encoding="utf-8")
    env = {name: value for name, value in os.environ.items() if name not in _DROPPED} | _SET
    env["PYTHONPATH"] = str(folder / "site")
    report = folder / "report.xml"
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "--tb=short",
        "--import-mode=importlib",
        "-p",
        "no:cacheprovider",
    ]
    command += ["--continue-on-collection-errors", f"--junitxml={report}", "."]
    done = subprocess.run(command, cwd=tests, env=env, capture_output=True, text=True, check=False)
    (folder / "output.txt").write_text(done.stdout + done.stderr, encoding="utf-8")
    if not report.is_file():
        raise RuntimeError(
            f"pytest on {package} ended with {done.returncode}:\n{(done.stdout + done.stderr)[-4000:]}"
        )
    if os.environ.get("UPSTREAM_PATCHES_VERBOSE"):
        sys.stderr.write(done.stdout)
    return {proposal.name: _read(report, proposal.name) for proposal in tested}


def _conftest(package: str, site: Path) -> str:
    return f'''import pytest


def pytest_configure(config):
    import {package}

    if not {package}.__file__.startswith({str(site)!r}):
        raise pytest.UsageError("{package} is imported from " + {package}.__file__)
    for name in ("gptq_hybrid", "vllm_qwen36_plugin"):
        try:
            __import__(name)
        except ModuleNotFoundError:
            continue
        raise pytest.UsageError(name + " can be imported")
'''


def _read(report: Path, name: str) -> Outcome:
    """Read what JUnit's XML says of the tests in the folder ``name``."""
    outcome = Outcome()
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        place = (case.get("classname") or case.get("name") or "").split(".")
        if name not in place:
            continue
        kinds = {child.tag for child in case}
        to = (
            outcome.broken if "error" in kinds
            else outcome.failed if "failure" in kinds
            else outcome.skipped if "skipped" in kinds
            else outcome.passed
        )  # fmt: skip
        to.append(case.get("name", ""))
    return outcome
