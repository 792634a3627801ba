"""vLLM's names of the model classes this plugin acts on.

Those of the family in ``gptq_hybrid.checkpoint.families`` (a test compares them), written down here because
importing that package and scanning its entry points took 80 ms of a register() that may take 50.
"""

from __future__ import annotations

TARGETS = ("Qwen3_5ForConditionalGeneration", "Qwen3_5ForCausalLM")
MTP_DRAFT = "Qwen3_5MTP"
