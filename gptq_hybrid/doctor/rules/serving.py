"""Rules: do config, tokenizer, processor, chat template and vision tower suit each other and vLLM?"""

from __future__ import annotations

import re
from collections.abc import Iterator

from gptq_hybrid.checkpoint import formats
from gptq_hybrid.checkpoint.files import Range
from gptq_hybrid.checkpoint.json_files import fetch_json_object
from gptq_hybrid.common.errors import CheckpointError, TransferError
from gptq_hybrid.doctor import chat, vllm_releases
from gptq_hybrid.doctor.findings import Fault, Inspection, Severity, rule, some
from gptq_hybrid.doctor.head_place import dropped_by_target

from .linears import unread_format
from .mtp import elsewhere

_COPY = "Copy it from the original checkpoint."
_TOKENIZERS = (("tokenizer.json",), ("vocab.json", "merges.txt"), ("tokenizer.model",))
_PROCESSORS = ("preprocessor_config.json", "processor_config.json")
_VIDEO = "video_preprocessor_config.json"
_SMALL_FILES = (
    "tokenizer_config.json",
    "generation_config.json",
    "special_tokens_map.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "processor_config.json",
)
# Tensors that vLLM skips or places although no layout lists them.
_KNOWN_SUFFIXES = (
    "rotary_emb.inv_freq",
    ".k_scale",
    ".v_scale",
    ".kv_scale",
    ".q_scale",
)


@rule(
    "config-architecture",
    scope="serving",
    explanation="vLLM chooses the model class by `architectures` in config.json.",
    remedy="Take config.json from the original checkpoint, and add the quantization_config to it.",
)
def architecture(inspection: Inspection) -> Iterator[Fault]:
    declared, supported = inspection.checkpoint.config.get("architectures"), inspection.family.architectures
    if not isinstance(declared, list) or not set(map(str, declared)) & set(supported):
        yield Fault(
            f"`architectures` is {declared!r}; this family's are {' and '.join(supported)}",
            file="config.json",
        )


@rule(
    "vllm-release",
    scope="serving",
    severity=Severity.WARNING,
    explanation="The rules about vLLM come from reading and running particular releases.",
    remedy="Check against a release that is known, or upgrade this package.",
)
def release(inspection: Inspection) -> Iterator[Fault]:
    if inspection.vllm is None:
        return
    newest = ".".join(vllm_releases.NEWEST.split(".")[:2])
    if inspection.vllm.at_least(vllm_releases.NEWEST) and not str(inspection.vllm.version).startswith(newest):
        yield Fault(f"vLLM {inspection.vllm} is newer than {newest}, the newest these rules know")
    elif inspection.older_than(since := vllm_releases.ARCHITECTURE_SINCE):
        classes = " or ".join(inspection.family.architectures)
        yield Fault(
            f"vLLM {inspection.vllm} does not know {classes}; {since} and later do",
            remedy=f"Serve it with vLLM {vllm_releases.OLDEST} or newer.",
            severity=Severity.ERROR,
        )
    elif inspection.older_than(vllm_releases.OLDEST):
        yield Fault(
            f"vLLM {inspection.vllm} is older than {vllm_releases.OLDEST}, the oldest these rules know",
            remedy=f"Serve it with vLLM {vllm_releases.OLDEST} or newer.",
        )


@rule(
    "text-only-release",
    scope="serving",
    explanation=f"Qwen3_5ForCausalLM is in vLLM's registry from {vllm_releases.TEXT_ONLY_SINCE} on.",
    remedy="Serve it with a newer vLLM, or keep the multimodal config and vision tower.",
)
def text_only_release(inspection: Inspection) -> Iterator[Fault]:
    declared = inspection.checkpoint.config.get("architectures")
    if not isinstance(declared, list) or "Qwen3_5ForCausalLM" not in declared:
        return
    if inspection.older_than(vllm_releases.TEXT_ONLY_SINCE):
        yield Fault(
            f"vLLM {inspection.vllm} does not know the text-only class Qwen3_5ForCausalLM", file="config.json"
        )
    elif inspection.drafting and inspection.older_than(vllm_releases.TEXT_ONLY_MTP_SINCE):
        yield Fault(
            f"vLLM {inspection.vllm} has no MTP for text-only checkpoints; {vllm_releases.TEXT_ONLY_MTP_SINCE} has",
            file="config.json",
        )


@rule(
    "names-prefix",
    scope="serving",
    explanation="Multimodal checkpoints call the text model model.language_model, text-only ones model.",
    remedy="Take config.json and weights from the same checkpoint.",
)
def prefix(inspection: Inspection) -> Iterator[Fault]:
    if inspection.expected_prefix is None:
        return
    text_only = not inspection.layout.vision and not inspection.checkpoint.multimodal
    if text_only and not inspection.older_than(vllm_releases.TEXT_ONLY_MTP_SINCE):
        return  # vLLM's text-only class strips the longer prefix
    yield Fault(
        f"the layers are called {inspection.layout.layers_prefix}.*, but this config.json implies "
        f"{inspection.expected_prefix}.*",
        file="config.json",
    )


@rule(
    "text-only-mrope",
    scope="serving",
    explanation=(
        "vLLM 0.32 removes `mrope_section` from a text-only target's config but not from its draft's, which then "
        "reads past its one-dimensional positions. Seen on the CPU build: the heap is corrupted."
    ),
    remedy="Remove `mrope_section` and `mrope_interleaved` from rope_parameters; for text they change nothing.",
)
def text_only_mrope(inspection: Inspection) -> Iterator[Fault]:
    rope = inspection.checkpoint.text_config.get("rope_parameters")
    if inspection.checkpoint.multimodal or not inspection.drafting:
        return
    if isinstance(rope, dict) and "mrope_section" in rope:
        yield Fault(
            "a text-only config with `mrope_section` crashes vLLM when MTP is on (seen: 0.32.0, CPU build)",
            file="config.json",
            severity=Severity.WARNING if inspection.older_than("0.30") else None,
        )


@rule(
    "tokenizer-missing",
    scope="serving",
    explanation="`vllm serve` fails without a tokenizer.",
    remedy=_COPY,
)
def tokenizer(inspection: Inspection) -> Iterator[Fault]:
    if not any(all(inspection.checkpoint.has(name) for name in names) for names in _TOKENIZERS):
        yield Fault("there is no tokenizer.json, nor vocab.json with merges.txt", file="tokenizer.json")
    elif not inspection.checkpoint.has("tokenizer_config.json"):
        yield Fault(
            "there is no tokenizer_config.json: special tokens and tokenizer class are guessed",
            file="tokenizer_config.json",
            severity=Severity.WARNING,
        )


@rule(
    "companion-unreadable",
    scope="serving",
    explanation="transformers reads these files at start, and fails on one that is cut or not JSON.",
    remedy=_COPY,
)
def companions(inspection: Inspection) -> Iterator[Fault]:
    for name in _SMALL_FILES:
        if inspection.checkpoint.has(name):
            try:
                fetch_json_object(inspection.checkpoint.files, name)
            except TransferError:
                raise
            except CheckpointError as error:
                # vLLM ignores a generation config that it cannot read.
                optional = name == "generation_config.json"
                yield Fault(error.message, file=name, severity=Severity.WARNING if optional else None)
    name = _TOKENIZERS[0][0]
    size = inspection.checkpoint.files.size(name) if inspection.checkpoint.has(name) else None
    if size is not None:
        # 20 MB at 27B; both ends show whether it is cut.
        first, last = inspection.checkpoint.files.read(Range(name, 0, 16)), b""
        if size:
            last = inspection.checkpoint.files.read(Range(name, max(0, size - 16), 16))
        if not first.lstrip().startswith(b"{") or not last.rstrip().endswith(b"}"):
            yield Fault(f"{name} ({size} bytes) is cut, or not JSON", file=name)


@rule(
    "processor-missing",
    scope="serving",
    explanation="The multimodal class builds its processor at start, unless it serves only text.",
    remedy=_COPY,
)
def processor(inspection: Inspection) -> Iterator[Fault]:
    if not serves_images(inspection):
        return
    if not any(inspection.checkpoint.has(name) for name in _PROCESSORS):
        yield Fault(
            "there is no preprocessor_config.json, which the multimodal class needs", file=_PROCESSORS[0]
        )
    elif not inspection.checkpoint.has(_PROCESSORS[1]) and not inspection.checkpoint.has(_VIDEO):
        yield Fault(
            f"there is no {_VIDEO}: videos get the size limits of images",
            file=_VIDEO,
            severity=Severity.WARNING,
        )


def serves_images(inspection: Inspection) -> bool:
    """Whether there is a vision tower to serve with; without one the serve line allows only text."""
    return any(spec.name in inspection.checkpoint.loaded for spec in inspection.layout.vision)


@rule(
    "chat-template-missing",
    scope="serving",
    severity=Severity.WARNING,
    explanation="Without a template /v1/chat/completions answers with an error; /v1/completions works.",
    remedy="Copy chat_template.jinja from the original checkpoint, or pass --chat-template FILE.",
)
def chat_template(inspection: Inspection) -> Iterator[Fault]:
    try:
        template = chat.chat_template(inspection.checkpoint)
    except TransferError:
        raise
    except CheckpointError as error:
        yield Fault(error.message, file=error.path.name)
        return
    if template is None:
        yield Fault("there is no chat template", file=chat.TEMPLATE_FILE)
    elif problem := _syntax_problem(template):
        yield Fault(f"the chat template is not valid Jinja: {problem}", file=chat.TEMPLATE_FILE)


def _syntax_problem(template: str) -> str | None:
    """Parse a template with Jinja, if installed, and return its complaint.

    Loading Jinja costs 30 ms, so it is asked only about a template whose brackets or blocks do not pair up, as in
    every cut or mangled one.
    """
    words = re.findall(r"\{%[-+]?\s*(\w+)", template)
    paired = all(words.count(word) == words.count(f"end{word}") for word in ("if", "for", "macro"))
    brackets = (("{%", "%}"), ("{{", "}}"))
    if paired and all(template.count(a) == template.count(b) for a, b in brackets):
        return None
    try:
        from jinja2 import Environment, TemplateSyntaxError
    except ImportError:
        return None
    try:
        Environment(extensions=["jinja2.ext.loopcontrols"]).parse(template)
    except TemplateSyntaxError as error:
        return f"line {error.lineno}: {error.message}"
    except RecursionError:
        return "it is nested too deeply"
    return None


@rule(
    "parser-unknown",
    scope="serving",
    severity=Severity.WARNING,
    explanation="vLLM fails on a --tool-call-parser or --reasoning-parser that it does not have.",
    remedy="Use a newer vLLM, or serve without tool calls.",
)
def parsers(inspection: Inspection) -> Iterator[Fault]:
    template = chat.readable_template(inspection.checkpoint)
    for name, table, flag in (
        (chat.tool_call_parser(template), vllm_releases.TOOL_PARSERS, "--tool-call-parser"),
        (chat.reasoning_parser(template), vllm_releases.REASONING_PARSERS, "--reasoning-parser"),
    ):
        since = table.get(name) if name else None
        if name and since and inspection.older_than(since):
            yield Fault(f"vLLM has {flag} {name} from {since} on; this is {inspection.vllm}")


@rule(
    "vision-missing",
    scope="serving",
    explanation="The multimodal class runs on uninitialised memory in place of a missing tower.",
    remedy="Take the vision tensors from the original, or serve only text.",
)
def vision(inspection: Inspection) -> Iterator[Fault]:
    loaded = inspection.checkpoint.loaded
    absent = [
        spec.name
        for spec in inspection.layout.vision
        if spec.name not in loaded and formats.stored(loaded, spec.name.removesuffix(".weight")) is None
    ]
    if not absent:
        return
    count = f"{len(absent)} of {len(inspection.layout.vision)} vision tensors"
    if len(absent) == len(inspection.layout.vision):
        if inspection.checkpoint.config.get("language_model_only") is True:
            return  # made so on purpose; the serve line allows only text
        yield Fault(
            f"{count} are absent although config.json has a vision_config: it serves only text",
            severity=Severity.WARNING,
            remedy='Serve it with --limit-mm-per-prompt \'{"image": 0, "video": 0}\'.',
        )
    else:
        yield Fault(f"{count} are absent: {some(absent)}", tensor=absent[0])


def _packed_beside(inspection: Inspection, module: str) -> bool:
    """Whether a module with a plain weight has a packed one too; vLLM builds only one of them."""
    return any(
        f"{module}.{suffix}" in inspection.checkpoint.loaded for suffix in ("qweight", "weight_packed")
    )


@rule(
    "tensor-unknown",
    scope="serving",
    explanation=f"From {vllm_releases.STRICT_NAMES} on vLLM fails on a tensor that no module of the model takes.",
    remedy="Take config.json and weights from the same checkpoint.",
)
def unknown(inspection: Inspection) -> Iterator[Fault]:
    dense = {spec.name for spec in inspection.layout.dense}
    modules = {name.removesuffix(".weight") for name in dense if name.endswith(".weight")}
    suffixes = {suffix for candidate in formats.FORMATS for suffix in candidate.suffixes}
    head = elsewhere(inspection) if inspection.mtp else None
    misplaced = {info.name for info in head.tensors.values()} if head else set()
    strange: list[str] = []
    for name in inspection.checkpoint.loaded:
        module, _, suffix = name.rpartition(".")
        if suffix == "weight" and f"{module}.weight" in dense and _packed_beside(inspection, module):
            strange.append(name)
            continue
        known = suffix in suffixes or unread_format(inspection)
        if name in dense or (module in modules and known) or name.endswith(_KNOWN_SUFFIXES):
            continue
        if name.startswith("lm_head.") and inspection.layout.output_head is None:
            continue  # the rule embeddings-tied looks at it
        if dropped_by_target(name, inspection.checkpoint) or name in misplaced:
            continue  # the rule mtp-elsewhere looks at these
        if name.startswith("mtp.") and not inspection.drafting:
            continue  # the target skips these, and there is no draft
        strange.append(name)
    if strange:
        info = inspection.checkpoint.loaded[strange[0]]
        biases = all(name.endswith(".bias") for name in strange)
        lenient = inspection.older_than(vllm_releases.STRICT_NAMES)
        yield Fault(
            f"{len(strange)} tensors belong to no module of this model: {some(strange)}",
            tensor=info.name,
            file=info.file,
            severity=Severity.WARNING if biases or lenient else None,
        )


SERVING_RULES = (
    architecture,
    release,
    text_only_release,
    prefix,
    text_only_mrope,
    tokenizer,
    companions,
    processor,
    chat_template,
    parsers,
    vision,
    unknown,
)
