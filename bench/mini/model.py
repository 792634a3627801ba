"""The `qwen3_5` text model with its MTP head, for training: parameters carry the names of the checkpoint.

The numerics are those of transformers' `Qwen3_5TextModel` and of vLLM's `Qwen3_5MultiTokenPredictor`; `evaluate.py`
compares the first. A row holds several documents: a decay of e^-40 empties the Gated-DeltaNet state at each start,
convolution taps and attention do not reach over it. The gated delta rule is plain torch, to be compiled:
flash-linear-attention 0.6.0 refuses its backward pass on a Hopper GPU with the Triton of torch 2.11.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

Config = dict[str, Any]
END_OF_TEXT = "<|endoftext|>"
_RESET = -40.0  # log decay at the first token of a document
_CHUNK = 64  # tokens computed at once


def _product(x: Tensor, y: Tensor) -> Tensor:
    """Matrix product; tiny ones as a sum that the compiler fuses."""
    return x @ y if x.shape[-1] > 8 else (x[..., None] * y[..., None, :, :]).sum(-2)


def _unit_lower_inverse(lower: Tensor) -> Tensor:
    """By halves: the inverse of [[A, 0], [B, C]] is [[A', 0], [-C' B A', C']]; as stable as substitution."""
    n, size = lower.shape[-1], 1
    inverse = lower.new_ones(*lower.shape[:-2], n, 1, 1)  # of the diagonal blocks
    while size < n:
        pairs = (n // size // 2, 2 * size)
        blocks = lower.unflatten(-1, pairs).unflatten(-3, pairs).diagonal(dim1=-4, dim2=-2).movedim(-1, -3)
        a, c = inverse[..., 0::2, :, :], inverse[..., 1::2, :, :]
        corner = -_product(_product(c, blocks[..., size:, :size]), a)
        inverse = torch.cat((torch.cat((a, torch.zeros_like(a)), -1), torch.cat((corner, c), -1)), -2)
        size *= 2
    return inverse.squeeze(-3)


class _UnitLowerInverse(torch.autograd.Function):
    """(I + L)^-1 of strictly lower triangular matrices [..., n, n]."""

    @staticmethod
    def forward(ctx: Any, lower: Tensor) -> Tensor:
        inverse = _unit_lower_inverse(lower)
        ctx.save_for_backward(inverse)
        return inverse

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (inverse,) = ctx.saved_tensors
        return -(inverse.mT @ gradient @ inverse.mT).tril(-1)


def delta_rule(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor) -> Tensor:
    """Gated delta rule, S <- e^g S + beta k (v - k S)^T, in chunks (Yang et al., Gated Delta Networks, 2024).

    q, k: [batch, length, key heads, key dim], not normalized; v: [batch, length, value heads, value dim]; g (log
    decay) and beta: [batch, length, value heads]. Returns [batch, length, value heads, value dim].
    """
    length, groups = q.shape[1], v.shape[2] // q.shape[2]
    q = q * torch.rsqrt((q * q).sum(-1, keepdim=True) + 1e-6) * q.shape[-1] ** -0.5
    k = k * torch.rsqrt((k * k).sum(-1, keepdim=True) + 1e-6)

    def chunked(x: Tensor, repeats: int = 1) -> Tensor:
        x = F.pad(x.transpose(1, 2), (0, 0, 0, -length % _CHUNK)).repeat_interleave(repeats, 1)
        return x.unflatten(2, (-1, _CHUNK))

    q, k, v = chunked(q, groups), chunked(k, groups), chunked(v)
    g, beta = chunked(g[..., None]).cumsum(-2), chunked(beta[..., None])
    decay = (g - g.mT).tril().exp().tril()  # of what key j left when query i comes
    lower = (beta * (k @ k.mT) * decay).tril(-1)
    inverse = _UnitLowerInverse.apply(lower)
    values, keys = inverse @ (beta * v), inverse @ (beta * g.exp() * k)
    attention = (q @ k.mT) * decay
    q, k = q * g.exp(), k * (g[..., -1:, :] - g).exp()
    kept = g[..., -1:, :].exp()
    state = q.new_zeros(*q.shape[:2], q.shape[-1], v.shape[-1])
    out = []
    for i in range(q.shape[2]):
        new = values[:, :, i] - keys[:, :, i] @ state
        out.append(q[:, :, i] @ state + attention[:, :, i] @ new)
        state = state * kept[:, :, i] + k[:, :, i].mT @ new
    return torch.cat(out, 2).transpose(1, 2)[:, :length]


class Rows(NamedTuple):
    """Token rows with what separates their documents.

    tokens: [batch, length]; document: number of the document within the row, same shape; starts: True at each first
    token; causal, drafting: attention masks of the layers and of the second draft step (queries x 2 * length keys).
    """

    tokens: Tensor
    document: Tensor
    starts: Tensor
    causal: Tensor | BlockMask
    drafting: Tensor | BlockMask | None


def make_rows(tokens: Tensor, end: int, *, drafting: bool = True) -> Rows:
    """`Rows` of `tokens` [batch, length]; a document ends with the token `end`."""
    batch, length = tokens.shape
    starts = torch.zeros_like(tokens, dtype=torch.bool)
    starts[:, 1:] = tokens[:, :-1] == end
    document = starts.int().cumsum(1).int()
    starts[:, 0] = True
    if tokens.is_cuda:

        def causal(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
            return (q >= k) & (document[b, q] == document[b, k])

        def draft(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
            first = (k <= q) & (document[b, q] == document[b, k % length])
            return torch.where(k < length, first, k - length == q)

        masks = [
            create_block_mask(mod, batch, None, length, keys, device=tokens.device, _compile=True)
            for mod, keys in ((causal, length), (draft, 2 * length))[: 1 + drafting]
        ]
        return Rows(tokens, document, starts, masks[0], masks[1] if drafting else None)
    same = document[:, :, None] == document[:, None, :]
    mask = (same & torch.ones(length, length, dtype=torch.bool).tril())[:, None]
    eye = torch.eye(length, dtype=torch.bool).expand(batch, 1, -1, -1)
    return Rows(tokens, document, starts, mask, torch.cat((mask, eye), -1))


class RMSNorm(nn.Module):
    """Zero-centered: scales by 1 + weight."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.zeros(size))

    def forward(self, x: Tensor) -> Tensor:
        y = x.float()
        y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + self.eps)
        return (y * (1.0 + self.weight.float())).type_as(x)


class GatedNorm(nn.Module):
    """RMSNorm of a head, then the output gate silu(z)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        y = x.float()
        y = self.weight * (y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + self.eps)).type_as(x)
        return (y * F.silu(z.float())).type_as(x)


class MLP(nn.Module):
    """SwiGLU."""

    def __init__(self, c: Config) -> None:
        super().__init__()
        self.gate_proj = _linear(c["hidden_size"], c["intermediate_size"])
        self.up_proj = _linear(c["hidden_size"], c["intermediate_size"])
        self.down_proj = _linear(c["intermediate_size"], c["hidden_size"])

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Attention(nn.Module):
    """Grouped-query attention with a sigmoid output gate and a partial rotary embedding."""

    def __init__(self, c: Config) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.dim = (
            c["num_attention_heads"],
            c["num_key_value_heads"],
            c["head_dim"],
        )
        self.q_proj = _linear(c["hidden_size"], 2 * self.heads * self.dim)
        self.k_proj = _linear(c["hidden_size"], self.kv_heads * self.dim)
        self.v_proj = _linear(c["hidden_size"], self.kv_heads * self.dim)
        self.o_proj = _linear(self.heads * self.dim, c["hidden_size"])
        self.q_norm = RMSNorm(self.dim, c["rms_norm_eps"])
        self.k_norm = RMSNorm(self.dim, c["rms_norm_eps"])
        rope = c["rope_parameters"]
        rotary = int(self.dim * rope["partial_rotary_factor"])
        frequencies = rope["rope_theta"] ** (-torch.arange(0, rotary, 2).float() / rotary)
        self.register_buffer("frequencies", frequencies, persistent=False)

    def _rotate(self, x: Tensor, shift: int) -> Tensor:
        angles = (
            torch.arange(shift, shift + x.shape[1], device=x.device).float()[:, None, None] * self.frequencies
        )
        cos, sin, half = angles.cos(), angles.sin(), self.frequencies.numel()
        a, b, rest = x[..., :half].float(), x[..., half : 2 * half].float(), x[..., 2 * half :]
        return torch.cat(((a * cos - b * sin).type_as(x), (b * cos + a * sin).type_as(x), rest), -1)

    def forward(
        self, x: Tensor, mask: Tensor | BlockMask, shift: int = 0, past: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Attend from positions `shift`, `shift` + 1, ... to `past` keys and values, then to the own ones."""
        shape = x.shape[:-1]
        q, gate = self.q_proj(x).view(*shape, self.heads, 2 * self.dim).chunk(2, -1)
        q = self._rotate(self.q_norm(q), shift).transpose(1, 2)
        k = self._rotate(self.k_norm(self.k_proj(x).view(*shape, self.kv_heads, self.dim)), shift).transpose(
            1, 2
        )
        v = self.v_proj(x).view(*shape, self.kv_heads, self.dim).transpose(1, 2)
        q, k = q.type_as(v), k.type_as(v)
        if past is not None:
            k, v = torch.cat((past[0], k), 2), torch.cat((past[1], v), 2)
        if isinstance(mask, BlockMask):
            y = flex_attention(q, k, v, block_mask=mask, enable_gqa=True)
        else:
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
        y = y.transpose(1, 2).reshape(*shape, -1) * torch.sigmoid(gate.reshape(*shape, -1))
        return self.o_proj(y), (k, v)


class GatedDeltaNet(nn.Module):
    """Linear attention with the gated delta rule; `before` and `after` enclose the rule itself."""

    def __init__(self, c: Config) -> None:
        super().__init__()
        self.k_heads, self.v_heads = c["linear_num_key_heads"], c["linear_num_value_heads"]
        self.k_dim, self.v_dim = c["linear_key_head_dim"], c["linear_value_head_dim"]
        keys, values = self.k_heads * self.k_dim, self.v_heads * self.v_dim
        self.sizes = (keys, keys, values)
        self.kernel = c["linear_conv_kernel_dim"]
        self.in_proj_qkv = _linear(c["hidden_size"], 2 * keys + values)
        self.in_proj_z = _linear(c["hidden_size"], values)
        self.in_proj_b = _linear(c["hidden_size"], self.v_heads)
        self.in_proj_a = _linear(c["hidden_size"], self.v_heads)
        self.conv1d = nn.Conv1d(
            sum(self.sizes), sum(self.sizes), self.kernel, groups=sum(self.sizes), bias=False
        )
        # Mamba-2's initialization: time steps of 0.001 to 0.1, decay rates of 1 to 16.
        step = torch.exp(torch.rand(self.v_heads) * math.log(100) + math.log(1e-3))
        self.dt_bias = nn.Parameter(step + torch.log(-torch.expm1(-step)))
        self.A_log = nn.Parameter(torch.empty(self.v_heads).uniform_(1, 16).log())
        self.norm = GatedNorm(self.v_dim, c["rms_norm_eps"])
        self.out_proj = _linear(values, c["hidden_size"])

    def before(self, x: Tensor, document: Tensor, starts: Tensor) -> tuple[Tensor, ...]:
        """Queries, keys, values, log decay and beta [batch, length, heads, ...], and the output gate z."""
        mixed = self.in_proj_qkv(x)
        weight = self.conv1d.weight[:, 0].type_as(mixed)
        y = mixed * weight[:, -1]
        for lag in range(1, self.kernel):
            shifted = F.pad(mixed, (0, 0, lag, 0))[:, : mixed.shape[1]]
            same = F.pad(document, (lag, 0), value=-1)[:, : mixed.shape[1]] == document
            y = y + shifted * same[..., None] * weight[:, -1 - lag]
        q, k, v = F.silu(y).split(self.sizes, -1)
        q = q.unflatten(-1, (self.k_heads, self.k_dim))
        k = k.unflatten(-1, (self.k_heads, self.k_dim))
        v = v.unflatten(-1, (self.v_heads, self.v_dim))
        g = -self.A_log.float().exp() * F.softplus(self.in_proj_a(x).float() + self.dt_bias)
        g = torch.where(starts[..., None], _RESET, g)
        return (
            q,
            k,
            v,
            g,
            self.in_proj_b(x).sigmoid(),
            self.in_proj_z(x).unflatten(-1, (self.v_heads, self.v_dim)),
        )

    def rule(self, q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor) -> Tensor:
        """The chunked gated delta rule [batch, length, value heads, value dim], in float32."""
        with torch.autocast(q.device.type, enabled=False):
            return delta_rule(q.float(), k.float(), v.float(), g.float(), beta.float()).type_as(v)

    def after(self, y: Tensor, z: Tensor) -> Tensor:
        """Normalize, gate and project the rule's output."""
        return self.out_proj(self.norm(y, z).flatten(-2))


class DecoderLayer(nn.Module):
    """A mixer and an MLP, each behind a norm, added to the residual."""

    def __init__(self, c: Config, kind: str) -> None:
        super().__init__()
        self.linear = kind == "linear_attention"
        if self.linear:
            self.linear_attn = GatedDeltaNet(c)
        else:
            self.self_attn = Attention(c)
        self.mlp = MLP(c)
        self.input_layernorm = RMSNorm(c["hidden_size"], c["rms_norm_eps"])
        self.post_attention_layernorm = RMSNorm(c["hidden_size"], c["rms_norm_eps"])

    def forward(self, x: Tensor, rows: Rows) -> Tensor:
        if not self.linear:
            return self.attend(x, rows.causal)[0]
        return self.recur(x, rows.document, rows.starts)

    def attend(
        self, x: Tensor, mask: Tensor | BlockMask, shift: int = 0, past: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """A full-attention layer; also returns its keys and values."""
        y, cache = self.self_attn(self.input_layernorm(x), mask, shift, past)
        return self._mlp(x + y), cache

    def recur(self, x: Tensor, document: Tensor, starts: Tensor) -> Tensor:
        """A linear-attention layer."""
        *inputs, z = self.linear_attn.before(self.input_layernorm(x), document, starts)
        return self._mlp(x + self.linear_attn.after(self.linear_attn.rule(*inputs), z))

    def _mlp(self, x: Tensor) -> Tensor:
        return x + self.mlp(self.post_attention_layernorm(x))


class TextModel(nn.Module):
    """Embeddings, layers and final norm."""

    def __init__(self, c: Config) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(c["vocab_size"], c["hidden_size"])
        nn.init.normal_(self.embed_tokens.weight, std=0.1)
        self.layers = nn.ModuleList(DecoderLayer(c, kind) for kind in c["layer_types"])
        self.norm = RMSNorm(c["hidden_size"], c["rms_norm_eps"])


class MTP(nn.Module):
    """The draft head: one step from (hidden state, next token) to a hidden state for the token after."""

    def __init__(self, c: Config) -> None:
        super().__init__()
        self.fc = _linear(2 * c["hidden_size"], c["hidden_size"])
        self.layers = nn.ModuleList([DecoderLayer(c, "full_attention")])
        self.norm = RMSNorm(c["hidden_size"], c["rms_norm_eps"])
        self.pre_fc_norm_embedding = RMSNorm(c["hidden_size"], c["rms_norm_eps"])
        self.pre_fc_norm_hidden = RMSNorm(c["hidden_size"], c["rms_norm_eps"])

    def step(
        self,
        embedding: Tensor,
        hidden: Tensor,
        mask: Tensor | BlockMask,
        shift: int = 0,
        past: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Concatenated as vLLM does: [embedding, hidden]."""
        x = self.fc(torch.cat((self.pre_fc_norm_embedding(embedding), self.pre_fc_norm_hidden(hidden)), -1))
        x, cache = self.layers[0].attend(x, mask, shift, past)
        return self.norm(x), cache


class MiniModel(nn.Module):
    """The language model, its untied head and the MTP head."""

    def __init__(self, c: Config) -> None:
        super().__init__()
        self.model = nn.ModuleDict({"language_model": TextModel(c)})
        self.lm_head = _linear(c["hidden_size"], c["vocab_size"])
        self.mtp = MTP(c)

    def embed(self, tokens: Tensor) -> Tensor:
        """Embeddings, in BF16 under autocast."""
        x = self.model["language_model"].embed_tokens(tokens)
        return x.bfloat16() if torch.is_autocast_enabled(x.device.type) else x

    def hidden(self, rows: Rows) -> Tensor:
        """Final-normed hidden states [batch, length, hidden]."""
        text = self.model["language_model"]
        x = self.embed(rows.tokens)
        for layer in text.layers:
            x = layer(x, rows)
        return text.norm(x)

    def drafts(self, hidden: Tensor, rows: Rows, following: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden states of both draft steps, fed the true next token `following` and the one `after` it."""
        first, cache = self.mtp.step(self.embed(following), hidden, rows.causal)
        second, _ = self.mtp.step(self.embed(after), first, rows.drafting, 1, cache)
        return first, second


def _linear(inputs: int, outputs: int) -> nn.Linear:
    layer = nn.Linear(inputs, outputs, bias=False)
    nn.init.normal_(layer.weight, std=0.5 / math.sqrt(inputs))
    return layer
