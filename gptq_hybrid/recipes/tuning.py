"""What a recipe's table ``[tune]`` holds, and what that takes: bytes and operations, from the layout. Estimates."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from gptq_hybrid.checkpoint import TensorLayout

from .sizes import projection_input_bytes

# Value, gradient, two moments, and the best values so far.
_COPIES = 5
_FLOAT = 4
# Operations a token and weight: forward, forward again, and twice as much backward, for its inputs and for itself.
_FORWARD = 2
_STEP = 4 * _FORWARD
# Arrays of a chunk of logits that exist at once, and bytes of such a chunk: see `gptq_hybrid.tuning`.
_LOGITS = 7 * 4 * (1 << 26)
# Of a layer that is rounded again: forward in both models, the MLP twice, and both products of its inputs.
_ALIGN = 6 * _FORWARD
# Products with a linear's Hessian until its codes and scales are found, and matrices of that size at once.
_SOLVER, _MATRICES = 25, 9
# Of a token in a layer while gradients flow, in rows of the MLP's width: seen with neither, so generous.
_ROWS = 24
_BATCH = 4096
# Of the documents one in so many decides when to stop: see `gptq_hybrid.tuning`.
_STOPPING = 10


@dataclass(frozen=True, slots=True)
class TuneSettings:
    """How codes are rounded again, and scales and norms tuned after that.

    Attributes:
        steps: of the optimizer; 0 trains nothing.
        tokens: of a step, at least; a step ends with a whole document.
        documents: drawn for it, beside those that are calibrated on.
        scale_rate: learning rate of the relative changes of scales.
        norm_rate: learning rate of norm gains; 0 leaves them as they are.
        align_tokens: of the calibration, at most, that linears are rounded again on; 0 leaves codes as they are.
    """

    steps: int = 100
    tokens: int = 8192
    documents: int = 768
    scale_rate: float = 2e-3
    norm_rate: float = 1e-3
    align_tokens: int = 0

    @property
    def checks(self) -> int:
        """Steps between two looks at the stopping part: eight in all."""
        return max(1, -(-self.steps // 8))


@dataclass(frozen=True, slots=True)
class TuneSizes:
    """Bytes and operations of a tuning.

    Attributes:
        states: main memory, and disk in the state: the original's final states over all texts.
        inputs: main memory: inputs of all layers over one step.
        trained: main memory: parameters, gradients, moments, best values.
        gpu: GPU memory at most: one layer with its gradients, both heads, a chunk of logits; or a layer of both
            models and the matrices of its widest linear.
        work: operations of all steps, and of the original's pass.
        aligned: main memory while linears are rounded again; 0 if they are not.
        aligned_state: disk for the same, beside the checkpoint that comes of it.
    """

    states: int
    inputs: int
    trained: int
    gpu: int
    work: float
    aligned: int = 0
    aligned_state: int = 0

    @classmethod
    def estimate(
        cls, layout: TensorLayout, settings: TuneSettings, *, hidden: int, group_size: int, max_length: int
    ) -> TuneSizes:
        """Estimate them for a model of ``hidden`` channels, in BF16 as on a GPU."""
        tokens = (
            settings.documents * max_length
            if settings.steps
            else settings.documents * max_length // _STOPPING
        )
        layers: dict[str, int] = {}
        widest = 0
        for linear in layout.quantized:
            layer = linear.name.removeprefix(f"{layout.layers_prefix}.").partition(".")[0]
            layers[layer] = layers.get(layer, 0) + linear.in_features * linear.out_features
            widest = max(widest, linear.in_features, linear.out_features)
        weights = sum(layers.values())
        head = layout.output_head
        vocabulary = prod(head.weight.shape) if head is not None else 0
        step_tokens = settings.tokens + max_length
        # Codes of a byte, the dense weight of the widest linear with its gradient, in BF16, and a product of both.
        layer_bytes = max(layers.values()) + 8 * max(m.in_features * m.out_features for m in layout.quantized)
        rows = settings.align_tokens
        # Both models' states, and what a mixer hands its last linear.
        aligned = 2 * (2 * rows * hidden + projection_input_bytes(layout, rows))
        solver = sum(m.out_features * m.in_features**2 for m in layout.quantized)
        squares = sum(m.in_features**2 for m in layout.quantized)
        align_gpu = (
            2 * 2 * max(layers.values())
            + _MATRICES * _FLOAT * max(m.in_features for m in layout.quantized) ** 2
            + _MATRICES * _FLOAT * max(m.in_features * m.out_features for m in layout.quantized)
        )
        align_work = float(rows) * (_ALIGN * weights + 2 * squares) + 2.0 * _SOLVER * solver if rows else 0.0
        tune_gpu = layer_bytes + 2 * 2 * vocabulary + _LOGITS + 2 * _ROWS * _BATCH * widest
        return cls(
            states=2 * tokens * hidden,
            inputs=2 * step_tokens * hidden * (len(layers) + 2),
            trained=_COPIES * _FLOAT * weights // group_size,
            gpu=max(tune_gpu, align_gpu if rows else 0),
            work=float(settings.steps) * settings.tokens * (_STEP * weights + 4 * _FORWARD * vocabulary)
            + float(tokens) * _FORWARD * weights
            + align_work,
            aligned=aligned if rows else 0,
            aligned_state=2 * 2 * 2 * rows * hidden + weights // 2 if rows else 0,
        )
