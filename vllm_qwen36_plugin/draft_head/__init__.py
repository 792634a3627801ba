"""Cheaper drafts: the MTP head's linears and the output head that drafts are drawn from, in fewer bits and rows.

Drafting alone is touched. The target model, its output head and the verification of every draft are vLLM's own, so
that what is generated has the same distribution whatever is drafted; a worse draft is accepted less often.

    settings    what was asked for, and what `auto` makes of it
    rounding    a dense weight in 4 or 8 bits, scales searched for
    methods     linears that are quantized once they are loaded: W4 and W8 by vLLM's GPTQ kernels, FP8 by its
                scaled GEMM
    selftest    what was made of a weight against the weight
    vocabulary  the tokens that may be drafted
    head        an output head for drafts, made of rows of the target's
    model       vLLM's draft model with all of this
"""
