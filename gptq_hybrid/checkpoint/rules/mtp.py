"""Is the whole MTP head there, where a loader will find it, in a shape and form it can use?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from gptq_hybrid.checkpoint._checkpoint import INDEX_NAME, Checkpoint
from gptq_hybrid.checkpoint._safetensors import TensorInfo
from gptq_hybrid.checkpoint.findings import Finding, Rule, Severity
from gptq_hybrid.checkpoint.layout import TensorLayout, TensorSpec
from gptq_hybrid.checkpoint.quantization import GPTQ_METHODS, excluded_by_dynamic, method_of

from ._values import all_zero, has_non_finite

FLOAT_DTYPES = frozenset({"BF16", "F16", "F32"})
# How a linear's `.weight` may legitimately be stored instead, by quantization format.
_QUANTIZED_PARTS = {
    "qweight": ("qweight", "scales"),  # GPTQ and AWQ
    "weight_packed": ("weight_packed", "weight_scale"),  # compressed-tensors pack-quantized
}
_GET_WHOLE = "Fetch it again from where it came from, or graft the head of the unquantized original"


def _repair(checkpoint: Checkpoint) -> str:
    return f"qwen36 repair {checkpoint.path}"


def _error(
    rule: str, message: str, remedy: str, *, tensor: str | None = None, file: str | None = None
) -> Finding:
    return Finding(rule, Severity.ERROR, message, remedy, tensor, file)


def _draft_configured(checkpoint: Checkpoint, layout: TensorLayout) -> Iterator[Finding]:
    if not layout.mtp:
        yield _error(
            "mtp-config",
            "config.json declares no MTP layers (`mtp_num_hidden_layers` is absent or 0)",
            "This checkpoint was made without an MTP head; serve it without --speculative-config.",
            file="config.json",
        )


def _files_readable(checkpoint: Checkpoint, layout: TensorLayout) -> Iterator[Finding]:
    for name in checkpoint.missing_files:
        assert checkpoint.index is not None
        owned = [tensor for tensor, file in checkpoint.index.items() if file == name]
        yield _error(
            "index-missing-file",
            f"{INDEX_NAME} names {name}, which does not exist; it should hold {_some(owned)}",
            f"Fetch {name} again, or if it lies elsewhere put it beside {INDEX_NAME}.",
            file=name,
        )
    loaded, _ = checkpoint.loaded, checkpoint.stray
    del loaded
    for name, error in checkpoint.header_errors.items():
        if name in checkpoint.referenced:
            yield _error("shard-unreadable", error.message, error.remedy or _GET_WHOLE + ".", file=name)


def _present(checkpoint: Checkpoint, layout: TensorLayout) -> Iterator[Finding]:
    missing = [spec for spec in layout.mtp if _stored_as(checkpoint.loaded, spec) is None]
    if not missing:
        return
    stray: dict[str, list[TensorSpec]] = {}
    for spec in missing:
        found = checkpoint.stray.get(spec.name)
        stray.setdefault(found.file if found else "", []).append(spec)
    for file, specs in sorted(stray.items()):
        names = _some([spec.name for spec in specs])
        count = f"{len(specs)} of {len(layout.mtp)} MTP tensors"
        if file:
            yield _error(
                "mtp-unindexed",
                f"{count} lie in {file}, which {INDEX_NAME} does not name, so no loader opens it: {names}",
                f"Add them to the index: {_repair(checkpoint)}",
                tensor=specs[0].name,
                file=file,
            )
        else:
            blamed = _blamed_file(checkpoint, specs[0])
            yield _error(
                "mtp-missing",
                f"{count} are in no file of the checkpoint: {names}",
                f"{_GET_WHOLE}: {_repair(checkpoint)} --mtp-from ORIGINAL",
                tensor=specs[0].name,
                file=blamed,
            )


def _blamed_file(checkpoint: Checkpoint, spec: TensorSpec) -> str | None:
    return None if checkpoint.index is None else checkpoint.index.get(spec.name, INDEX_NAME)


def _shapes(checkpoint: Checkpoint, layout: TensorLayout) -> Iterator[Finding]:
    for spec, info in _plain(checkpoint, layout):
        if info.shape != spec.shape:
            yield _error(
                "mtp-shape",
                f"{spec.name} in {info.file} is {list(info.shape)}; config.json calls for {list(spec.shape)}",
                f"The head belongs to another model. {_GET_WHOLE}: {_repair(checkpoint)} --mtp-from ORIGINAL",
                tensor=spec.name,
                file=info.file,
            )


def _dtypes(checkpoint: Checkpoint, layout: TensorLayout) -> Iterator[Finding]:
    fp8_checkpoint = method_of(checkpoint.quantization_config) in {"fp8", "compressed-tensors", "modelopt"}
    for spec, info in _plain(checkpoint, layout):
        scaled_fp8 = fp8_checkpoint and info.dtype.startswith("F8_") and _has_scale(checkpoint, spec)
        if info.dtype not in FLOAT_DTYPES and not scaled_fp8:
            yield _error(
                "mtp-dtype",
                f"{spec.name} in {info.file} is stored as {info.dtype}; vLLM would cast the raw values to BF16",
                f"{_GET_WHOLE} (BF16): {_repair(checkpoint)} --mtp-from ORIGINAL",
                tensor=spec.name,
                file=info.file,
            )


def _quantized_consistently(checkpoint: Checkpoint, layout: TensorLayout) -> Iterator[Finding]:
    config = checkpoint.quantization_config
    if config is None or method_of(config) not in GPTQ_METHODS:
        return
    for spec in layout.mtp:
        module = spec.name.removesuffix(".weight")
        if _stored_as(checkpoint.loaded, spec) == "qweight" and excluded_by_dynamic(config, module):
            yield _error(
                "mtp-quantization",
                f"{module} is stored quantized, but quantization_config.dynamic leaves it unquantized",
                "Remove the `-:` rule that matches it from config.json.",
                tensor=f"{module}.qweight",
                file="config.json",
            )
    if "dynamic" in config and config["dynamic"] is None:
        yield _error(
            "mtp-dynamic-null",
            "quantization_config.dynamic is null; vLLM 0.27.1 and later crash on it when MTP is on",
            f"Remove the key from config.json: {_repair(checkpoint)}",
            file="config.json",
        )


def _values(checkpoint: Checkpoint, layout: TensorLayout) -> Iterator[Finding]:
    """Matrices that are nothing but zeros, and samples that hold NaN or infinity.

    One-dimensional tensors may be zero: the norms of this family scale by 1 + w.
    """
    for spec, info in _plain(checkpoint, layout):
        if info.dtype not in FLOAT_DTYPES or info.shape != spec.shape:
            continue
        if len(spec.shape) > 1 and all_zero(checkpoint, info):
            what = "holds only zeros"
        elif has_non_finite(checkpoint, info):
            what = "holds NaN or infinite values"
        else:
            continue
        yield _error(
            "mtp-values",
            f"{spec.name} in {info.file} {what}",
            f"{_GET_WHOLE}: {_repair(checkpoint)} --mtp-from ORIGINAL",
            tensor=spec.name,
            file=info.file,
        )


def _plain(checkpoint: Checkpoint, layout: TensorLayout) -> Iterable[tuple[TensorSpec, TensorInfo]]:
    return [(spec, checkpoint.loaded[spec.name]) for spec in layout.mtp if spec.name in checkpoint.loaded]


def _has_scale(checkpoint: Checkpoint, spec: TensorSpec) -> bool:
    return any(f"{spec.name}_scale{suffix}" in checkpoint.loaded for suffix in ("", "_inv"))


def _stored_as(loaded: dict[str, TensorInfo], spec: TensorSpec) -> str | None:
    """``"weight"``, the name of a complete quantized form, or None when neither is there."""
    if spec.name in loaded:
        return "weight"
    module = spec.name.removesuffix(".weight")
    for form, parts in _QUANTIZED_PARTS.items():
        if len(spec.shape) == 2 and all(f"{module}.{part}" in loaded for part in parts):
            return form
    return None


def _some(names: list[str], limit: int = 3) -> str:
    """The first few names, and how many more there are."""
    head = ", ".join(names[:limit])
    return head if len(names) <= limit else f"{head} and {len(names) - limit} more"


MTP_RULES = (
    Rule(
        "mtp-config", "mtp", "Speculative decoding by MTP needs MTP layers in config.json.", _draft_configured
    ),
    Rule("mtp-files", "mtp", "Every file that the index names must exist and be whole.", _files_readable),
    Rule(
        "mtp-present",
        "mtp",
        "vLLM opens only files the index names and never misses a tensor aloud.",
        _present,
    ),
    Rule("mtp-shape", "mtp", "The head must fit the model it drafts for.", _shapes),
    Rule("mtp-dtype", "mtp", "A head in a quantized dtype needs its scales.", _dtypes),
    Rule("mtp-quantization", "mtp", "What is stored quantized must be declared so.", _quantized_consistently),
    Rule("mtp-values", "mtp", "A head of zeros or NaN drafts nothing.", _values),
)
