"""``qwen36 tune prefill``: measure on this card from how many tokens each route is faster, and write a profile.

``shapes`` lists a checkpoint's linears, ``layers`` builds and times one of each as vLLM would load it, ``result``
holds what came out, ``table`` and ``picture`` show it, ``machine`` refuses a machine that cannot be measured.
"""
