"""Do config, tokenizer, processor, chat template and vision tower go together, for the vLLM in question?"""

from __future__ import annotations

import re
from collections.abc import Iterator

from gptq_hybrid.checkpoint import formats
from gptq_hybrid.checkpoint.files import Range
from gptq_hybrid.checkpoint.json_files import fetch_json_object
from gptq_hybrid.common.errors import CheckpointError, TransferError, UnsupportedArchitectureError
from gptq_hybrid.doctor import chat
from gptq_hybrid.doctor import vllm_releases as vllm_versions
from gptq_hybrid.doctor.findings import Fault, Inspection, Severity, rule, some

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
# Tensors that vLLM knows to skip or to place although no layout lists them.
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
def architecture(see: Inspection) -> Iterator[Fault]:
    from gptq_hybrid.checkpoint import family_of

    config = see.checkpoint.config
    try:
        family = family_of(config)
    except UnsupportedArchitectureError:
        return
    named = config.get("architectures")
    if not isinstance(named, list) or not set(map(str, named)) & set(family.architectures):
        yield Fault(
            f"`architectures` is {named!r}; this family's are {' and '.join(family.architectures)}",
            file="config.json",
        )


@rule(
    "vllm-release",
    scope="serving",
    severity=Severity.WARNING,
    explanation="Rules about vLLM come from reading and running particular releases.",
    remedy="Check against a release that is known, or upgrade this package.",
)
def release(see: Inspection) -> Iterator[Fault]:
    if see.vllm is None:
        return
    newest = ".".join(vllm_versions.NEWEST.split(".")[:2])
    if see.vllm.at_least(vllm_versions.NEWEST) and not str(see.vllm.version).startswith(newest):
        yield Fault(f"vLLM {see.vllm} is newer than {newest}, the newest these rules know")
    elif not see.vllm.at_least(vllm_versions.OLDEST):
        yield Fault(f"vLLM {see.vllm} is older than {vllm_versions.OLDEST}, the oldest these rules know")


@rule(
    "text-only-release",
    scope="serving",
    explanation=f"Qwen3_5ForCausalLM is in vLLM's registry from {vllm_versions.TEXT_ONLY_SINCE} on.",
    remedy="Serve it with a newer vLLM, or keep the multimodal config and vision tower.",
)
def text_only_release(see: Inspection) -> Iterator[Fault]:
    named = see.checkpoint.config.get("architectures")
    if see.vllm is None or not isinstance(named, list) or "Qwen3_5ForCausalLM" not in named:
        return
    if not see.vllm.at_least(vllm_versions.TEXT_ONLY_SINCE):
        yield Fault(
            f"vLLM {see.vllm} does not know the text-only class Qwen3_5ForCausalLM", file="config.json"
        )
    elif see.mtp and see.layout.mtp and not see.vllm.at_least(vllm_versions.TEXT_ONLY_MTP_SINCE):
        yield Fault(
            f"vLLM {see.vllm} has no MTP for text-only checkpoints; {vllm_versions.TEXT_ONLY_MTP_SINCE} has",
            file="config.json",
        )


@rule(
    "names-prefix",
    scope="serving",
    explanation="Multimodal checkpoints call the text model model.language_model, text-only ones model.",
    remedy="Take config.json and weights from the same checkpoint.",
)
def prefix(see: Inspection) -> Iterator[Fault]:
    if see.expected_prefix is None:
        return
    have, wanted = see.layout.layers_prefix, see.expected_prefix
    text_only = not see.layout.vision and see.checkpoint.text_config is see.checkpoint.config
    # vLLM's text-only class strips the longer prefix.
    if text_only and (see.vllm is None or see.vllm.at_least(vllm_versions.TEXT_ONLY_MTP_SINCE)):
        return
    yield Fault(
        f"the layers are called {have}.*, but this config.json goes with {wanted}.*", file="config.json"
    )


@rule(
    "text-only-mrope",
    scope="serving",
    explanation=(
        "vLLM 0.32 takes `mrope_section` out of a text-only target's config, not of its draft's, which then "
        "reads past its one-dimensional positions. Seen on the CPU build: the heap is corrupted."
    ),
    remedy="Take `mrope_section` and `mrope_interleaved` out of rope_parameters; for text they change nothing.",
)
def text_only_mrope(see: Inspection) -> Iterator[Fault]:
    rope = see.checkpoint.text_config.get("rope_parameters")
    flat = see.checkpoint.text_config is see.checkpoint.config
    if see.mtp and see.layout.mtp and flat and isinstance(rope, dict) and "mrope_section" in rope:
        crashes = see.vllm is None or see.vllm.at_least("0.30")
        yield Fault(
            "a text-only config with `mrope_section` crashes vLLM when MTP is on (seen: 0.32.0, CPU build)",
            file="config.json",
            severity=None if crashes else Severity.WARNING,
        )


@rule(
    "tokenizer-missing",
    scope="serving",
    explanation="`vllm serve` ends without a tokenizer.",
    remedy=_COPY,
)
def tokenizer(see: Inspection) -> Iterator[Fault]:
    if not any(all(see.checkpoint.has(name) for name in names) for names in _TOKENIZERS):
        yield Fault("there is no tokenizer.json, nor vocab.json with merges.txt", file="tokenizer.json")
    elif not see.checkpoint.has("tokenizer_config.json"):
        yield Fault(
            "there is no tokenizer_config.json: special tokens and tokenizer class are guessed",
            file="tokenizer_config.json",
            severity=Severity.WARNING,
        )


@rule(
    "companion-unreadable",
    scope="serving",
    explanation="transformers reads these files at start, and ends on one that is cut or is not JSON.",
    remedy=_COPY,
)
def companions(see: Inspection) -> Iterator[Fault]:
    for name in _SMALL_FILES:
        if see.checkpoint.has(name):
            try:
                fetch_json_object(see.checkpoint.files, name)
            except TransferError:
                raise
            except CheckpointError as error:
                # vLLM does without a generation config that it cannot read.
                optional = name == "generation_config.json"
                yield Fault(error.message, file=name, severity=Severity.WARNING if optional else None)
    name = _TOKENIZERS[0][0]
    size = see.checkpoint.files.size(name) if see.checkpoint.has(name) else None
    if size is not None:
        # 20 MB at 27B: its ends tell a cut one.
        first, last = see.checkpoint.files.read(Range(name, 0, 16)), b""
        if size:
            last = see.checkpoint.files.read(Range(name, max(0, size - 16), 16))
        if not first.lstrip().startswith(b"{") or not last.rstrip().endswith(b"}"):
            yield Fault(f"{name} ({size} bytes) is cut, or not JSON", file=name)


@rule(
    "processor-missing",
    scope="serving",
    explanation="The multimodal class builds its processor at start, unless it is to serve text alone.",
    remedy=_COPY,
)
def processor(see: Inspection) -> Iterator[Fault]:
    if not serves_images(see):
        return
    if not any(see.checkpoint.has(name) for name in _PROCESSORS):
        yield Fault(
            "there is no preprocessor_config.json, which the multimodal class needs", file=_PROCESSORS[0]
        )
    elif not see.checkpoint.has(_PROCESSORS[1]) and not see.checkpoint.has(_VIDEO):
        yield Fault(
            f"there is no {_VIDEO}: videos get the size limits of images",
            file=_VIDEO,
            severity=Severity.WARNING,
        )


def serves_images(see: Inspection) -> bool:
    """Whether there is a vision tower to serve with; without one the serve line asks for text alone."""
    return any(spec.name in see.checkpoint.loaded for spec in see.layout.vision)


@rule(
    "chat-template-missing",
    scope="serving",
    severity=Severity.WARNING,
    explanation="Without a template /v1/chat/completions answers with an error; /v1/completions works.",
    remedy="Copy chat_template.jinja from the original checkpoint, or pass --chat-template FILE.",
)
def chat_template(see: Inspection) -> Iterator[Fault]:
    try:
        template = chat.chat_template(see.checkpoint)
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
    """What Jinja says of a template, where Jinja is installed; loading it costs 30 ms, so only where brackets
    or blocks do not pair up, as in every cut or mangled template."""
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
    return None


@rule(
    "parser-unknown",
    scope="serving",
    severity=Severity.WARNING,
    explanation="vLLM ends on a --tool-call-parser or --reasoning-parser it does not have.",
    remedy="Use a newer vLLM, or serve without tool calls.",
)
def parsers(see: Inspection) -> Iterator[Fault]:
    template = chat.readable_template(see.checkpoint)
    for name, table, flag in (
        (chat.tool_call_parser(template), vllm_versions.TOOL_PARSERS, "--tool-call-parser"),
        (chat.reasoning_parser(template), vllm_versions.REASONING_PARSERS, "--reasoning-parser"),
    ):
        since = table.get(name) if name else None
        if name and since and see.vllm is not None and not see.vllm.at_least(since):
            yield Fault(f"{flag} {name} is known from vLLM {since} on; this is {see.vllm}")


@rule(
    "vision-missing",
    scope="serving",
    explanation="The multimodal class keeps uninitialised memory for a tower that is not there.",
    remedy="Take the vision tensors from the original, or serve text alone.",
)
def vision(see: Inspection) -> Iterator[Fault]:
    absent = [spec.name for spec in see.layout.vision if spec.name not in see.checkpoint.loaded]
    if not absent:
        return
    count = f"{len(absent)} of {len(see.layout.vision)} vision tensors"
    if len(absent) == len(see.layout.vision):
        if see.checkpoint.config.get("language_model_only") is True:
            return  # made so on purpose; the serve line asks for text alone
        yield Fault(
            f"{count} are absent though config.json has a vision_config: it serves text alone",
            severity=Severity.WARNING,
            remedy='Serve it with --limit-mm-per-prompt \'{"image": 0, "video": 0}\'.',
        )
    else:
        yield Fault(f"{count} are absent: {some(absent)}", tensor=absent[0])


def _packed_beside(see: Inspection, module: str) -> bool:
    """Whether a module with a plain weight has a packed one too: vLLM builds a place for one of them."""
    return any(f"{module}.{suffix}" in see.checkpoint.loaded for suffix in ("qweight", "weight_packed"))


@rule(
    "tensor-unknown",
    scope="serving",
    explanation=f"From {vllm_versions.STRICT_NAMES} on vLLM ends on a tensor that no module of the model takes.",
    remedy="Take config.json and weights from the same checkpoint.",
)
def unknown(see: Inspection) -> Iterator[Fault]:
    known = {spec.name for spec in see.layout.dense}
    modules = {name.removesuffix(".weight") for name in known if name.endswith(".weight")}
    suffixes = {suffix for form in formats.FORMATS for suffix in form.suffixes}
    strange: list[str] = []
    for name in see.checkpoint.loaded:
        module, _, suffix = name.rpartition(".")
        if suffix == "weight" and f"{module}.weight" in known and _packed_beside(see, module):
            strange.append(name)
            continue
        if name in known or (module in modules and suffix in suffixes) or name.endswith(_KNOWN_SUFFIXES):
            continue
        if name.startswith("mtp.") and not (see.mtp and see.layout.mtp):
            continue  # the target skips these, and there is no draft
        strange.append(name)
    if strange:
        info = see.checkpoint.loaded[strange[0]]
        biases = all(name.endswith(".bias") for name in strange)
        lenient = see.vllm is not None and not see.vllm.at_least(vllm_versions.STRICT_NAMES)
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
