"""Everything that touches vLLM beyond its public interface, one module a thing touched.

Each function checks that what it touches has the shape it expects and raises
:class:`~vllm_qwen36_plugin.errors.CompatError` where it has not; read in 0.19.1 to 0.33.0, run on 0.32.0.
"""
