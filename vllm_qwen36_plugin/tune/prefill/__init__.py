"""``qwen36 tune prefill``: from how many rows on which kernel is faster, measured on this card."""
