"""What all rooms share: errors, whole-file writes, tables, figures, progress bars, the machine, a vLLM server.

Modules here import nothing of ``gptq_hybrid`` but each other, and no heavy library before it is used.
"""
