"""``qwen36 env``: what to paste into a bug report."""

from .look import Environment, look_around

__all__ = ["Environment", "look_around"]
