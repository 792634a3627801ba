"""GPTQ act order (``desc_act: true``) for vLLM that gave it up, 0.30 and later.

vLLM's kernels want the rows of a group side by side. On load the rows of each layer are sorted by ``g_idx``, and
what the stock kernel gets is an ordinary checkpoint; the input is permuted to match. For ``down_proj`` the columns
of ``gate_up_proj`` are permuted instead, once, as nothing but an elementwise product lies between the two. Behind a
norm, on a GPU, the norm writes its output in order.

``claim`` answers vLLM's question whose checkpoint it is, ``config`` and ``method`` are vLLM's quantization config
and linear method, ``sorting`` is the arithmetic, ``front`` the check before start. ``norms`` finds the norms that
can write in order, ``norm`` and ``norm_kernel`` are what does it, ``built`` tells the config its model.
"""
