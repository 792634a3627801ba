"""What every check before start needs: the files on this machine, and a refusal that can be read."""

from .folder import INDEXED_FORMATS, open_local
from .graphs_key import SALT, enter_salt
from .message import bullets
from .parent import note_passed, passed_in_parent
from .screen import options_of, refusal_in, show_refusal_alone

__all__ = [
    "INDEXED_FORMATS",
    "SALT",
    "bullets",
    "enter_salt",
    "note_passed",
    "open_local",
    "options_of",
    "passed_in_parent",
    "refusal_in",
    "show_refusal_alone",
]
