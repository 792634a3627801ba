"""Shared by the checks before start: the checkpoint's folder, a readable refusal, vLLM's key of compiled graphs."""

from .folder import INDEXED_FORMATS, note_passed, open_local, passed_in_parent
from .graphs_key import SALT, enter_salt, plugin_version
from .refusal import plugin_options, refusal_in, refusal_text, show_refusal_alone

__all__ = [
    "INDEXED_FORMATS",
    "SALT",
    "enter_salt",
    "note_passed",
    "open_local",
    "passed_in_parent",
    "plugin_options",
    "plugin_version",
    "refusal_in",
    "refusal_text",
    "show_refusal_alone",
]
