"""Patches of gptqmodel: read strictly, applied strictly, and such as `git apply` takes."""

from __future__ import annotations

import ast
import importlib
import inspect
import shutil
import subprocess
from pathlib import Path

import pytest

from gptq_hybrid.upstream.patching import Patch, PatchError, read_patch, shipped_patches

SOURCE = "".join(f"line {number}\n" for number in range(1, 21)) + "\nlast\n"
PATCH = """Subject: two changes

Words above the diff, and a rule
---
--- a/folder/file.py
+++ b/folder/file.py
@@ -2,3 +2,4 @@ def somewhere():
 line 2
-line 3
+line three
+line three and a half
 line 4
@@ -19,4 +20,3 @@
 line 19
-line 20
~
 last
""".replace("~\n", " \n")
EVERY = shipped_patches("solver.patch")


def test_a_patch_is_read_and_applied() -> None:
    patch = read_patch(PATCH, "x")
    assert patch.path == "folder/file.py"
    assert [hunk.line for hunk in patch.hunks] == [2, 19]
    patched = patch.apply(SOURCE)
    assert "line 2\nline three\nline three and a half\nline 4\n" in patched
    assert patched.endswith("line 19\n\nlast\n")


def test_an_empty_line_of_context_may_have_lost_its_space_in_the_mail() -> None:
    stripped = "\n".join(line.rstrip() for line in PATCH.splitlines())
    assert read_patch(stripped, "x").apply(SOURCE) == read_patch(PATCH, "x").apply(SOURCE)


def test_moved_lines_are_found_and_other_lines_are_not() -> None:
    patch = read_patch(PATCH, "x")
    assert patch.apply("new\n" * 7 + SOURCE) == "new\n" * 7 + patch.apply(SOURCE)
    with pytest.raises(PatchError, match="x: the lines expected at line 2 are there 0 times"):
        patch.apply(SOURCE.replace("line 4\n", "line 4 \n"))


def test_lines_that_occur_twice_or_in_another_order_are_refused() -> None:
    patch = read_patch(PATCH, "x")
    with pytest.raises(PatchError, match="line 2 are there 2 times"):
        patch.apply(SOURCE + SOURCE.partition("line 5")[0])
    first, last = SOURCE.partition("line 19")[0], SOURCE.partition("line 18\n")[2]
    with pytest.raises(PatchError, match="line 19 are there out of order"):
        patch.apply(last + first)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("--- a/folder/file.py\n", ""), "one file, not 0"),
        (("@@ -2,3 +2,4 @@", "@@ -2,4 +2,4 @@"), "not as long as it says"),
        (("@@ -19,4 +20,3 @@", "@@ -19 @@"), "a hunk is expected to begin here"),
        ((" last\n", " last\n line\n"), "a hunk is expected to begin here"),
        (("@@ -19,4", "--- a/b\n+++ b/b\n@@ -19,4"), "one file, not 2"),
        (("+line three\n", "!line three\n"), "not as long as it says"),
    ],
)
def test_what_is_no_patch_of_one_file_is_refused(change: tuple[str, str], message: str) -> None:
    assert change[0] in PATCH
    with pytest.raises(PatchError, match=message):
        read_patch(PATCH.replace(*change), "x")


def test_patches_of_the_latest_version_come_first() -> None:
    labels = [patch.label for patch in EVERY]
    assert labels == ["gptqmodel-7.7.0/solver.patch", "gptqmodel-7.6.0/solver.patch"]


@pytest.mark.parametrize("patch", EVERY, ids=lambda patch: patch.label)
def test_every_import_in_a_patch_resolves(patch: Patch) -> None:
    imports = [
        line.strip()
        for hunk in patch.hunks
        for line in hunk.after
        if "import" in line and line not in hunk.before
    ]
    assert len(imports) == 2
    for line in imports:
        (statement,) = ast.parse(line).body
        assert isinstance(statement, ast.ImportFrom)
        module = importlib.import_module(statement.module or "")
        for alias in statement.names:
            assert callable(getattr(module, alias.name))


@pytest.mark.parametrize("patch", EVERY, ids=lambda patch: patch.label)
def test_hunks_are_small_and_change_something(patch: Patch) -> None:
    assert patch.path == "gptqmodel/quantization/gptq.py"
    for hunk in patch.hunks:
        assert hunk.before != hunk.after
        assert len(hunk.before) <= 16


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_git_applies_the_patch_to_the_same_text(tmp_path: Path) -> None:
    from gptqmodel.quantization import gptq

    import gptq_hybrid.upstream
    from tests.upstream.test_solver import installed_patch

    patch, source = installed_patch(), inspect.getsource(gptq)
    file = tmp_path / patch.path
    file.parent.mkdir(parents=True)
    file.write_text(source, encoding="utf-8")
    path = Path(gptq_hybrid.upstream.__file__).parent / "patches" / patch.label
    subprocess.run(["git", "apply", "--unsafe-paths", str(path)], cwd=tmp_path, check=True)
    assert file.read_text(encoding="utf-8") == patch.apply(source)
