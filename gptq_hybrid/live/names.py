"""What the plugin publishes in ``/metrics`` of a server: two gauges that are always 1, told by their labels."""

from __future__ import annotations

# One sample: the plugin is in this server.
INFO = "qwen36:plugin_info"
INFO_LABELS = ("version", "vllm", "device", "model", "drafts", "max_num_seqs", "options")
# One sample for each thing that the plugin does, or does not do, there.
PATH = "qwen36:path_info"
PATH_LABELS = ("path", "state", "detail")
