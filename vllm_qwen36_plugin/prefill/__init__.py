"""W4A16 linears that are fast for many rows too.

A stock kernel reads packed weights for every few rows again; from some number of rows on it is faster to write the
weight out dense once, part by part into one small buffer, and have a dense GEMM read that. Which way a call goes is
decided by its number of rows, inside one custom op that torch.compile cannot look into.

``kernel`` is offered to vLLM ahead of its own kernels and holds the one vLLM would have chosen; ``dispatch`` is
the op and its table; ``paths`` the ways there are (``exact``, ``fp8``); ``expand`` the Triton kernel that
unpacks, ``layouts`` what it unpacks; ``rows`` makes activations e4m3; ``scratch`` is the buffer. From how many
rows a way is faster says a profile (``profile``), which is measured (``measure``) or shipped; ``selftest``
compares every way with the weights as they were loaded; ``front`` tells vLLM's cache of compiled graphs that the
plugin is there.
"""
