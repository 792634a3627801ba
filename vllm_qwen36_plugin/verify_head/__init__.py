"""A cheap output head for verification, with the same greedy text.

planes   what a 4-bit copy lacks: two bits a weight, and bounds on the error of its logits
kernel   excludes by bound, and computes what is left again; on_cpu: the same in PyTorch
head     the head made of both
offer    makes it, or says why not
model    vLLM's model with it
"""
