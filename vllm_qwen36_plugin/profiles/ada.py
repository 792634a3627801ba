"""Serve flags for Ada Lovelace cards (sm_89).

Only the L40S flags were ever run, by the reference artifact's authors. The others follow from sizes at 27B:

=======================================  ============
weights                                  18.1 GiB
  of these packed linears                11.7 GiB
  embeddings and ``lm_head``             4.7 GiB
  vision tower                           0.9 GiB
  MTP head                               0.8 GiB
FP8 KV cache per token, with MTP         34,816 bytes
Gated-DeltaNet state per sequence        0.43 GiB
  with two drafts
=======================================  ============
"""

from __future__ import annotations

from gptq_hybrid.hooks import GpuProfile

_FP8_KV = ("--kv-cache-dtype", "fp8", "--gpu-memory-utilization", "0.95")
_IMAGES = ("--limit-mm-per-prompt", '{"image": 4, "video": 0}')
_NO_IMAGES = ("--limit-mm-per-prompt", '{"image": 0, "video": 0}')

ADA_PROFILES = (
    GpuProfile(
        name="L40S",
        device_names=("L40S",),
        compute_capability=(8, 9),
        memory_gib=45.0,
        serve_flags=(*_FP8_KV, "--max-num-seqs", "8", "--max-model-len", "200000", *_IMAGES),
        source="measured: reference artifact's model card, one L40S, vLLM 0.19.1",
    ),
    GpuProfile(
        name="RTX 6000 Ada",
        device_names=("RTX 6000 Ada",),
        compute_capability=(8, 9),
        memory_gib=48.0,
        serve_flags=(*_FP8_KV, "--max-num-seqs", "8", "--max-model-len", "200000", *_IMAGES),
        source="derived: 3 GiB more than an L40S, whose flags these are",
    ),
    GpuProfile(
        name="RTX 4090",
        device_names=("RTX 4090",),
        compute_capability=(8, 9),
        memory_gib=24.0,
        serve_flags=(*_FP8_KV, "--max-num-seqs", "2", "--max-model-len", "16384", *_NO_IMAGES),
        source="derived: 22.8 GiB usable - 18.1 weights - 0.9 state - about 2 of activations leave 1.8 GiB of KV",
    ),
)
