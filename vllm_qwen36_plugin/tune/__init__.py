"""``qwen36 tune``: instruments that measure this machine, and write or recommend what serving then uses."""
