"""Errors meant for people: what is wrong, in which file, what to do next."""

from __future__ import annotations

from pathlib import Path


class HybridError(Exception):
    """Base class of every refusal of this project.

    ``message`` says what is wrong; ``remedy`` says what to run or change next.
    """

    def __init__(self, message: str, *, remedy: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message}\n  {self.remedy}" if self.remedy else self.message


class CheckpointError(HybridError):
    """A checkpoint that cannot be read; ``path`` names the file or folder."""

    def __init__(self, path: str | Path, message: str, *, remedy: str | None = None) -> None:
        super().__init__(f"{path}: {message}", remedy=remedy)
        self.path = Path(path)


class BoundsError(CheckpointError):
    """Something that was not read, or not looked through, because it is too large. It may be in order."""


class TransferError(CheckpointError):
    """A server that cannot be reached, or whose answer says nothing about the checkpoint itself."""


class UnsupportedArchitectureError(HybridError):
    """A ``config.json`` that no registered family recognises."""
