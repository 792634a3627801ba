"""Do the settings make sense, and does the config say of every module how it is stored?"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

from gptq_hybrid.checkpoint import formats
from gptq_hybrid.checkpoint.json_files import fetch_json_object
from gptq_hybrid.checkpoint.quantization import MTP_RULE
from gptq_hybrid.common.errors import CheckpointError, TransferError
from gptq_hybrid.doctor import vllm_releases as vllm_versions
from gptq_hybrid.doctor.findings import Fault, Inspection, Severity, rule, some

from .linears import (
    asked_as,
    is_gptq,
    linears,
    mtp_linears,
    others,
    output_head,
    says,
)

_REQUANTIZE = "Quantize again: qwen36 quantize ORIGINAL TARGET"
# What gptqmodel's and vLLM's kernels take.
_BITS, _GROUPS = (4, 8), (-1, 32, 64, 128)
_AUTO_ROUND_PACKINGS = (
    "auto_round:auto_gptq",
    "auto_round:auto_awq",
    "auto_round:fp8",
    "auto_round:llm_compressor",
)


@rule(
    "quantization-undeclared",
    scope="quantized",
    explanation="Without quantization_config in config.json vLLM looks for plain weights and finds none.",
    remedy="Put the quantization_config back into config.json; quantize_config.json may hold a copy.",
)
def undeclared(see: Inspection) -> Iterator[Fault]:
    if see.checkpoint.quantization_config is None:
        packed = [linear.name for linear, found in linears(see) if found.quantized]
        if packed:
            yield Fault(
                f"{len(packed)} modules are quantized, but config.json has no quantization_config",
                tensor=packed[0],
                file="config.json",
            )


@rule(
    "quantization-unknown",
    scope="quantized",
    severity=Severity.WARNING,
    explanation="Only the formats this project knows are looked into.",
    remedy="Nothing to do, if the method is one that vLLM knows.",
)
def unknown_method(see: Inspection) -> Iterator[Fault]:
    config = see.checkpoint.quantization_config
    if config is not None and formats.format_of(config) is None:
        yield Fault(f"quant_method {config.get('quant_method')!r} is not looked into", file="config.json")


@rule(
    "quantization-settings",
    scope="quantized",
    explanation="vLLM's GPTQ kernels take 4 or 8 bits, symmetric, in groups of 32, 64, 128 or whole columns.",
    remedy=_REQUANTIZE,
)
def settings(see: Inspection) -> Iterator[Fault]:
    config = see.checkpoint.quantization_config
    packing = None if config is None else config.get("packing_format")
    if formats.format_of(config) is formats.AUTO_ROUND and packing and packing not in _AUTO_ROUND_PACKINGS:
        yield Fault(f"packing_format {packing!r} is not one that vLLM loads", file="config.json")
    if config is None or not is_gptq(see):
        return
    for key in ("bits", "group_size", "desc_act", "sym"):
        if key not in config:
            yield Fault(f"quantization_config lacks `{key}`, which vLLM requires", file="config.json")
    bits, group, sym = config.get("bits", 4), config.get("group_size", 128), config.get("sym", True)
    if bits not in _BITS or group not in _GROUPS or sym is not True:
        yield Fault(f"bits={bits!r}, group_size={group!r}, sym={sym!r} cannot be served", file="config.json")
    if (found := config.get("checkpoint_format", "gptq")) not in ("gptq", "gptq_v2"):
        yield Fault(f"checkpoint_format {found!r} is not one that vLLM loads", file="config.json")
    dynamic = config.get("dynamic")
    if dynamic is not None and not isinstance(dynamic, dict):
        yield Fault("quantization_config.dynamic is not an object of rules", file="config.json")


@rule(
    "quantization-copies",
    scope="quantized",
    severity=Severity.WARNING,
    explanation="vLLM reads config.json, gptqmodel quantize_config.json: they must say the same.",
    remedy="Make quantize_config.json a copy of config.json's quantization_config.",
)
def copies(see: Inspection) -> Iterator[Fault]:
    config, name = see.checkpoint.quantization_config, "quantize_config.json"
    if config is None or not is_gptq(see) or not see.checkpoint.has(name):
        return
    try:
        copy = fetch_json_object(see.checkpoint.files, name)
    except TransferError:
        raise
    except CheckpointError as error:
        yield Fault(error.message, file=name)
        return
    differ = [k for k in ("bits", "group_size", "sym", "desc_act", "dynamic") if copy.get(k) != config.get(k)]
    if differ:
        yield Fault(f"{name} and config.json differ in {', '.join(differ)}", file=name)


@rule(
    "quantized-mismatch",
    scope="quantized",
    explanation="vLLM builds each module as quantization_config says; stored otherwise, it has nowhere to go.",
    remedy="Correct quantization_config in config.json, or quantize again.",
)
def mismatch(see: Inspection) -> Iterator[Fault]:
    config = see.checkpoint.quantization_config
    known = formats.format_of(config)
    if config is None or known is None:
        return
    states = [
        (linear.name, found.quantized, known.declares(config, linear.name))
        for linear, found in (*linears(see), *others(see))
    ]
    packed = [name for name, quantized, declared in states if quantized and declared is False]
    dense = [name for name, quantized, declared in states if not quantized and declared is True]
    if packed:
        yield Fault(
            f"{len(packed)} modules are stored quantized, but the config leaves them unquantized: {some(packed)}",
            tensor=packed[0],
            file="config.json",
        )
    if dense:
        yield Fault(
            f"{len(dense)} modules are stored unquantized, but the config calls for {known.name}: {some(dense)}",
            tensor=dense[0],
            file="config.json",
        )
    alien = [(n.name, f.form) for n, f in linears(see) if f.quantized and f.form not in known.forms]
    if alien:
        yield Fault(
            f"{len(alien)} modules are stored as {alien[0][1]}, but the config says {known.name}: "
            + some(name for name, _ in alien),
            tensor=alien[0][0],
            file="config.json",
        )
    if any(linears(see)) and not any(quantized for _, quantized, _ in states):
        yield Fault(f"the config says {known.name}, but no module is quantized", file="config.json")


@rule(
    "quantized-dense",
    scope="quantized",
    severity=Severity.WARNING,
    explanation="Left in BF16, a module takes four times the memory; vLLM serves it as it is.",
    remedy="Fine if it was meant so.",
)
def left_dense(see: Inspection) -> Iterator[Fault]:
    config = see.checkpoint.quantization_config
    known = formats.format_of(config)
    if config is None or known is None:
        return
    states = list(linears(see))
    dense = [n.name for n, f in states if not f.quantized and known.declares(config, n.name) is None]
    if dense and len(dense) < len(states):
        yield Fault(f"{len(dense)} of {len(states)} modules are left in BF16: {some(dense)}", tensor=dense[0])


@rule(
    "dynamic-names",
    scope="quantized",
    explanation=(
        "gptqmodel asks `dynamic` by the checkpoint's names, vLLM by its own and once for what it loads as one "
        "(language_model.model.layers.0.mlp.gate_up_proj): a rule must say the same to both."
    ),
    remedy="Write patterns that match both names; gptq_hybrid.recipes.dynamic_rules makes them.",
)
def dynamic_names(see: Inspection) -> Iterator[Fault]:
    config = see.checkpoint.quantization_config
    dynamic = config.get("dynamic") if config is not None else None
    if config is None or not is_gptq(see) or not isinstance(dynamic, dict) or not set(dynamic) - {MTP_RULE}:
        return
    head = output_head(see)
    # What is stored dense vLLM builds dense, whatever the rules say.
    modules = [linear.name for linear, found in linears(see) if found.quantized]
    modules += [head[0].name] if head else []
    if see.mtp:
        stored = (
            (linear.name, formats.stored(see.checkpoint.loaded, linear.name)) for linear in mtp_linears(see)
        )
        modules += [name for name, found in stored if found is not None and found.quantized]
    names = {module: asked_as(see, module) for module in modules}
    said = {name: says(config, name) for name in {*names, *chain.from_iterable(names.values())}}
    differ = [
        (module, name, said[module], said[name])
        for module, asked in names.items()
        for name in asked
        if said[module] != said[name]
    ]
    if differ:
        module, name, ours, theirs = differ[0]
        yield Fault(
            f"`dynamic` has {module} as {ours}, but vLLM asks for {name}, which is {theirs}"
            + (f" (and {len(differ) - 1} more)" if len(differ) > 1 else ""),
            tensor=module,
            file="config.json",
        )


@rule(
    "lm-head-quantized",
    scope="quantized",
    explanation="vLLM quantizes the output head where `lm_head` is true, no rule leaves it out and it is packed.",
    remedy="Set `lm_head` to true in both configs, with a rule of `dynamic` if its bits differ from the rest.",
)
def lm_head(see: Inspection) -> Iterator[Fault]:
    config, head = see.checkpoint.quantization_config, output_head(see)
    if config is None or head is None or not is_gptq(see):
        return
    if config.get("lm_head") is not True:
        yield Fault(
            f"lm_head is stored quantized, but quantization_config has `lm_head`: {config.get('lm_head')!r}",
            tensor="lm_head.qweight",
            file="config.json",
        )
    elif formats.GPTQ.declares(config, "lm_head") is False:
        yield Fault(
            "lm_head is stored quantized, but `dynamic` or the list of modules leaves it out",
            tensor="lm_head.qweight",
            file="config.json",
        )
    since = vllm_versions.LM_HEAD_MTP_SINCE
    if see.mtp and see.layout.mtp and see.vllm is not None and not see.vllm.at_least(since):
        yield Fault(
            f"vLLM {see.vllm} builds the draft's output head unquantized, and ends on this quantized one",
            tensor="lm_head.qweight",
            remedy=f"Serve it with vLLM {since} or newer, or without MTP.",
        )


QUANTIZATION_RULES = (
    undeclared,
    unknown_method,
    settings,
    copies,
    mismatch,
    left_dense,
    dynamic_names,
    lm_head,
)
