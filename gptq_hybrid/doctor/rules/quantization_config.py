"""Rules: do the settings make sense, and does the config say how every module is stored?"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

from gptq_hybrid.checkpoint import formats
from gptq_hybrid.checkpoint.json_files import fetch_json_object
from gptq_hybrid.checkpoint.quantization import MTP_RULE, quant_method
from gptq_hybrid.common.errors import CheckpointError, TransferError
from gptq_hybrid.doctor import vllm_releases
from gptq_hybrid.doctor.findings import Fault, Inspection, Severity, rule, some

from .linears import (
    declared_settings,
    is_gptq,
    linears,
    lookup_names,
    quantized_output_head,
)
from .modules import of_body, of_draft, output_heads

_REQUANTIZE = "Quantize again: qwen36 quantize ORIGINAL TARGET"
# What gptqmodel's and vLLM's kernels take.
_BITS, _GROUPS = (4, 8), (-1, 32, 64, 128)
_AUTO_ROUND_PACKINGS = (
    "auto_round:auto_gptq",
    "auto_round:auto_awq",
    "auto_round:fp8",
    "auto_round:llm_compressor",
)

# Engines with formats of their own: the suffix of a tensor and the `quant_method` that give one away.
_FOREIGN = (
    ("MLX", ".biases", "mlx"),
    ("exllamav3 (EXL3)", ".trellis", "exl3"),
    ("llama.cpp (GGUF)", ".gguf", "gguf"),
)


@rule(
    "quantization-undeclared",
    scope="quantized",
    explanation="Without quantization_config in config.json vLLM looks for plain weights and finds none.",
    remedy="Put the quantization_config back; from a quantize_config.json: qwen36 repair {path}",
)
def undeclared(inspection: Inspection) -> Iterator[Fault]:
    config = inspection.checkpoint.quantization_config
    if formats.declared_format(config) is not formats.UNQUANTIZED:
        return
    packed = [linear.name for linear, stored in linears(inspection) if stored.quantized]
    if packed:
        lacks = (
            "config.json has no quantization_config" if config is None else "its config has no quant_method"
        )
        yield Fault(f"{len(packed)} modules are quantized, but {lacks}", tensor=packed[0], file="config.json")


@rule(
    "quantization-unknown",
    scope="quantized",
    severity=Severity.WARNING,
    explanation="The rules know GPTQ, AutoRound, AWQ, compressed-tensors and FP8; vLLM has more methods, and each "
    "other engine its own.",
    remedy="Nothing to do, if the method is one that your vLLM knows.",
)
def unknown_method(inspection: Inspection) -> Iterator[Fault]:
    config, names = inspection.checkpoint.quantization_config, inspection.checkpoint.loaded
    method = quant_method(config)
    for engine, suffix, own in _FOREIGN:
        if method == own or any(name.endswith(suffix) for name in names):
            yield Fault(
                f"this is a checkpoint of {engine}; vLLM does not load it",
                severity=Severity.ERROR,
                remedy="Serve it with that engine, or fetch the original or a quantization for vLLM.",
            )
            return
    if config is None or not method:
        return
    older = inspection.older_than(vllm_releases.METHODS_READ) and method in vllm_releases.OLD_METHODS
    if method not in vllm_releases.METHODS or older:
        # The few that older releases had may be known there; the others were known to none.
        read = not older
        yield Fault(
            f"vLLM {vllm_releases.METHODS_READ} knows no quant_method {method!r}; it knows "
            f"{', '.join(sorted(vllm_releases.METHODS))}",
            file="config.json",
            severity=Severity.ERROR if read else None,
            remedy="Write the name that vLLM has, if the format is one of these: AutoRound's is auto-round, "
            "gptqmodel's gptq.",
        )
    elif method in vllm_releases.DEPRECATED_METHODS:
        yield Fault(
            f"vLLM refuses the deprecated quant_method {method!r}",
            file="config.json",
            severity=Severity.ERROR,
            remedy="Serve it with --allow-deprecated-quantization, or quantize again.",
        )
    elif method == "torchao" and "quant_type" not in config:
        yield Fault(
            "quantization_config lacks `quant_type`, which vLLM requires of torchao",
            file="config.json",
            severity=Severity.ERROR,
            remedy="Fetch config.json again from where the checkpoint came from.",
        )
    elif formats.declared_format(config) is None:
        yield Fault(
            f"the rules do not know quant_method {method!r}; its modules are not checked", file="config.json"
        )


@rule(
    "quantization-settings",
    scope="quantized",
    explanation="vLLM's GPTQ kernels take 4 or 8 bits, symmetric, in groups of 32, 64, 128 or whole columns.",
    remedy=_REQUANTIZE,
)
def settings(inspection: Inspection) -> Iterator[Fault]:
    config = inspection.checkpoint.quantization_config
    packing = None if config is None else config.get("packing_format")
    if (
        formats.declared_format(config) is formats.AUTO_ROUND
        and packing
        and packing not in _AUTO_ROUND_PACKINGS
    ):
        yield Fault(f"packing_format {packing!r} is not one that vLLM loads", file="config.json")
    dynamic = None if config is None else config.get("dynamic")
    # From the release on that looks at act order while it reads the config, of whatever method.
    looked_at = is_gptq(inspection) or not inspection.older_than(vllm_releases.NO_ACT_ORDER)
    if dynamic is not None and not isinstance(dynamic, dict) and looked_at:
        yield Fault("quantization_config.dynamic is not an object of rules", file="config.json")
    if config is None or not is_gptq(inspection):
        return
    for key in ("bits", "group_size", "desc_act", "sym"):
        if key not in config:
            yield Fault(f"quantization_config lacks `{key}`, which vLLM requires", file="config.json")
    bits, group, sym = config.get("bits", 4), config.get("group_size", 128), config.get("sym", True)
    if bits not in _BITS or group not in _GROUPS or sym not in (True,):
        yield Fault(f"bits={bits!r}, group_size={group!r}, sym={sym!r} cannot be served", file="config.json")
    if (layout := config.get("checkpoint_format", "gptq")) not in ("gptq", "gptq_v2"):
        yield Fault(f"checkpoint_format {layout!r} is not one that vLLM loads", file="config.json")


@rule(
    "quantization-copies",
    scope="quantized",
    severity=Severity.WARNING,
    explanation="vLLM reads config.json and gptqmodel reads quantize_config.json: the two must agree.",
    remedy="Make quantize_config.json a copy of config.json's quantization_config.",
)
def copies(inspection: Inspection) -> Iterator[Fault]:
    config, name = inspection.checkpoint.quantization_config, "quantize_config.json"
    if config is None or not is_gptq(inspection) or not inspection.checkpoint.has(name):
        return
    try:
        copy = fetch_json_object(inspection.checkpoint.files, name)
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
    explanation="vLLM builds each module as quantization_config says; one stored otherwise cannot be loaded.",
    remedy="Correct quantization_config in config.json, or quantize again.",
)
def mismatch(inspection: Inspection) -> Iterator[Fault]:
    config = inspection.checkpoint.quantization_config
    declared = formats.declared_format(config)
    if config is None or declared is None or declared is formats.UNQUANTIZED:
        return  # quantization-undeclared looks at one without a method
    packed: list[str] = []
    dense: list[str] = []
    alien: list[tuple[str, str]] = []
    for owner in of_body(inspection):
        if owner.built.problem:
            yield Fault(owner.built.problem, tensor=owner.module.stored[0], file="config.json")
        elif owner.built.quantized is False:
            packed += owner.parts_stored(quantized=True)
        elif owner.built.quantized:
            dense += owner.parts_stored(quantized=False)
        alien += [
            (linear.name, stored.form)
            for linear, stored in owner.parts
            if stored.quantized and stored.form not in declared.forms
        ]
    if packed:
        yield Fault(
            f"{len(packed)} modules are stored quantized, but the config leaves them unquantized: {some(packed)}",
            tensor=packed[0],
            file="config.json",
        )
    if dense:
        yield Fault(
            f"{len(dense)} modules are stored unquantized, but the config calls for {declared.name}: {some(dense)}",
            tensor=dense[0],
            file="config.json",
        )
    if alien:
        yield Fault(
            f"{len(alien)} modules are stored as {alien[0][1]}, but the config says {declared.name}: "
            + some(name for name, _ in alien),
            tensor=alien[0][0],
            file="config.json",
        )
    if declared is formats.GPTQ and not any(
        owner.parts_stored(quantized=True) for owner in (*of_body(inspection), *of_draft(inspection))
    ):
        yield Fault(f"the config says {declared.name}, but no module is quantized", file="config.json")


@rule(
    "quantized-dense",
    scope="quantized",
    severity=Severity.WARNING,
    explanation="A module left in BF16 takes four times the memory; vLLM serves it as it is.",
    remedy="Fine if it is intended.",
)
def left_dense(inspection: Inspection) -> Iterator[Fault]:
    config = inspection.checkpoint.quantization_config
    declared = formats.declared_format(config)
    if config is None or declared is None:
        return
    states = list(linears(inspection))
    dense = [n.name for n, f in states if not f.quantized and declared.declares(config, n.name) is None]
    if dense and len(dense) < len(states):
        yield Fault(f"{len(dense)} of {len(states)} modules are left in BF16: {some(dense)}", tensor=dense[0])


@rule(
    "dynamic-names",
    scope="quantized",
    severity=Severity.WARNING,
    explanation=(
        "gptqmodel looks modules up in `dynamic` by the checkpoint's names, vLLM by its own, and once for what it "
        "loads as one (language_model.model.layers.0.mlp.gate_up_proj): a rule that matches one of them alone "
        "means different things to the two."
    ),
    remedy="Write patterns that match both names; gptq_hybrid.recipes.dynamic_rules makes them.",
)
def dynamic_names(inspection: Inspection) -> Iterator[Fault]:
    config = inspection.checkpoint.quantization_config
    dynamic = config.get("dynamic") if config is not None else None
    if (
        config is None
        or not is_gptq(inspection)
        or not isinstance(dynamic, dict)
        or not set(dynamic) - {MTP_RULE}
    ):
        return
    head = quantized_output_head(inspection)
    # vLLM builds what is stored dense as dense, whatever the rules say.
    modules = [linear.name for linear, stored in linears(inspection) if stored.quantized]
    modules += [head[0].name] if head else []
    if inspection.mtp:
        loaded = inspection.checkpoint.loaded
        forms = (
            (linear.name, formats.stored(loaded, linear.name)) for linear in inspection.layout.mtp_linears
        )
        modules += [name for name, stored in forms if stored is not None and stored.quantized]
    names = {module: lookup_names(inspection, module) for module in modules}
    every_name = {*names, *chain.from_iterable(names.values())}
    meaning = {name: declared_settings(config, name) for name in every_name}
    differ = [
        (module, name, meaning[module], meaning[name])
        for module, lookups in names.items()
        for name in lookups
        if meaning[module] != meaning[name]
    ]
    if differ:
        module, name, ours, theirs = differ[0]
        yield Fault(
            f"`dynamic` has {module} as {ours}, but vLLM looks up {name}, which is {theirs}"
            + (f" (and {len(differ) - 1} more)" if len(differ) > 1 else ""),
            tensor=module,
            file="config.json",
        )


@rule(
    "lm-head-quantized",
    scope="quantized",
    explanation="vLLM builds the output head as the config says, once in the target and once in the draft.",
    remedy="Make the config say how lm_head is stored. GPTQ and AWQ have `lm_head`: true; AutoRound an entry "
    "lm_head in extra_config; compressed-tensors the target re:.*lm_head; FP8 heads cannot be loaded.",
)
def lm_head(inspection: Inspection) -> Iterator[Fault]:
    declared = formats.declared_format(inspection.checkpoint.quantization_config)
    old = inspection.drafting and inspection.older_than(vllm_releases.LM_HEAD_MTP_SINCE)
    for owner in output_heads(inspection):
        for _, stored in owner.parts:
            tensor = f"lm_head.{next(iter(stored.parts))}"
            if stored.quantized and declared is not None and stored.form not in declared.forms:
                yield Fault(
                    f"lm_head is stored as {stored.form}, but the config says {declared.name}", tensor=tensor
                )
            elif stored.quantized and owner.draft and old:
                yield Fault(
                    f"vLLM {inspection.vllm} builds the draft's output head unquantized, and fails on this "
                    "quantized one",
                    tensor=tensor,
                    remedy=f"Serve it with vLLM {vllm_releases.LM_HEAD_MTP_SINCE} or newer, or without MTP.",
                )
            elif not owner.built.suits(quantized=stored.quantized):
                config_says = "unquantized" if stored.quantized else "quantized"
                yield Fault(
                    f"lm_head is stored {'quantized' if stored.quantized else 'plain'}, but by "
                    f"quantization_config vLLM builds {owner.module.name} {config_says}",
                    tensor=tensor,
                    file="config.json",
                )


QUANTIZATION_CONFIG_RULES = (
    undeclared,
    unknown_method,
    settings,
    copies,
    mismatch,
    left_dense,
    dynamic_names,
    lm_head,
)
