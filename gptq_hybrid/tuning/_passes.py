"""One optimizer step's passes: forward with each layer's inputs kept in main memory, backward a layer at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import nn

from gptq_hybrid.streaming import Batch, CheckpointWeights, OutputHead, States, TextStack, read_ahead

from ._linear import GroupedLinear
from ._parameters import SCALES, Parameters

# Elements of a chunk of float32 logits. About seven arrays of that size exist at once: 1.9 GiB at 2^26.
_LOGITS = {"cuda": 1 << 26, "cpu": 1 << 22}
_LEAST_TOKENS = 64


class TunedStack:
    """A packed checkpoint whose layers take their scales and norms from :class:`Parameters`.

    Args:
        weights: of the packed checkpoint.
        parameters: of the same.
        device: where layers run, one at a time.
        dtype: of dense weights and hidden states.
        teacher: the original's output head.
    """

    def __init__(
        self,
        weights: CheckpointWeights,
        parameters: Parameters,
        device: torch.device,
        dtype: torch.dtype,
        teacher: OutputHead,
    ) -> None:
        self.stack = TextStack(weights, device, dtype)
        self.weights = weights
        self.parameters = parameters
        self.teacher = teacher
        self.head = OutputHead(self.stack)
        self._prefix = parameters.prefix

    def gradients(self, batches: Sequence[Batch], targets: States) -> float:
        """Add the gradients of the mean divergence over ``batches`` to the parameters; return that mean.

        Args:
            batches: the step's documents.
            targets: the original's final states, as :meth:`LayerStream.final` gives them.

        Returns:
            Nats a token.
        """
        tokens = sum(sum(batch.lengths) for batch in batches)
        inputs, states = self._forward(batches, keep=True)
        total, flows = 0.0, []
        norm = self._norm(rounded=False)
        for batch, state, target in zip(batches, states, targets, strict=True):
            leaf = state.to(self.stack.device).requires_grad_(True)
            kept = _mask(batch)
            normed = norm(leaf)[kept.to(self.stack.device)]
            # A leaf of its own: each chunk of logits then has a graph of its own, freed before the next.
            above = normed.detach().requires_grad_(True)
            for part in self._divergence(above, target[kept]):
                (part / tokens).backward()
                total += float(part.detach())
            assert above.grad is not None
            normed.backward(above.grad)
            assert leaf.grad is not None
            flows.append(leaf.grad.cpu())
        self._collect(norm, {f"{self._prefix.removesuffix('.layers')}.norm.weight": "weight"})
        for number, tensors in self._layers(backward=True):
            layer = self._layer(number, tensors, rounded=False)
            for place, (state, flow) in enumerate(zip(inputs[number], flows, strict=True)):
                leaf = state.to(self.stack.device).requires_grad_(True)
                with torch.enable_grad():
                    self.stack.run_layer(layer, leaf).backward(flow.to(self.stack.device))
                assert leaf.grad is not None
                flows[place] = leaf.grad.cpu()
            self._collect(layer, dict(self.parameters.of_layer(number)))
            inputs[number] = []
        return total / tokens

    def divergence(self, batches: Sequence[Batch], targets: States, *, rounded: bool = True) -> float:
        """Return the mean divergence, nats a token, of what the file will hold (or before rounding)."""
        _, states = self._forward(batches, keep=False, rounded=rounded)
        norm, total = self._norm(rounded=rounded), 0.0
        with torch.no_grad():
            for batch, state, target in zip(batches, states, targets, strict=True):
                kept = _mask(batch)
                normed = norm(state.to(self.stack.device))[kept.to(self.stack.device)]
                total += sum(float(part) for part in self._divergence(normed, target[kept]))
        return total / sum(sum(batch.lengths) for batch in batches)

    def _forward(
        self, batches: Sequence[Batch], *, keep: bool, rounded: bool = False
    ) -> tuple[list[States], States]:
        states = [self.stack.embed(batch.tokens).cpu() for batch in batches]
        inputs: list[States] = []
        for number, tensors in self._layers():
            layer = self._layer(number, tensors, rounded=rounded)
            if keep:
                inputs.append(list(states))
            with torch.no_grad():
                for place, state in enumerate(states):
                    states[place] = self.stack.run_layer(layer, state.to(self.stack.device)).cpu()
        return inputs, states

    def _layers(self, *, backward: bool = False) -> Iterator[tuple[int, Mapping[str, torch.Tensor]]]:
        """Yield each layer's stored tensors; the next are read meanwhile."""
        numbers = list(range(self.stack.depth))
        return read_ahead(self._read, numbers[::-1] if backward else numbers)

    def _read(self, number: int) -> dict[str, torch.Tensor]:
        prefix = f"{self._prefix}.{number}."
        return {
            name.removeprefix(prefix): self.weights.read(name)
            for name in self.weights.checkpoint.loaded
            if name.startswith(prefix) and not name.endswith((".qzeros", ".g_idx"))
        }

    def _layer(self, number: int, tensors: Mapping[str, torch.Tensor], *, rounded: bool) -> nn.Module:
        """Build a layer; what is trained takes gradients unless ``rounded``."""
        own = {
            name: (self.parameters.stored(full) if rounded else self.parameters.tensor(full))
            for full, name in self.parameters.of_layer(number)
        }
        prefix = f"{self._prefix}.{number}."
        linears: dict[str, nn.Module] = {}
        for full, packed in self.parameters.packed.items():
            if full.startswith(prefix):
                name = full.removeprefix(prefix)
                scales = own.pop(name + SCALES).float().to(self.stack.device).requires_grad_(not rounded)
                linears[name] = GroupedLinear(
                    tensors[f"{name}.qweight"], scales, packed.bits, self.stack.dtype
                )
        dense = {
            name: tensor
            for name, tensor in tensors.items()
            if name.rpartition(".")[0] not in linears and name not in own
        }
        layer = self.stack.layer(number, {**dense, **own}, linears)
        for name in own:
            layer.get_parameter(name).requires_grad_(not rounded)
        return layer

    def _norm(self, *, rounded: bool) -> nn.Module:
        name = f"{self._prefix.removesuffix('.layers')}.norm.weight"
        gain = self.parameters.stored(name) if rounded else self.parameters.tensor(name)
        norm = self.stack.norm({"weight": gain})
        norm.get_parameter("weight").requires_grad_(not rounded)
        return norm

    def _collect(self, module: nn.Module, names: Mapping[str, str]) -> None:
        """Hand the gradients of a module's tensors to their parameters."""
        for full, name in names.items():
            owner, _, tensor = name.rpartition(".")
            leaf = getattr(module.get_submodule(owner), tensor)
            if leaf.grad is not None:
                self.parameters.gradient(full, leaf.grad)

    def _divergence(self, own: torch.Tensor, states: torch.Tensor) -> Iterator[torch.Tensor]:
        """Yield the summed KL(original ‖ own) of a chunk of tokens after the other.

        Args:
            own: final-normed states ``[tokens, hidden]``.
            states: the original's.
        """
        size = _LOGITS.get(self.stack.device.type, _LOGITS["cpu"]) // self.head.vocabulary
        size = max(_LEAST_TOKENS, size)
        for start in range(0, len(states), size):
            with torch.no_grad():
                log_ref = self.teacher.logits(states[start : start + size]).log_softmax(-1)
            log_own = self.head.logits(own[start : start + size]).log_softmax(-1)
            yield (log_ref.exp() * (log_ref - log_own)).sum()


def _mask(batch: Batch) -> torch.Tensor:
    """Return bool ``[documents, length]``, false where a document is padded."""
    return torch.arange(batch.tokens.shape[1])[None] < torch.tensor(batch.lengths)[:, None]
