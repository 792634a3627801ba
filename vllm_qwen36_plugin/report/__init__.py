"""What the plugin says of itself: in ``/metrics`` of a running server, and to ``qwen36 env``.

Imports neither vLLM nor prometheus_client; ``publish`` and ``probe`` do so when they run.
"""

from .notes import Note, note

__all__ = ["Note", "note"]
