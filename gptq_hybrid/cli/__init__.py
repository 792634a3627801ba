"""The ``qwen36`` command. Other packages add commands through the ``qwen36_commands`` hook."""

from .app import build_app, main

__all__ = ["build_app", "main"]
