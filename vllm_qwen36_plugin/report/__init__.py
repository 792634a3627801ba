"""What the plugin says of itself in ``/metrics`` of a running server.

Imports neither vLLM nor prometheus_client; ``publish`` and ``gauges`` do so.
"""

from .notes import Note
from .noting import note

__all__ = ["Note", "note"]
