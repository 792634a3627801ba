"""Each proposal's tests fail on the installed vLLM and gptqmodel, and pass with its patch; ours is not there."""

from __future__ import annotations

import re

import pytest

from .pages import read_results, release, row_of, stale_pages
from .proof import Proof, prove
from .proposals import DESCRIPTION, ROOMS, ROOT, Proposal, all_proposals

PROPOSALS = all_proposals()
SECTIONS = ("Problem", "Reproducer", "Fix", "Risk", "Performance", "Versions", "When it lands")


@pytest.fixture(scope="module")
def proofs() -> dict[str, Proof]:
    """All of them, in two processes a package."""
    return {proof.proposal.name: proof for proof in prove(PROPOSALS, {})}


@pytest.mark.long
@pytest.mark.parametrize("proposal", PROPOSALS, ids=lambda proposal: proposal.name)
def test_a_patch_mends_what_its_tests_show(proposal: Proposal, proofs: dict[str, Proof]) -> None:
    proof = proofs[proposal.name]
    assert proof.good, (proof.verdict, proof.refused, proof.before, proof.after)
    # What the page says of this version is what was just seen.
    kept = read_results(proposal.package).get(release(proof.version), {}).get(proposal.name)
    assert row_of(proof) == kept, "run: python -m tests.upstream_patches --record"


@pytest.mark.parametrize("proposal", PROPOSALS, ids=lambda proposal: proposal.name)
def test_a_description_says_what_a_maintainer_asks(proposal: Proposal) -> None:
    text = (proposal.folder / DESCRIPTION).read_text(encoding="utf-8")
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == list(SECTIONS)
    assert 20 < len(text.split()) < 700
    assert bool(proposal.patch) == bool(proposal.tests)
    # The modules that go are there now, and the ledger knows of the proposal.
    named = re.findall(r"`((?:gptq_hybrid|vllm_qwen36_plugin)/[\w/]+\.(?:py|patch))`", text)
    assert [name for name in named if not (ROOT / name).exists()] == []
    ledger = (ROOMS[proposal.package].parent / "README.md").read_text(encoding="utf-8")
    assert f"proposals/{proposal.name}/{DESCRIPTION}" in ledger


def test_the_pages_show_the_kept_outcomes() -> None:
    assert stale_pages() == []


def test_a_proposal_is_of_a_size_to_be_reviewed_in_ten_minutes(proofs: dict[str, Proof]) -> None:
    sizes = {name: sum(proof.lines) for name, proof in proofs.items()}
    assert {name: size for name, size in sizes.items() if size > 60} == {}
