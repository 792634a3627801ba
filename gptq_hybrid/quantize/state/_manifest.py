"""What a run is of, item by item, so that a continuation of something else can say what differs."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from functools import cache
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gptq_hybrid
from gptq_hybrid.common.errors import HybridError

from ._source import source_identity

if TYPE_CHECKING:
    from gptq_hybrid.quantize import QuantizeRequest

# What computes, and so decides the last bits of a sum.
_LIBRARIES = ("gptqmodel", "torch", "transformers", "triton", "flash-linear-attention", "causal-conv1d")
# Folders of this package whose code runs while layers are quantized.
_CODE = ("upstream", "definition", "packing")
_SHOWN = 90
_ABSENT = "absent"


def before_calibration(request: QuantizeRequest, *, hidden_on_cpu: bool) -> dict[str, str]:
    """What is known of a run before its calibration is drawn: source, recipe, options, versions, device.

    ``hidden_on_cpu``: hidden states stay in main memory though there is a GPU.
    """
    recipe, packaging = request.recipe, request.recipe.packaging
    items = {f"source {name}": value for name, value in source_identity(request.source).items()}
    items |= {f"recipe {key}": _text(value) for key, value in sorted(recipe.settings.items())}
    items |= {
        "recipe lm_head.bits": str(packaging.lm_head_bits),
        "recipe mtp.bits": str(packaging.mtp_bits),
        "recipe checkpoint.text_only": _text(packaging.text_only),
        "--samples": str(request.samples),
        "--max-length": str(request.max_length),
        "--batch-size": str(request.batch_size),
        "--seed": str(request.seed),
        "--pack": _text(request.pack),
        "--mtp": _text(request.keep_mtp),
        "hidden states in main memory": _text(hidden_on_cpu),
        "device": _device(),
        "Python": ".".join(map(str, sys.version_info[:2])),
        "gptq_hybrid": f"{gptq_hybrid.__version__}, code {_code()}",
    }
    return items | {name: _version(name) for name in _LIBRARIES}


def of_calibration(manifest: Mapping[str, Any]) -> dict[str, str]:
    """The same of the calibration drawn: all of its manifest, the SHA-256 of the token ids among it."""
    return {f"calibration {key}": _text(value) for key, value in manifest.items()}


def differences(before: Mapping[str, str], now: Mapping[str, str], *, partial: bool = False) -> list[str]:
    """``"ITEM: OLD before, NEW now"`` of each item that differs.

    ``partial``: ``now`` lacks items of the calibration, and they are not compared.
    """
    found = []
    for item in dict.fromkeys([*before, *now]):
        if partial and item.startswith("calibration "):
            continue
        old, new = before.get(item, _ABSENT), now.get(item, _ABSENT)
        if old != new:
            old, new = _around_difference(old, new)
            found.append(f"{item}: {old} before, {new} now")
    return found


def refuse_other_run(
    folder: Path, before: Mapping[str, str], now: Mapping[str, str], *, partial: bool
) -> None:
    """Raise if the state in ``folder`` is of another run.

    Raises:
        HybridError: something differs; the message has each item with its two values.
    """
    found = differences(before, now, partial=partial)
    if found:
        raise HybridError(
            f"{folder} holds the state of a run that was killed, and this run differs from it:\n  "
            + "\n  ".join(found),
            remedy="Give what that run was given, to continue it; or --restart, which throws its state away.",
        )


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, ensure_ascii=False)


def _around_difference(old: str, new: str) -> tuple[str, str]:
    """Both, cut to what is near the first character that differs if they are long."""
    if max(len(old), len(new)) <= _SHOWN:
        return old, new
    first = next(
        (at for at, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new))
    )
    start = max(0, first - _SHOWN // 3)

    def cut(text: str) -> str:
        piece = text[start : start + _SHOWN]
        return f"{'…' if start else ''}{piece}{'…' if start + _SHOWN < len(text) else ''}"

    return cut(old), cut(new)


def _device() -> str:
    import torch

    if not torch.cuda.is_available():
        # The number of threads decides how sums are split.
        return f"CPU, {torch.get_num_threads()} threads"
    kinds = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return ", ".join(kinds)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return _ABSENT


@cache
def _code() -> str:
    root = Path(gptq_hybrid.__file__).parent
    digest = sha256()
    for folder in _CODE:
        modules = sorted((root / folder).rglob("*.py"))
        if not modules:
            raise AssertionError(f"{root / folder} holds no code: name the folder that replaced it in _CODE")
        for path in modules:
            digest.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:12]
