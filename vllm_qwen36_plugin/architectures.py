"""vLLM's names of the model classes this plugin acts on.

The same as those of the family in ``gptq_hybrid.checkpoint.families`` (a test compares them). They stand here too
because importing that package and scanning its entry points takes 80 ms, and register() may take 50.
"""

from __future__ import annotations

TARGETS = ("Qwen3_5ForConditionalGeneration", "Qwen3_5ForCausalLM")
MTP_DRAFT = "Qwen3_5MTP"
