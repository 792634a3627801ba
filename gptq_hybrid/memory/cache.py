"""How vLLM divides its cache between the keys and values of attention and the states of Gated DeltaNet.

The formulas follow vLLM 0.32.0 (``platforms/interface.py``, ``v1/core/kv_cache_utils.py``, ``MambaSpec``):

* One token of one attention layer takes K and V, ``2 × KV heads × head size`` values, and with a dtype "per token
  and head" a scale in FP32 for each head of each.
* One state of one Gated-DeltaNet layer takes ``value heads × value size × key size`` values of the recurrent
  state and ``channels × (kernel - 1 + drafts)`` of the convolution.
* All pages are of one size: a block holds so many tokens that a page of attention is no smaller than a state.
* Layers of a kind are split into groups of the size of the smaller kind, and a block is one page of each layer of
  a group. All groups draw from one pool of blocks; one block is vLLM's own.
* A running sequence holds, for each group of Gated DeltaNet, one state and one more for each draft; with prefix
  caching ("align") yet one more. From 0.33 on FlashInfer's prefill (Hopper, Blackwell) takes another, and wants
  blocks in multiples of 64 tokens (``qwen_gdn_linear_attn.py``).
* With tensor parallelism a rank has its share of the heads, at least one.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import lcm

from gptq_hybrid.checkpoint import Checkpoint, TensorLayout, layout_for
from gptq_hybrid.common.errors import CheckpointError, HybridError

# Bytes of a value, and of the scale of a head, by the names that --kv-cache-dtype takes.
KV_DTYPES: dict[str, tuple[float, int]] = {
    "auto": (2, 0),
    "bfloat16": (2, 0),
    "float16": (2, 0),
    "fp8": (1, 0),
    "fp8_e4m3": (1, 0),
    "fp8_e5m2": (1, 0),
    "fp8_per_token_head": (1, 4),
    "int8_per_token_head": (1, 4),
    "int4_per_token_head": (0.5, 4),
}
# Those that only vLLM's Triton kernels of attention take; in 0.26 and later.
TRITON_KV_DTYPES = tuple(name for name, (_, scale) in KV_DTYPES.items() if scale)
# Bytes of a value, by the names that `mamba_ssm_dtype` and --mamba-ssm-cache-dtype take; 16 bits for "auto".
STATE_DTYPES = {"auto": 2, "float32": 4, "bfloat16": 2, "float16": 2}
# Tokens by which kernels of attention want a block's to be divisible.
GPU_ALIGNMENT = 16
# The CPU build starts from blocks of 128 (seen in 0.32.0: blocks of 256 for a page of 199 tokens).
CPU_ALIGNMENT = 128
# Of FlashInfer's kernels for Gated DeltaNet.
CHECKPOINT_ALIGNMENT = 64
# If one kind has fewer than so many times the layers of the other, groups are of the larger size.
_NEARLY_EQUAL = 1.5
_KEY_HEAD_DIM, _HEAD_DIM = 128, 256


@dataclass(frozen=True, slots=True)
class CacheLayout:
    """The cache of one checkpoint under one choice of drafts and dtype.

    Attributes:
        attention_layers: with full attention, the MTP layer among them if it drafts.
        state_layers: with Gated DeltaNet.
        token_bytes: keys and values of one token in one attention layer.
        state_bytes: one state of one Gated-DeltaNet layer, convolution included.
        block_tokens: tokens of a block.
        group_layers: layers whose pages make up a block.
        states: copies of the state that a running sequence holds.
        convolution_bytes: of ``state_bytes``, what the convolution takes.
    """

    attention_layers: int
    state_layers: int
    token_bytes: int
    state_bytes: int
    block_tokens: int
    group_layers: int
    states: int
    convolution_bytes: int = 0

    @property
    def block_bytes(self) -> int:
        """Bytes of one block of the pool."""
        return self.block_tokens * self.token_bytes * self.group_layers

    @property
    def sequence_blocks(self) -> int:
        """Blocks that the states of one running sequence take, whatever its length."""
        return -(-self.state_layers // self.group_layers) * self.states

    @property
    def sequence_bytes(self) -> int:
        """Bytes that the states of one running sequence take, padding included."""
        return self.sequence_blocks * self.block_bytes

    def token_blocks(self, tokens: int) -> int:
        """Blocks that the keys and values of ``tokens`` of one sequence take."""
        return -(-self.attention_layers // self.group_layers) * -(-tokens // self.block_tokens)

    def blocks(self, cache_bytes: int) -> int:
        """Blocks that ``cache_bytes`` make, less vLLM's own."""
        return max(0, cache_bytes // self.block_bytes - 1)

    def tokens(self, cache_bytes: int, sequences: int) -> int:
        """Tokens left for all sequences together, in whole blocks, once ``sequences`` of them hold their states."""
        left = max(0, self.blocks(cache_bytes) - sequences * self.sequence_blocks)
        groups = -(-self.attention_layers // self.group_layers)
        return left // groups * self.block_tokens

    def at_once(self, cache_bytes: int, tokens: int) -> int:
        """Sequences of ``tokens`` each that ``cache_bytes`` hold together, with their states."""
        return self.blocks(cache_bytes) // (self.sequence_blocks + self.token_blocks(tokens))

    def kept(self, cache_bytes: int, tokens: int, running: int) -> int:
        """Contexts of ``tokens`` that stay cached while ``running`` of them run; at rest one has a single state."""
        groups = self.sequence_blocks // self.states
        room = self.blocks(cache_bytes) - running * groups * (self.states - 1)
        return max(0, room // (groups + self.token_blocks(tokens)))

    def longest(self, cache_bytes: int, sequences: int) -> int:
        """Tokens that each of ``sequences`` can have at once, in whole blocks; 0 if their states do not fit."""
        groups = -(-self.attention_layers // self.group_layers)
        each = self.blocks(cache_bytes) // sequences - self.sequence_blocks
        return max(0, each // groups * self.block_tokens)

    def bytes_for(self, tokens: int, sequences: int) -> int:
        """Bytes of cache that ``sequences`` at once need, one of them ``tokens`` long."""
        return (1 + sequences * self.sequence_blocks + self.token_blocks(tokens)) * self.block_bytes

    def reported_tokens(self, cache_bytes: int, length: int) -> int:
        """The "KV cache size" that vLLM logs for ``--max-model-len length``.

        It is ``length`` times the sequences of that length that fit, each with its own states.
        """
        each = self.token_blocks(length) + self.sequence_blocks
        return int(length * (cache_bytes // self.block_bytes) / each)


def cache_layout(
    checkpoint: Checkpoint,
    *,
    drafts: int = 0,
    kv_dtype: str = "auto",
    prefix_caching: bool = True,
    alignment: int = GPU_ALIGNMENT,
    state_dtype: str = "auto",
    tensor_parallel: int = 1,
    checkpoints: bool = False,
) -> CacheLayout:
    """Derive the layout of the cache, on one GPU, from a checkpoint's ``config.json``.

    Args:
        drafts: MTP drafts a step; 0 for none, and then no MTP layer.
        kv_dtype: as in ``--kv-cache-dtype``; ``auto`` is the model's 16 bits.
        prefix_caching: whether vLLM caches prefixes, its default.
        alignment: by which the tokens of a block must be divisible: 16 on a GPU.
        state_dtype: as in ``--mamba-ssm-cache-dtype``; ``auto`` is what ``mamba_ssm_dtype`` says.
        tensor_parallel: GPUs that share the heads.
        checkpoints: whether the prefill kernel of Gated DeltaNet exports states, as FlashInfer's does from 0.33
            on with prefix caching.

    Raises:
        UnsupportedArchitectureError: no family recognises the config.
        CheckpointError: the config has an absurd dimension, or no layer of one of the two kinds.
        HybridError: the heads cannot be divided among so many GPUs.
        ValueError: an unknown ``kv_dtype`` or ``state_dtype``.
    """
    if kv_dtype not in KV_DTYPES:
        raise ValueError(f"unknown KV dtype {kv_dtype!r}; there are: {', '.join(KV_DTYPES)}")
    if state_dtype not in STATE_DTYPES:
        raise ValueError(f"unknown dtype of states {state_dtype!r}; there are: {', '.join(STATE_DTYPES)}")
    layout = layout_for(checkpoint.config)
    keys = [linear for linear in layout.quantized if linear.name.endswith(".self_attn.k_proj")]
    convolutions = {spec.name: spec.shape for spec in layout.plain if spec.name.endswith(".conv1d.weight")}
    if not keys or not convolutions:
        raise CheckpointError("config.json", "has no layers with full attention, or none with Gated DeltaNet")
    token = _token_bytes(checkpoint, keys[0].out_features, kv_dtype, tensor_parallel)
    convolution = next(iter(convolutions.values()))
    state = _state_bytes(checkpoint, layout, convolution, drafts, state_dtype, tensor_parallel)
    mtp = sum(linear.name.endswith(".self_attn.k_proj") for linear in layout.mtp_linears) if drafts else 0
    attention, states = len(keys) + mtp, len(convolutions)
    group, most = sorted((attention, states))
    checkpoints = checkpoints and prefix_caching
    unit = lcm(alignment, CHECKPOINT_ALIGNMENT) if checkpoints else alignment
    return CacheLayout(
        attention_layers=attention,
        state_layers=states,
        token_bytes=token,
        state_bytes=state,
        block_tokens=unit * -(-state // (unit * token)),
        group_layers=most if most < group * _NEARLY_EQUAL else group,
        states=1 + drafts + prefix_caching + checkpoints,
        convolution_bytes=_convolution_bytes(convolution, drafts) // tensor_parallel,
    )


def _token_bytes(checkpoint: Checkpoint, out_features: int, kv_dtype: str, ranks: int) -> int:
    size = min(out_features, int(checkpoint.text_config.get("head_dim") or _HEAD_DIM))
    heads = out_features // size
    queries = checkpoint.text_config.get("num_attention_heads") or heads
    if queries % ranks or max(heads, ranks) % min(heads, ranks):
        raise HybridError(
            f"{queries} heads of attention, {heads} of them with keys and values of their own, cannot be divided "
            f"among {ranks} GPUs",
            remedy="Give a number that divides the model's heads, such as: --tp 2",
        )
    width, scale = KV_DTYPES[kv_dtype]
    return 2 * max(1, heads // ranks) * (int(size * width) + scale)


def _state_bytes(
    checkpoint: Checkpoint,
    layout: TensorLayout,
    convolution: tuple[int, ...],
    drafts: int,
    dtype: str,
    ranks: int,
) -> int:
    text = checkpoint.text_config
    heads = next(spec.shape[0] for spec in layout.plain if spec.name.endswith(".A_log"))
    value = next(spec.shape[0] for spec in layout.plain if spec.name.endswith(".linear_attn.norm.weight"))
    key = text.get("linear_key_head_dim", _KEY_HEAD_DIM)
    # Without `mamba_ssm_dtype` vLLM takes the convolution's, the model's.
    stored = str(text.get("mamba_ssm_dtype", "auto")) if dtype == "auto" else dtype
    width = STATE_DTYPES.get(stored, 4)
    channels = convolution[0]
    key_heads = (channels - heads * value) // (2 * int(key))
    if heads % ranks or key_heads % ranks:
        raise HybridError(
            f"{key_heads} and {heads} heads of Gated DeltaNet cannot be divided among {ranks} GPUs",
            remedy="Give a number that divides both, such as: --tp 2",
        )
    return (heads * value * int(key) * width + _convolution_bytes(convolution, drafts)) // ranks


def _convolution_bytes(convolution: tuple[int, ...], drafts: int) -> int:
    channels, _, kernel = convolution
    return channels * (kernel - 1 + drafts) * 2
