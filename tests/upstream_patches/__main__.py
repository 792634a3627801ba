"""Apply proposals to copies of vLLM and gptqmodel, and run each one's test before and after.

python -m tests.upstream_patches [NAME ...] [--source vllm=FOLDER] [--each] [--json] [--record]

Exit code 0: every test fails before and passes after, or passes before because the defect is gone. 1: one does not.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from .overlay import installed
from .pages import record
from .proof import Proof, prove
from .proposals import ROOMS, Proposal, all_proposals


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.upstream_patches", description=__doc__)
    parser.add_argument("names", nargs="*", help="folders of proposals; all by default")
    parser.add_argument("--source", action="append", default=[], metavar="PACKAGE=FOLDER",
                        help="an unpacked package in place of the installed one")  # fmt: skip
    parser.add_argument("--each", action="store_true", help="one patch at a time, each in its own process")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--record", action="store_true", help="keep the outcomes, and write them into the pages"
    )
    parser.add_argument(
        "--diff", action="store_true", help="print the unified diffs, to be sent, and run nothing"
    )
    arguments = parser.parse_args()
    proposals = all_proposals()
    unknown = set(arguments.names) - {proposal.name for proposal in proposals}
    if unknown:
        parser.error(
            f"no proposal {', '.join(sorted(unknown))}; there are: {', '.join(p.name for p in proposals)}"
        )
    chosen = [p for p in proposals if not arguments.names or p.name in arguments.names]
    sources = _sources(parser, arguments.source)
    if arguments.diff:
        for proposal in chosen:
            root = (sources.get(proposal.package) or installed(proposal.package)).parent
            sys.stdout.write(proposal.diff(root))
        return 0
    proofs = prove(chosen, sources, each=arguments.each, jobs=os.cpu_count() or 1)
    if arguments.record:
        record(proofs)
    if arguments.json:
        sys.stdout.write(json.dumps([as_json(proof) for proof in proofs], indent=1) + "\n")
    else:
        show(proofs)
    return 0 if all(proof.good for proof in proofs) else 1


def _sources(parser: argparse.ArgumentParser, given: list[str]) -> dict[str, Path]:
    sources = {}
    for text in given:
        package, _, folder = text.partition("=")
        path = Path(folder).resolve() / package
        if package not in ROOMS or not (path / "__init__.py").is_file():
            parser.error(f"--source {text}: expected PACKAGE=FOLDER with FOLDER/PACKAGE/__init__.py")
        sources[package] = path
    return sources


def as_json(proof: Proof) -> dict[str, object]:
    """Return one row, with the names of the tests."""
    proposal: Proposal = proof.proposal
    return {
        "name": proposal.name,
        "title": proposal.title,
        "package": proposal.package,
        "version": proof.version,
        "lines": proof.lines,
        "files": proposal.files,
        "before": asdict(proof.before),
        "after": asdict(proof.after),
        "refused": proof.refused,
        "verdict": proof.verdict,
    }


def show(proofs: list[Proof]) -> None:
    """Print the table."""
    table = Table(title="Patches for upstream, without this project's packages")
    for heading in ("patch", "package", "lines", "before", "after", "verdict"):
        table.add_column(heading, overflow="fold")
    for proof in proofs:
        added, removed = proof.lines
        lines = f"+{added} -{removed}" if proof.proposal.patch else ""
        outcomes = (str(proof.before), str(proof.after)) if proof.proposal.patch else ("", "")
        if proof.verdict in ("does not apply", "fixed upstream"):
            outcomes = (outcomes[0], proof.refused)
        table.add_row(
            proof.proposal.name, f"{proof.proposal.package} {proof.version}", lines, *outcomes, proof.verdict
        )
    Console(width=None if sys.stdout.isatty() else 160).print(table)


if __name__ == "__main__":
    sys.exit(main())
