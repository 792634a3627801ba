"""Versions of installed distributions."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def find_version(distribution: str) -> str | None:
    """Return the installed version of ``distribution``, or None where it is not installed."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None
