"""A copy of an installed package in which only the changed files are files of their own; all others are links.

The folder of the copy comes first on ``PYTHONPATH``. A ``sitecustomize`` there makes this project's own packages
unimportable, in every process of a test.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path, PurePosixPath

OURS = ("gptq_hybrid", "vllm_qwen36_plugin")
_GUARD = f'''"""The project that proposes the patches is not there."""

import sys


class _Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {OURS!r}:
            raise ModuleNotFoundError(f"{{name}} is hidden", name=name)
        return None


sys.meta_path.insert(0, _Absent())
'''


class PatchError(Exception):
    """A patch does not apply to this source."""


def installed(package: str) -> Path:
    """Return the folder of an installed package, without importing it.

    Raises:
        ModuleNotFoundError: it is not installed.
    """
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(package, name=package)
    return Path(next(iter(spec.submodule_search_locations))).resolve()


def make_overlay(
    target: Path, package: str, source: Path, diffs: Iterable[str], files: Iterable[str]
) -> None:
    """Lay ``source`` out as ``target/package`` and apply patches to it.

    Args:
        target: is made; the folder for ``PYTHONPATH``.
        source: the folder of the package, installed or unpacked. What is compiled and lacks in it is taken from
            the installed one.
        diffs: texts of unified diffs with paths from the root of the repository, applied in order.
        files: those that they change, such as ``vllm/envs.py``.

    Raises:
        PatchError: a patch does not apply; its last line says where.
    """
    target.mkdir(parents=True)
    (target / "sitecustomize.py").write_text(_GUARD, encoding="utf-8")
    changed = {str(PurePosixPath(name).relative_to(package)) for name in files}
    library = installed(package)
    compiled = () if source == library else library.rglob("*.so")
    extra = {str(path.relative_to(library)): path for path in compiled}
    _link(source, target / package, "", changed, extra)
    # Outside any repository: git would otherwise look for these paths in it.
    env = {**os.environ, "GIT_CEILING_DIRECTORIES": str(target.parent)}
    for diff in diffs:
        done = subprocess.run(
            ["git", "apply", "-"],
            cwd=target,
            env=env,
            input=diff,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise PatchError(done.stderr.strip().splitlines()[-1])


def _link(source: Path, target: Path, place: str, changed: set[str], extra: dict[str, Path]) -> None:
    """Fill ``target``: folders with changed files below them are made, all else is linked."""
    target.mkdir()
    inside = {
        name.removeprefix(place).partition("/") for name in {*changed, *extra} if name.startswith(place)
    }
    folders = {first for first, slash, _ in inside if slash}
    own = {first for first, slash, _ in inside if not slash}
    for path in sorted(source.iterdir()):
        if path.name == "__pycache__":
            # Not linked as a folder: Python would write the bytecode of changed files into the original's.
            (target / path.name).mkdir()
            for compiled in path.iterdir():
                if f"{compiled.name.partition('.')[0]}.py" not in own:
                    (target / path.name / compiled.name).symlink_to(compiled)
        elif path.name in folders:
            _link(path, target / path.name, f"{place}{path.name}/", changed, extra)
        elif f"{place}{path.name}" in changed:
            shutil.copyfile(path, target / path.name)
        elif f"{place}{path.name}" not in extra:
            (target / path.name).symlink_to(path)
    for name in own & {name.removeprefix(place) for name in extra}:
        (target / name).symlink_to(extra[f"{place}{name}"])
