"""The 27B without weights, packed or in BF16: `bench.act_order.dummy`, with scales as a checkpoint has them.

vLLM's dummy loader makes scales of either sign around zero, and the norm of a Gated-DeltaNet layer 1e-3. The
plugin's FP8 scales follow the largest scale of a column, and tokens are compared here, so weights get the spread of
real ones: a layer then changes what comes after it, and nothing overflows.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

from bench.act_order import dummy

_GROUP = 128
# Root mean square of a 4-bit value less 8, all 16 alike.
_VALUE = 4.637


def write_checkpoint(folder: Path, layers: int, *, quantized: bool, tiny: bool = False) -> Path:
    """A folder with nothing but ``config.json``, of a GPTQ checkpoint or of the BF16 original; returns it."""
    dummy.write_checkpoint(folder, layers, desc_act=False, tiny=tiny)
    if not quantized:
        file = folder / "config.json"
        config = json.loads(file.read_text(encoding="utf-8"))
        del config["quantization_config"]
        file.write_text(json.dumps(config, indent=1), encoding="utf-8")
    return folder


def fill_on_load() -> list[Any]:
    """Have the dummy loader make packed weights; returns a list that gets the model. A draft is left alone."""
    from vllm.model_executor.model_loader.dummy_loader import DummyModelLoader

    original = DummyModelLoader.load_weights
    loaded = dummy.fill_on_load("none")
    inner = DummyModelLoader.load_weights

    def load_weights(self: Any, model: Any, *args: Any, **kwargs: Any) -> None:
        if loaded:
            original(self, model, *args, **kwargs)
            return
        inner(self, model, *args, **kwargs)
        set_scales(model)

    DummyModelLoader.load_weights = load_weights
    return loaded


def set_scales(model: Any) -> int:
    """Scales for which a dense weight has a mean square of 1 / k, and norms of 1; how many scales there were.

    Positive, each from half to one and a half times the mean, from a seed that depends on the name alone. Expects
    ``[groups, n]``, groups of 128 rows.

    Raises:
        RuntimeError: the model has none: it was not built as quantized.
    """
    import torch

    found = 0
    for name, parameter in model.named_parameters():
        if name.endswith(".scales"):
            k = parameter.shape[0] * _GROUP
            generator = torch.Generator(parameter.device).manual_seed(zlib.crc32(name.encode()))
            parameter.data.uniform_(0.5, 1.5, generator=generator).mul_(1 / (_VALUE * k**0.5))
            found += 1
        elif name.endswith("linear_attn.norm.weight"):
            parameter.data.fill_(1.0)
    if not found:
        raise RuntimeError("the dummy model has no scales: nothing was built as quantized")
    return found
