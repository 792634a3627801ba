"""A running server: is the plugin in it, what is on, are drafts accepted, what to change."""

from .advice import advise
from .reading import Counters, PathState, Reading, read
from .report import as_json, facts, summary
from .scrape import Scrape, base_url, scrape

__all__ = [
    "Counters",
    "PathState",
    "Reading",
    "Scrape",
    "advise",
    "as_json",
    "base_url",
    "facts",
    "read",
    "scrape",
    "summary",
]
