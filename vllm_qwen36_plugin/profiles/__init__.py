"""GPU profiles that ship, one module a generation."""

from .ada import ADA_PROFILES

__all__ = ["ADA_PROFILES"]
