"""GPTQ act order (``desc_act: true``) for vLLM that gave it up, 0.30 and later.

vLLM's kernels need the rows of a group side by side. On load the rows of each layer are sorted by ``g_idx``, and
the stock kernel gets an ordinary checkpoint; the input is permuted to match. For ``down_proj`` the columns of
``gate_up_proj`` are permuted instead, once, as nothing but an elementwise product lies between the two. Behind a
norm, on a GPU, the norm writes its output in order.

    claim        whose checkpoint it is
    register     vLLM's quantization config that answers that question, until there is a proper one
    config       the proper one
    siblings     what the layers of one model know of each other
    method       the linear method
    sorting      its arithmetic
    norms        finds the norms that can write in order
    norm         such a norm, and its two ops
    norm_kernel  what they launch on a GPU
    front        the check before start
"""
