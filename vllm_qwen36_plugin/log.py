"""The plugin's logger."""

from __future__ import annotations

import logging

# vLLM configures handlers for the `vllm` logger alone; a child of it is shown in vLLM's own format.
logger = logging.getLogger("vllm.qwen36")
