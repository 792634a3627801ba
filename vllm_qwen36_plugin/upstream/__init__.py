"""Everything that touches vLLM below its public interface, one module a thing touched.

Each module begins with the same five lines: what it changes, why, which versions it was read in, how it checks what
it touches, and when it may go. Each function raises :class:`~vllm_qwen36_plugin.errors.CompatError` if what it
touches does not have the shape it expects. All of it was run on vLLM 0.32.0.
"""
