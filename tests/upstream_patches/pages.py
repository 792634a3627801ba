"""The table of each room's page of proposals, and the outcomes that it is made of."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from .proof import Proof
from .proposals import ROOMS, all_proposals

RESULTS = "proofs.json"
PAGE = "README.md"
_BEGIN, _END = "<!-- table: proofs -->\n", "<!-- end -->\n"


def row_of(proof: Proof) -> dict[str, object]:
    """Return what is kept of a proof: the verdict, and how many tests ended how."""
    return {
        "verdict": proof.verdict,
        "lines": list(proof.lines),
        "before": str(proof.before),
        "after": str(proof.after),
    }


def release(version: str) -> str:
    """Return the release of a version, without the part that names a build: ``0.32.0`` of ``0.32.0+cpu``."""
    return version.partition("+")[0]


def read_results(package: str) -> dict[str, dict[str, dict[str, object]]]:
    """Return the kept outcomes of a package, by version and by name of the proposal."""
    path = ROOMS[package] / RESULTS
    found: dict[str, dict[str, dict[str, object]]] = (
        json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    )
    return found


def record(proofs: Iterable[Proof]) -> None:
    """Keep the outcomes of ``proofs``, those of other versions and proposals too, and write the pages anew."""
    names = {(proposal.package, proposal.name) for proposal in all_proposals()}
    for package, room in ROOMS.items():
        results = read_results(package)
        for proof in proofs:
            if proof.proposal.package == package:
                results.setdefault(release(proof.version), {})[proof.proposal.name] = row_of(proof)
        kept = {
            version: {name: row for name, row in sorted(rows.items()) if (package, name) in names}
            for version, rows in sorted(results.items())
        }
        (room / RESULTS).write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
        page = room / PAGE
        page.write_text(with_table(page.read_text(encoding="utf-8"), package), encoding="utf-8")


def with_table(text: str, package: str) -> str:
    """Return a page with the table of ``package`` between its marks."""
    head, _, rest = text.partition(_BEGIN)
    _, _, tail = rest.partition(_END)
    return f"{head}{_BEGIN}{table(package)}{_END}{tail}"


def table(package: str) -> str:
    """Return the table: a row a proposal, two columns a version."""
    results = read_results(package)
    heads = "".join(f" {version}: before | after |" for version in results)
    lines = [f"| patch | what | lines |{heads}", f"|---|---|---|{'---|---|' * len(results)}"]
    for proposal in all_proposals():
        if proposal.package != package:
            continue
        rows = [results[version].get(proposal.name, {}) for version in results]
        sizes = [row["lines"] for row in rows if isinstance(row.get("lines"), list)]
        size = f"+{sizes[-1][0]} −{sizes[-1][1]}" if proposal.patch and sizes else ""  # type: ignore[index]
        cells = "".join(f" {_cell(row, 'before')} | {_cell(row, 'after')} |" for row in rows)
        link = f"[{proposal.name}]({proposal.name}/DESCRIPTION.md)"
        lines.append(f"| {link} | {proposal.title} | {size} |{cells}")
    return "\n".join(lines) + "\n"


def _cell(row: dict[str, object], moment: str) -> str:
    if row.get("verdict") in (None, "proposal"):
        return ""
    if moment == "after" and row["verdict"] != "mended":
        return str(row["verdict"])
    return str(row[moment])


def stale_pages() -> list[Path]:
    """Return the pages whose table is not that of the kept outcomes."""
    pages = {package: room / PAGE for package, room in ROOMS.items()}
    texts = {package: page.read_text(encoding="utf-8") for package, page in pages.items()}
    return [pages[package] for package, text in texts.items() if with_table(text, package) != text]
