"""Cheaper drafts: the MTP head's linears in fewer bits, and an output head for drafts in fewer bits and channels.

Only drafting is touched. The target model, its output head and the verification of every draft are vLLM's own, so
what is generated has the same distribution whatever is drafted; a worse draft is accepted less often.

    settings    what the user asked for, and what `auto` makes of it
    methods     linears that are quantized once they are loaded: W4 and W8 by vLLM's GPTQ kernels, FP8 by its
                scaled GEMM
    selftest    compares what was made of a weight with the weight
    vocabulary  the tokens that may be drafted
    head        an output head for drafts, made of channels of the target's
    model       vLLM's draft model with all of this
    front       the check before start
    banner      the line that start-up logs
"""
