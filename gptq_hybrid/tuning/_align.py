"""Round a checkpoint's linears again, each to the original's outputs on the inputs that the rounded model gives it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import nn

from gptq_hybrid.streaming import Batch, States, TextStack, read_ahead

from ._codes import Rounded, best_weight, round_to

_MIXERS = {"linear_attn": "out_proj", "self_attn": "o_proj"}


class _Sums:
    """Sums over tokens for linears that share their input."""

    def __init__(self, names: Iterable[str]) -> None:
        self.hessian: torch.Tensor | None = None
        self.products = dict.fromkeys(names, torch.zeros(()))
        self.tokens = 0

    def add(self, inputs: torch.Tensor, targets: dict[str, torch.Tensor]) -> None:
        """Take in inputs ``[tokens, in_features]`` of the rounded model, and the outputs each linear should have."""
        square = inputs.t() @ inputs
        self.hessian = square if self.hessian is None else self.hessian + square
        for name, target in targets.items():
            self.products[name] = self.products[name] + target.t() @ inputs
        self.tokens += len(inputs)


class Aligner:
    """Rounds the linears of one decoder layer after the other.

    Args:
        original, packed: stacks of the two checkpoints, on one device.
        batches: texts.
        bits: of each linear that is rounded, by full name.
        residual: share of the residual stream's error that a layer's outputs take back.
    """

    def __init__(
        self,
        original: TextStack,
        packed: TextStack,
        batches: Sequence[Batch],
        bits: dict[str, int],
        *,
        group_size: int = 128,
        residual: float = 1.0,
        damp: float = 0.01,
    ) -> None:
        self.original, self.packed, self.batches = original, packed, list(batches)
        self.bits, self.group_size, self.residual, self.damp = bits, group_size, residual, damp
        self.states: list[States] = [[s.embed(b.tokens).cpu() for b in batches] for s in (original, packed)]
        self.done = 0

    def run(self, on_layer: Callable[[int, dict[str, Rounded]], None]) -> None:
        """Round all layers that are left."""
        device = self.original.device
        numbers = range(self.done, self.original.depth)
        for number, (dense, own) in read_ahead(
            lambda n: (self.original.layer_tensors(n), self.packed.layer_tensors(n)), numbers
        ):
            teacher, layer = self.original.layer(number, dense), self.packed.layer(number, own)
            with torch.inference_mode():
                found = self._layer(number, teacher, layer)
            self.done = number + 1
            on_layer(number, found)

    def _tokens(self, place: int, hidden: torch.Tensor) -> torch.Tensor:
        lengths = torch.tensor(self.batches[place].lengths)
        kept = torch.arange(hidden.shape[1])[None] < lengths[:, None]
        return hidden[kept.to(hidden.device)]

    def _layer(self, number: int, teacher: nn.Module, layer: nn.Module) -> dict[str, Rounded]:
        prefix = f"{self.packed.weights.layout.layers_prefix}.{number}."
        found: dict[str, Rounded] = {}
        kind = next(k for k in _MIXERS if hasattr(layer, k))
        mixers = (getattr(teacher, kind), getattr(layer, kind))
        out = _MIXERS[kind]
        names = [n for n in self.bits if n.startswith(f"{prefix}{kind}.") and not n.endswith(out)]
        gates = [f"{prefix}mlp.gate_proj", f"{prefix}mlp.up_proj"]
        mlps = (teacher.mlp, layer.mlp)

        def solve(names: list[str], sums: _Sums) -> None:
            for name in names:
                if name not in self.bits:
                    continue
                short = name.removeprefix(prefix)
                weight = teacher.get_submodule(short).weight.float()
                aim = best_weight(weight, sums.hessian, sums.products[name], self.damp)
                found[name] = round_to(aim, sums.hessian, self.bits[name], self.group_size)
                module = layer.get_submodule(short)
                module.weight = nn.Parameter(
                    found[name].dense(self.bits[name]).to(module.weight.dtype), requires_grad=False
                )

        # 1. What reads the first norm.
        sums = _Sums(names)
        for place in range(len(self.batches)):
            a, b = (self._tokens(place, m.input_layernorm(s[place])) for m, s in zip((teacher, layer), self.states))
            sums.add(b, {n: a @ teacher.get_submodule(n.removeprefix(prefix)).weight.t() for n in names})
        solve(names, sums)
        # 2. The mixer's output.
        linears = [getattr(m, out) for m in mixers]
        kept: list[States] = [[], []]
        sums, name = _Sums([f"{prefix}{kind}.{out}"]), f"{prefix}{kind}.{out}"
        for mixer in mixers:
            setattr(mixer, out, nn.Identity())
        for place in range(len(self.batches)):
            for side, (module, mixer) in enumerate(zip((teacher, layer), mixers)):
                state = self.states[side][place]
                normed = module.input_layernorm(state)
                if kind == "linear_attn":
                    value = mixer(normed)
                else:
                    value = mixer(hidden_states=normed, position_embeddings=self.original.rotary(normed.shape[1]), attention_mask=None)[0]
                kept[side].append(value)
            error = self._tokens(place, self.states[0][place] - self.states[1][place])
            a, b = (self._tokens(place, k[place]) for k in kept)
            sums.add(b, {name: a @ linears[0].weight.t() + self.residual * error})
        for mixer, linear in zip(mixers, linears):
            setattr(mixer, out, linear)
        solve([name], sums)
        for side, mixer in enumerate(mixers):
            for place, value in enumerate(kept[side]):
                self.states[side][place] = self.states[side][place] + getattr(mixer, out)(value)
        del kept
        # 3. What reads the second norm.
        sums = _Sums(gates)
        for place in range(len(self.batches)):
            a, b = (self._tokens(place, m.post_attention_layernorm(s[place])) for m, s in zip((teacher, layer), self.states))
            sums.add(b, {n: a @ teacher.get_submodule(n.removeprefix(prefix)).weight.t() for n in gates})
        solve(gates, sums)
        # 4. The MLP's output.
        downs = [m.down_proj for m in mlps]
        sums, name = _Sums([f"{prefix}mlp.down_proj"]), f"{prefix}mlp.down_proj"
        for mlp in mlps:
            mlp.down_proj = nn.Identity()
        for place in range(len(self.batches)):
            a, b = (
                mlp(self._tokens(place, m.post_attention_layernorm(s[place])))
                for mlp, m, s in zip(mlps, (teacher, layer), self.states)
            )
            error = self._tokens(place, self.states[0][place] - self.states[1][place])
            sums.add(b, {name: a @ downs[0].weight.t() + self.residual * error})
        for mlp, down in zip(mlps, downs):
            mlp.down_proj = down
        solve([name], sums)
        for side, (module, mlp) in enumerate(zip((teacher, layer), mlps)):
            for place, state in enumerate(self.states[side]):
                self.states[side][place] = state + mlp(module.post_attention_layernorm(state))
        return found
