"""MTP works or vLLM does not start: files are checked in the front process, the loaded head in the worker."""
