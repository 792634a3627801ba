"""``qwen36 receipt`` and ``qwen36 card``: what a checkpoint does when served, for others to check.

A *cell* is one context, batch and domain of prompts. ``plan`` lists the cells, ``workload`` has the prompts,
``target`` finds or starts the server, ``load`` sends requests through ``vllm bench serve``, ``measure`` fills the
``record``. ``summary`` gives intervals, ``compare`` ratios of two receipts, ``fiction`` warnings. ``table``,
``markdown``, ``picture`` and ``hub`` show it; ``card`` writes a model card; ``reference`` makes the table of the
published card.

Reading and comparing receipts needs neither torch nor vLLM.
"""
