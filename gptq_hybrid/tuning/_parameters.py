"""What is trained: relative changes of group scales, and gains of norms, as float32 in main memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

from gptq_hybrid.checkpoint import LinearSpec
from gptq_hybrid.checkpoint.formats.gptq import settings as module_settings
from gptq_hybrid.common.errors import HybridError
from gptq_hybrid.streaming import CheckpointWeights

_NORM = "norm.weight"
SCALES = ".scales"


@dataclass(frozen=True, slots=True)
class Packed:
    """A packed linear of a layer: its spec, and the bits of its codes."""

    linear: LinearSpec
    bits: int


class Parameters:
    """The tensors of a checkpoint's decoder layers, and of its final norm, that are trained.

    Of scales the relative change is a parameter, so one learning rate suits all: ``scale = stored · (1 + p)``. A
    norm's gain is trained as it is stored. Whether or not the model adds one to it, the factor is about 1.

    Attributes:
        values: float32, by the name of the tensor in the checkpoint. Leaves, on the CPU.
        packed: packed linears by name.
    """

    def __init__(self, weights: CheckpointWeights) -> None:
        """Read the scales and norms of ``weights``.

        Raises:
            HybridError: no linear is packed, or one has its groups in another than natural order.
        """
        layout, config = weights.layout, weights.checkpoint.quantization_config or {}
        if config.get("desc_act"):
            raise HybridError(
                f"{weights.checkpoint.location} has its groups in act order, and those are not tuned",
                remedy="Take a recipe with static_groups = true, as static-mse has.",
            )
        loaded = weights.checkpoint.loaded
        self.packed = {
            linear.name: Packed(linear, module_settings(config, linear.name)[0])
            for linear in layout.quantized
            if f"{linear.name}.qweight" in loaded
        }
        if not self.packed:
            raise HybridError(
                f"{weights.checkpoint.location} has no packed linear whose scales could be tuned",
                remedy="Give a GPTQ checkpoint.",
            )
        self.prefix = layout.layers_prefix
        final = f"{self.prefix.removesuffix('.layers')}.{_NORM}"
        names = sorted(n for n in loaded if n.startswith(f"{self.prefix}.") and n.endswith(_NORM))
        self._stored = {name: weights.read(name) for name in [*names, final]}
        self.values = {name: tensor.float().clone() for name, tensor in self._stored.items()}
        for module in self.packed:
            name = f"{module}{SCALES}"
            self._stored[name] = weights.read(name)
            self.values[name] = torch.zeros(self._stored[name].shape)
        for value in self.values.values():
            value.requires_grad_(True)

    def scales(self) -> list[torch.Tensor]:
        return [value for name, value in self.values.items() if name.endswith(SCALES)]

    def norms(self) -> list[torch.Tensor]:
        return [value for name, value in self.values.items() if not name.endswith(SCALES)]

    def of_layer(self, number: int) -> Iterator[tuple[str, str]]:
        """Yield the full name of each tensor of a layer that is trained, and its name within the layer."""
        prefix = f"{self.prefix}.{number}."
        return ((name, name.removeprefix(prefix)) for name in self.values if name.startswith(prefix))

    def tensor(self, name: str) -> torch.Tensor:
        """Return the float32 tensor that a parameter stands for, before rounding."""
        value = self.values[name].detach()
        return self._stored[name].float() * (1 + value) if name.endswith(SCALES) else value.clone()

    def stored(self, name: str) -> torch.Tensor:
        """Return the same as the file will hold it, in the dtype it had.

        Scales become BF16 numbers first, so that serving in BF16 does not round them again.
        """
        was = self._stored[name]
        # What did not move keeps its bits: a float16 scale need not be a BF16 number.
        if torch.equal(self.tensor(name), was.float()):
            return was
        tensor = self.tensor(name)
        return (tensor.bfloat16() if name.endswith(SCALES) else tensor).to(was.dtype)

    def moved(self, name: str) -> bool:
        """Whether the file will hold another tensor than it did."""
        return not torch.equal(self.stored(name), self._stored[name])

    def gradient(self, name: str, gradient: torch.Tensor) -> None:
        """Add the gradient of the tensor ``name`` to its parameter's."""
        value = self.values[name]
        gradient = gradient.detach().float().cpu()
        if name.endswith(SCALES):
            gradient = gradient * self._stored[name].float()
        value.grad = gradient if value.grad is None else value.grad + gradient

    def load(self, values: Mapping[str, torch.Tensor]) -> None:
        """Take over the values of an earlier run."""
        with torch.no_grad():
            for name, value in self.values.items():
                value.copy_(values[name])
