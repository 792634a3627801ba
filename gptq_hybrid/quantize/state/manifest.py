"""The manifest of a run: every item that decides its result, so that a continuation can say what differs."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import gptq_hybrid
from gptq_hybrid.checkpoint.fingerprint import file_fingerprints
from gptq_hybrid.common.errors import HybridError
from gptq_hybrid.common.versions import find_version
from gptq_hybrid.quantize.request import QuantizeRequest

# They compute, and so decide the last bits of a sum.
_LIBRARIES = ("gptqmodel", "torch", "transformers", "triton", "flash-linear-attention", "causal-conv1d")
# Folders of this package whose code runs while layers are quantized or tuned.
_CODE = ("upstream", "definition", "packing", "tuning", "streaming")
_SHOWN = 90
_ABSENT = "absent"


def request_items(request: QuantizeRequest, *, hidden_on_cpu: bool) -> dict[str, str]:
    """List what decides a run before its calibration is drawn: source, recipe, options, versions, device.

    Args:
        request: of the run.
        hidden_on_cpu: hidden states stay in main memory though there is a GPU.
    """
    recipe, packaging = request.recipe, request.recipe.packaging
    items = {f"source {name}": value for name, value in file_fingerprints(request.source).items()}
    items |= {f"recipe {key}": _text(value) for key, value in sorted(recipe.settings.items())}
    items |= {
        "recipe tune": _text(None if recipe.tune is None else asdict(recipe.tune)),
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
        "gptq_hybrid": f"{gptq_hybrid.__version__}, code {code_digest(Path(gptq_hybrid.__file__).parent)}",
    }
    return items | {name: find_version(name) or _ABSENT for name in _LIBRARIES}


def calibration_items(manifest: Mapping[str, Any]) -> dict[str, str]:
    """List what decides a run once its calibration is drawn: its manifest, with a SHA-256 of the token ids."""
    return {f"calibration {key}": _text(value) for key, value in manifest.items()}


def differences(before: Mapping[str, str], now: Mapping[str, str], *, partial: bool = False) -> list[str]:
    """Return ``"ITEM: OLD before, NEW now"`` for each item that differs.

    Args:
        before: items of the earlier run.
        now: items of this one.
        partial: ``now`` lacks the calibration, which is not compared.
    """
    lines = []
    for item in dict.fromkeys([*before, *now]):
        if partial and item.startswith("calibration "):
            continue
        old, new = before.get(item, _ABSENT), now.get(item, _ABSENT)
        if old != new:
            old, new = _around_difference(old, new)
            lines.append(f"{item}: {old} before, {new} now")
    return lines


def refuse_other_run(
    folder: Path, before: Mapping[str, str], now: Mapping[str, str], *, partial: bool
) -> None:
    """Refuse to continue from the state of another run.

    Raises:
        HybridError: an item differs; the message has each one with its two values.
    """
    lines = differences(before, now, partial=partial)
    if lines:
        raise HybridError(
            f"{folder} holds the state of a run that was killed, and this run differs from it:\n  "
            + "\n  ".join(lines),
            remedy="Repeat the options of that run, to continue it; or --restart, which throws its state away.",
        )


@cache
def code_digest(package: Path) -> str:
    """Hash the code of ``package`` that runs while layers are quantized.

    Raises:
        AssertionError: a folder of it holds no code, as after it was renamed.
    """
    digest = sha256()
    for folder in _CODE:
        modules = sorted((package / folder).rglob("*.py"))
        if not modules:
            raise AssertionError(
                f"{package / folder} holds no code: name the folder that replaced it in _CODE"
            )
        for path in sorted([*modules, *(package / folder).rglob("*.patch")]):
            digest.update(path.relative_to(package).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, ensure_ascii=False)


def _around_difference(old: str, new: str) -> tuple[str, str]:
    """Cut both, if they are long, to what is near the first character that differs."""
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
    return ", ".join(torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count()))
