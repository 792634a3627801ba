"""Round a layer's linears again, each to the original's outputs on inputs that the rounded model gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn

from gptq_hybrid.streaming import Batch, States, TextStack

from ._codes import Rounded, best_weight, round_to
from ._sums import Sums, without_padding

_MIXERS = {"linear_attn": "out_proj", "self_attn": "o_proj"}

# A layer's linear by its name within the layer; its bits and group size.
Forms = Mapping[str, tuple[int, int]]


class LayerAligner:
    """One decoder layer, the original's and the rounded one's, and the states that run into both.

    As data flows, linears that share an input are rounded anew, and what follows sees the result.
    What writes to the residual stream has another target: the original's output, and the error that the stream
    has so far. So a layer takes back what those before it did, as far as its inputs allow.

    Args:
        stack: of either checkpoint, for its rotary embedding and device.
        teacher, layer: the layer of the original and of the rounded model; linears of ``layer`` are changed.
        batches: texts.
        states: the layer's inputs in the original and in the rounded model, on the CPU; replaced by its outputs.
        forms: of the linears to round.
    """

    def __init__(
        self,
        stack: TextStack,
        teacher: nn.Module,
        layer: nn.Module,
        batches: Sequence[Batch],
        states: tuple[States, States],
        forms: Forms,
    ) -> None:
        self.stack, self.sides = stack, (teacher, layer)
        self.batches, self.states, self.forms = batches, states, forms
        self.found: dict[str, Rounded] = {}
        self._mixer = next(name for name in _MIXERS if hasattr(layer, name))

    def run(self) -> dict[str, Rounded]:
        """Round the layer; return its linears by name."""
        with torch.inference_mode():
            out = f"{self._mixer}.{_MIXERS[self._mixer]}"
            inside = [name for name in self.forms if name.startswith(f"{self._mixer}.") and name != out]
            self._readers(inside, "input_layernorm")
            self._writer(out, self._mixed, keep=True)
            self._readers(["mlp.gate_proj", "mlp.up_proj"], "post_attention_layernorm")
            self._writer("mlp.down_proj", self._gated, keep=False)
        return self.found

    def _readers(self, names: Sequence[str], norm: str) -> None:
        """Round linears that read the residual stream through ``norm``."""
        names = [name for name in names if name in self.forms]
        if not names:
            return
        sums = Sums()
        for place in range(len(self.batches)):
            a, b = (
                self._tokens(place, module.get_submodule(norm)(self._on_device(side, place)))
                for side, module in enumerate(self.sides)
            )
            sums.add(b, ((name, self.sides[0].get_submodule(name)(a)) for name in names))
        self._solve(names, sums)

    def _writer(self, name: str, block: Callable[[int, int], torch.Tensor], *, keep: bool) -> None:
        """Round the linear that ends a block, and move the states behind the block.

        Args:
            name: of the linear.
            block: runs its block, from (side, place of the batch).
            keep: keep the linear's inputs in main memory; else the block runs twice.
        """
        owner, _, last = name.rpartition(".")
        linears = [module.get_submodule(name) for module in self.sides]
        sums, kept = Sums(), {}  # type: tuple[Sums, dict[tuple[int, int], torch.Tensor]]
        for module in self.sides:
            # The block then gives what its last linear reads.
            setattr(module.get_submodule(owner), last, nn.Identity())
        for place in range(len(self.batches)):
            inputs = [block(side, place) for side in (0, 1)]
            if keep:
                kept |= {(side, place): value.cpu() for side, value in enumerate(inputs)}
            if name in self.forms:
                a, b = (self._tokens(place, value) for value in inputs)
                error = self._tokens(place, self._on_device(0, place) - self._on_device(1, place))
                sums.add(b, [(name, linears[0](a) + error)])
        for module, linear in zip(self.sides, linears, strict=True):
            setattr(module.get_submodule(owner), last, linear)
        if name in self.forms:
            self._solve([name], sums)
        for side, module in enumerate(self.sides):
            linear = module.get_submodule(name)
            for place in range(len(self.batches)):
                value = kept.pop((side, place), None)
                out = block(side, place) if value is None else linear(value.to(self.stack.device))
                self.states[side][place] = (self._on_device(side, place) + out).cpu()

    def _mixed(self, side: int, place: int) -> torch.Tensor:
        module = self.sides[side]
        normed = module.get_submodule("input_layernorm")(self._on_device(side, place))
        mixer = module.get_submodule(self._mixer)
        if self._mixer == "linear_attn":
            return mixer(normed)
        rotary = self.stack.rotary(normed.shape[1])
        return mixer(hidden_states=normed, position_embeddings=rotary, attention_mask=None)[0]

    def _gated(self, side: int, place: int) -> torch.Tensor:
        module = self.sides[side]
        normed = module.get_submodule("post_attention_layernorm")(self._on_device(side, place))
        return module.get_submodule("mlp")(normed)

    def _solve(self, names: Sequence[str], sums: Sums) -> None:
        assert sums.hessian is not None
        for name in names:
            bits, group_size = self.forms[name]
            weight = self.sides[0].get_submodule(name).get_parameter("weight")
            aim = best_weight(weight.float(), sums.hessian, sums.products[name])
            self.found[name] = round_to(aim, sums.hessian, bits, group_size)
            dense = self.found[name].dense(bits).to(weight.dtype)
            self.sides[1].get_submodule(name).get_parameter("weight").copy_(dense)

    def _on_device(self, side: int, place: int) -> torch.Tensor:
        return self.states[side][place].to(self.stack.device)

    def _tokens(self, place: int, hidden: torch.Tensor) -> torch.Tensor:
        return without_padding(self.batches[place], hidden)
