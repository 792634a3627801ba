"""MTP works, or vLLM does not start: the front process checks the files, the worker the loaded head."""
