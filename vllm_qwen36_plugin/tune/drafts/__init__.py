"""``qwen36 tune drafts``: how many MTP drafts serve a workload fastest, measured through ``vllm serve``.

One server a number of drafts, the user's prompts over HTTP, vLLM's own counters of accepted drafts. A *cell* is one
number of drafts, one batch and one context, measured several times over.
"""
