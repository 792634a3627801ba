"""Repairs that need no judgement: the index, ``quantization_config``, and a lost MTP head.

The changes are worked out first, from headers alone. Then they are carried out: in place, if they touch only small
JSON files and add ``mtp.safetensors``; or into a copy, where a shard may be written anew.
"""

from ._repair import Repair, repair

__all__ = ["Repair", "repair"]
