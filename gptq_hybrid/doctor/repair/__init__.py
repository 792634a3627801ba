"""Repairs that take no judgement: the index, ``quantization_config``, and a lost MTP head.

A plan is made first, out of headers alone, and then carried out: in place, where it touches small JSON files
and adds ``mtp.safetensors``, or into a copy, where a shard may be written anew.
"""

from ._repair import Repair, repair

__all__ = ["Repair", "repair"]
