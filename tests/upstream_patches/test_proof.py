"""The proof itself can fail: on a toy package, each way in which a patch proves nothing is told apart."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from .overlay import PatchError, installed, make_overlay
from .proof import Proof, prove
from .proposals import Proposal

PATCH = """--- a/toy/deep/sums.py
+++ b/toy/deep/sums.py
@@ -1,2 +1,2 @@
 def add(a, b):
-    return a - b
+    return a + b
"""
SHOWS = "from toy.deep.sums import add\n\n\ndef test_sum():\n    assert add(2, 3) == 5\n"
PROGRAM = """FILE = "toy/deep/sums.py"


def edit(source):
    assert " - " in source
    return source.replace(" - ", " + ")
"""


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of an installed package."""
    package = tmp_path / "site" / "toy"
    (package / "deep").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "version.py").write_text('__version__ = "1.0"\n')
    (package / "deep" / "__init__.py").write_text("")
    (package / "deep" / "sums.py").write_text("def add(a, b):\n    return a - b\n")
    monkeypatch.syspath_prepend(str(package.parent))
    return package


def proposal(folder: Path, name: str, test: str, patch: str = PATCH, file: str = "") -> Proposal:
    (folder / name).mkdir()
    (folder / name / "DESCRIPTION.md").write_text(f"# {name}\n")
    (folder / name / (file or f"{name}.patch")).write_text(patch)
    (folder / name / "test_sums.py").write_text(test)
    return Proposal("toy", folder / name)


def test_what_proves_nothing_is_told_from_what_does(toy: Path, tmp_path: Path) -> None:
    made = [
        proposal(tmp_path, "good", SHOWS),
        proposal(tmp_path, "good-by-program", SHOWS, PROGRAM, "edit.py"),
        proposal(tmp_path, "shows-nothing", "def test_nothing():\n    assert True\n"),
        proposal(tmp_path, "cannot-be-collected", "import toy.deep.gone\n"),
        proposal(tmp_path, "of-another-version", SHOWS, PATCH.replace("a - b", "a * b")),
        proposal(tmp_path, "not-enough", SHOWS + "    assert add(2, 3) == 6\n"),
        proposal(tmp_path, "imports-us", SHOWS + "\n\ndef test_us():\n    import gptq_hybrid\n"),
    ]
    proofs = {proof.proposal.name: proof for proof in prove(made, {}, each=True)}
    assert {name: proof.verdict for name, proof in proofs.items()} == {
        "good": "mended",
        "good-by-program": "mended",
        "shows-nothing": "fixed upstream",
        "cannot-be-collected": "tests do not run",
        "of-another-version": "does not apply",
        "not-enough": "not mended",
        "imports-us": "not mended",
    }
    assert [proofs[name].good for name in ("good", "shows-nothing", "not-enough")] == [True, True, False]
    assert proofs["good"].lines == proofs["good-by-program"].lines == (1, 1)
    assert proofs["good"].version == "1.0"


def test_skipped_tests_show_no_defect() -> None:
    from .proof import Outcome

    proof = Proof(
        Proposal("toy", Path("x")), "1.0", before=Outcome(skipped=["a"]), after=Outcome(skipped=["a"])
    )
    assert not proof.before.all_pass
    assert str(proof.before) == "1 skipped"


def test_the_installed_package_stays_as_it_is(toy: Path, tmp_path: Path) -> None:
    run = [sys.executable, "-c", "from toy.deep.sums import add; print(add(2, 3))"]
    here = {"PYTHONPATH": str(toy.parent), "PATH": ""}
    assert subprocess.run(run, env=here, capture_output=True, text=True, check=True).stdout == "-1\n"
    target = tmp_path / "copy"
    make_overlay(target, "toy", installed("toy"), [PATCH], ["toy/deep/sums.py"])
    there = {"PYTHONPATH": str(target), "PATH": ""}
    for _ in range(2):
        assert subprocess.run(run, env=there, capture_output=True, text=True, check=True).stdout == "5\n"
        assert subprocess.run(run, env=here, capture_output=True, text=True, check=True).stdout == "-1\n"
    links = {path.name for path in (target / "toy").iterdir() if path.is_symlink()}
    assert links == {"__init__.py", "version.py"}


def test_a_patch_of_another_source_is_refused(toy: Path, tmp_path: Path) -> None:
    with pytest.raises(PatchError, match=r"toy/deep/sums\.py"):
        make_overlay(tmp_path / "copy", "toy", toy, [PATCH.replace("a - b", "a")], ["toy/deep/sums.py"])
