"""``qwen36 tune drafts``: find how many MTP drafts serve a workload fastest, measured through ``vllm serve``.

One server per count of drafts answers the user's prompts over HTTP, and vLLM's own counters tell which drafts were
accepted. A *cell* is one count of drafts, one batch and one context, measured several times.

``grid`` says what is measured, ``run`` starts the servers, ``prompts`` and ``client`` send and time requests,
``result`` keeps the figures, ``choose`` picks a count, ``table`` and ``picture`` show it all.
"""
