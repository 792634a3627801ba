"""W4A16 linears that stay fast when a call has many tokens.

A stock kernel reads the packed weight again for every few tokens. From some number of tokens on it is faster to
write the weight out dense once, part by part into one small buffer, and let a dense GEMM read that. The number
of tokens decides which route a call takes, inside one custom op that torch.compile cannot look into.

* ``offer`` puts ``kernel`` ahead of vLLM's own kernels; it holds the kernel that vLLM would have chosen.
* ``dispatch`` has the op and its table; ``routes`` the dense routes (``exact``, ``fp8``); ``mixed`` keeps
  activations of 8 bits away from rows of decoding.
* ``humming_8bit`` is the route ``a8``, on words that ``eight_bit_words`` rearranges; ``guard`` finds the layers
  that keep 16 bits.
* ``expand`` is the Triton kernel that unpacks what ``layouts`` describes; ``activations`` quantizes activations;
  ``launch`` launches kernels past Triton's look-up; ``scratch`` is the buffer, ``room`` what is needed of it.
* ``prepare`` runs while weights are loaded. It tests each route against the loaded weights (``selftest``), finds
  the number of tokens from which each is faster (in a ``profile``, else by ``measure``), and records how to call
  the stock kernel's op without vLLM's Python (``replay``).
* ``front`` runs before a start; ``settings`` are the user's options; ``banner`` is the line in the log.
"""
