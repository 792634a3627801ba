"""What a folder of a proposal holds."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from runpy import run_path

ROOT = Path(__file__).parents[2]
ROOMS = {
    "vllm": ROOT / "vllm_qwen36_plugin/upstream/proposals",
    "gptqmodel": ROOT / "gptq_hybrid/upstream/proposals",
}
DESCRIPTION = "DESCRIPTION.md"


@dataclass(frozen=True)
class Proposal:
    """One folder: a description, and for a change that is written already a patch and its test.

    Attributes:
        package: the import name of what is changed, ``vllm`` or ``gptqmodel``.
    """

    package: str
    folder: Path

    @property
    def name(self) -> str:
        return self.folder.name

    @cached_property
    def title(self) -> str:
        """The heading of the description."""
        return (self.folder / DESCRIPTION).read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")

    @property
    def patch(self) -> Path | None:
        """A unified diff, or ``edit.py``: a program with ``FILE``, and ``edit(source)`` for its new text."""
        names = (f"{self.name}.patch", "edit.py")
        return next((path for name in names if (path := self.folder / name).is_file()), None)

    @property
    def tests(self) -> list[Path]:
        return sorted(self.folder.glob("test_*.py"))

    @cached_property
    def files(self) -> list[str]:
        """The files that the patch changes, from the folder that holds the package."""
        if self.patch is None:
            return []
        if self.patch.suffix == ".py":
            return [str(run_path(str(self.patch))["FILE"])]
        return re.findall(r"^\+\+\+ b/(\S+)", self.patch.read_text(encoding="utf-8"), re.MULTILINE)

    def diff(self, root: Path) -> str:
        """Return the unified diff for the source below ``root``, the folder that holds the package.

        Raises:
            ValueError: a program does not know this source.
        """
        if self.patch is None:
            return ""
        if self.patch.suffix != ".py":
            return self.patch.read_text(encoding="utf-8")
        program = run_path(str(self.patch))
        name = program["FILE"]
        before = (root / name).read_text(encoding="utf-8")
        try:
            after = program["edit"](before)
        except (AssertionError, ValueError) as error:
            raise ValueError(f"{self.patch.name} does not know this source: {error}") from error
        lines = difflib.unified_diff(
            before.splitlines(), after.splitlines(), f"a/{name}", f"b/{name}", "", "", 1, ""
        )
        return "\n".join(lines) + "\n"


def all_proposals() -> list[Proposal]:
    """Return every proposal, those to vLLM first, in the order of their names."""
    return [
        Proposal(package, description.parent)
        for package, room in ROOMS.items()
        for description in sorted(room.glob(f"*/{DESCRIPTION}"))
    ]


def count_lines(diff: str) -> tuple[int, int]:
    """Count the lines that a unified diff adds and removes."""
    lines = [line for line in diff.splitlines() if not line.startswith(("+++", "---"))]
    return sum(line[:1] == "+" for line in lines), sum(line[:1] == "-" for line in lines)
