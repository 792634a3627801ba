"""Rules: does vLLM build from ``config.json`` the model whose tensors are there?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from gptq_hybrid.doctor import vllm_releases
from gptq_hybrid.doctor.findings import Fault, Inspection, Severity, rule

from .modules import text_only
from .samples import samples

HEAD = "lm_head.weight"
_FROM_ORIGINAL = "Take config.json from the original checkpoint, and add the quantization_config to it."
_MULTIMODAL, _TEXT_ONLY = "Qwen3_5ForConditionalGeneration", "Qwen3_5ForCausalLM"
# Architectures of other models that every vLLM with this family has: the likely ones, of about 390.
_OTHERS = frozenset(
    {
        "ChatGLMModel", "Cohere2ForCausalLM", "CohereForCausalLM", "DeepseekForCausalLM",
        "DeepseekV2ForCausalLM", "DeepseekV3ForCausalLM", "Ernie4_5ForCausalLM", "Exaone4ForCausalLM",
        "FalconForCausalLM", "Gemma2ForCausalLM", "Gemma3ForCausalLM", "Gemma3ForConditionalGeneration",
        "GemmaForCausalLM", "Glm4ForCausalLM", "GlmForCausalLM", "GPT2LMHeadModel", "GPTBigCodeForCausalLM",
        "GptOssForCausalLM", "GraniteForCausalLM", "InternLM2ForCausalLM", "InternVLChatModel",
        "Llama4ForConditionalGeneration", "LlamaForCausalLM", "LlavaForConditionalGeneration",
        "MiniCPMForCausalLM", "Mistral3ForConditionalGeneration", "MistralForCausalLM", "MixtralForCausalLM",
        "NemotronHForCausalLM", "OlmoForCausalLM", "OPTForCausalLM", "Phi3ForCausalLM", "PhiForCausalLM",
        "Qwen2ForCausalLM", "Qwen2MoeForCausalLM", "Qwen2VLForConditionalGeneration",
        "Qwen2_5_VLForConditionalGeneration", "Qwen3ForCausalLM", "Qwen3MoeForCausalLM",
        "Qwen3NextForCausalLM", "Qwen3VLForConditionalGeneration", "Qwen3VLMoeForConditionalGeneration",
        "Qwen3_5MoeForConditionalGeneration", "Starcoder2ForCausalLM",
    }
)  # fmt: skip
_ACTIVATION = "silu"
# `_ACTIVATION_REGISTRY` of vLLM 0.32.
_VISION_ACTIVATIONS = frozenset(
    {
        "gelu", "gelu_fast", "gelu_new", "gelu_pytorch_tanh", "relu", "relu2", "silu", "swish", "quick_gelu",
        "tanh", "sigmoid", "xielu",
    }
)  # fmt: skip
# What transformers finds in PyTorch by its name. vLLM takes a type of its own for those that no model has.
_DTYPES = frozenset(
    {
        "bfloat16", "float16", "half", "float32", "float", "float64", "double", "float8_e4m3fn", "float8_e5m2",
        "int8", "uint8", "int16", "short", "int32", "int", "int64", "long", "bool",
    }
)  # fmt: skip
_ROPE_TYPES = frozenset(
    {
        "default", "mrope", "linear", "ntk", "dynamic", "yarn", "longrope", "su", "llama3", "mllama4",
        "proportional", "openpangu", "bailing_mrope", "deepseek_yarn", "deepseek_llama_scaling",
    }
)  # fmt: skip
_Types = tuple[type, ...]
_INTEGER, _FLOAT, _BOOL, _TEXT, _NULL = (int,), (float,), (bool,), (str,), type(None)
# Fields of transformers' Qwen3_5TextConfig, Qwen3_5VisionConfig and Qwen3_5Config beside the dimensions.
_TEXT_TYPES: Mapping[str, _Types] = {
    "hidden_act": _TEXT,
    "max_position_embeddings": _INTEGER,
    "initializer_range": _FLOAT,
    "rms_norm_eps": _FLOAT,
    "use_cache": _BOOL,
    "tie_word_embeddings": _BOOL,
    "attention_bias": _BOOL,
    "attention_dropout": (int, float),
    "rope_parameters": (dict, _NULL),
    "pad_token_id": (int, _NULL),
    "bos_token_id": (int, _NULL),
    "eos_token_id": (int, list, _NULL),
}
_VISION_TYPES: Mapping[str, _Types] = {
    "hidden_act": _TEXT,
    "initializer_range": _FLOAT,
    "num_heads": _INTEGER,
}
_ROOT_TYPES: Mapping[str, _Types] = {
    "tie_word_embeddings": _BOOL,
    "image_token_id": _INTEGER,
    "video_token_id": _INTEGER,
    "vision_start_token_id": _INTEGER,
    "vision_end_token_id": _INTEGER,
}


@rule(
    "config-class",
    scope="serving",
    explanation="Each class reads its own sort of config; the multimodal one needs text_config and vision_config.",
    remedy=_FROM_ORIGINAL,
)
def model_class(inspection: Inspection) -> Iterator[Fault]:
    checkpoint = inspection.checkpoint
    declared, own = checkpoint.config.get("architectures"), inspection.family.architectures
    if not isinstance(declared, list) or not set(map(str, declared)) & set(own):
        return  # the rule config-architecture
    if not all(isinstance(name, str) for name in declared):
        yield Fault(f"`architectures` is {declared!r}; vLLM wants a list of names", file="config.json")
        return
    name = next(name for name in declared if name in own)
    before = declared[: declared.index(name)]
    if taken := next((other for other in before if other in _OTHERS), None):
        yield Fault(
            f"vLLM takes the first of `architectures` that it has: {taken}, not {name}", file="config.json"
        )
        return
    if before:
        yield Fault(
            f"`architectures` names {before[0]} first, which a vLLM that has it would take in place of {name}",
            file="config.json",
            severity=Severity.WARNING,
        )
    if own == (_MULTIMODAL, _TEXT_ONLY):
        yield from _unsuited(inspection, name)


def _unsuited(inspection: Inspection, name: str) -> Iterator[Fault]:
    """Yield what keeps the class ``name`` from reading this config, or from taking the tensors."""
    checkpoint = inspection.checkpoint
    model_type, nested = checkpoint.config.get("model_type"), checkpoint.multimodal
    towers = [tensor for tensor in checkpoint.loaded if tensor.startswith("model.visual.")]
    inner = checkpoint.text_config.get("model_type", "qwen3_5_text")
    if nested and inner != "qwen3_5_text":
        yield Fault(
            f"`text_config.model_type` is {inner!r}; vLLM builds layers for 'qwen3_5_text' alone",
            file="config.json",
        )
    elif nested and model_type == "qwen3_5_text":
        yield Fault(
            "model_type is qwen3_5_text, whose config has no text_config: vLLM reads no dimension from there",
            file="config.json",
        )
    elif not nested and model_type == "qwen3_5":
        yield Fault(
            "model_type is qwen3_5, but there is no text_config: vLLM builds a model of another size",
            file="config.json",
        )
    elif not nested and name == _MULTIMODAL:
        yield Fault(
            f"{name} reads a vision_config, and this config is of the text model alone", file="config.json"
        )
    elif nested and name == _TEXT_ONLY and towers:
        lenient = inspection.older_than(vllm_releases.STRICT_NAMES)
        yield Fault(
            f"{name} has no vision tower, and {len(towers)} tensors of one are there",
            tensor=towers[0],
            remedy=f"Name {_MULTIMODAL} in `architectures`, or leave the tower's tensors out.",
            severity=Severity.WARNING if lenient else None,
        )


@rule(
    "config-values",
    scope="serving",
    explanation="transformers checks the type of each field, and vLLM has one activation and a list of rope types.",
    remedy=_FROM_ORIGINAL,
)
def values(inspection: Inspection) -> Iterator[Fault]:
    checkpoint = inspection.checkpoint
    text, vision = checkpoint.text_config, checkpoint.config.get("vision_config")
    lenient = Severity.WARNING if inspection.older_than(vllm_releases.STRICT_CONFIG_SINCE) else None
    parts = [("text_config." if checkpoint.multimodal else "", text, _TEXT_TYPES)]
    if checkpoint.multimodal:
        parts.append(("", checkpoint.config, _ROOT_TYPES))
    if isinstance(vision, Mapping):
        parts.append(("vision_config.", vision, _VISION_TYPES))
    wrong = False
    for where, owner, types in parts:
        for key, expected in types.items():
            if key in owner and type(owner[key]) not in expected:
                wrong = True
                names = " or ".join("null" if t is _NULL else t.__name__ for t in expected)
                yield Fault(
                    f"`{where}{key}` is {owner[key]!r}; transformers takes nothing but {names}",
                    file="config.json",
                    severity=lenient,
                )
    if wrong:
        return
    if text.get("hidden_act", _ACTIVATION) != _ACTIVATION:
        yield Fault(
            f"`hidden_act` is {text['hidden_act']!r}; vLLM has {_ACTIVATION!r} alone", file="config.json"
        )
    vision = inspection.checkpoint.config.get("vision_config")
    act = vision.get("hidden_act") if isinstance(vision, Mapping) else None
    known = isinstance(act, str) and act in _VISION_ACTIVATIONS
    if act is not None and not known and not text_only(inspection):
        yield Fault(f"`vision_config.hidden_act` is {act!r}; vLLM has no such activation", file="config.json")
    for owner in (inspection.checkpoint.config, text):
        # The new name goes before the old one; the root's before the text config's.
        dtype = owner.get("dtype", owner.get("torch_dtype"))
        if dtype is not None and not (isinstance(dtype, str) and dtype in _DTYPES):
            yield Fault(f"`dtype` is {dtype!r}, which is no type that PyTorch has", file="config.json")
            break
    if not isinstance(gate := text.get("attn_output_gate", True), int):
        yield Fault(f"`attn_output_gate` is {gate!r}; vLLM adds it to 1", file="config.json")
    rope = _rope(text)
    for key in ("rope_theta", "partial_rotary_factor"):
        if key in rope and type(rope[key]) not in (int, float):
            yield Fault(
                f"`{key}` of the rotary embedding is {rope[key]!r}, which is no number", file="config.json"
            )
    kind = rope.get("rope_type", rope.get("type", "default"))
    if not isinstance(kind, str) or kind not in _ROPE_TYPES:
        yield Fault(f"rope type {kind!r} is not one that vLLM has", file="config.json")


def _rope(text: Mapping[str, Any]) -> Mapping[str, Any]:
    """The settings of the rotary embedding; ``rope_scaling``, the old key, goes before ``rope_parameters``."""
    rope = text.get("rope_scaling") or text.get("rope_parameters")
    return rope if isinstance(rope, Mapping) else {}


@rule(
    "embeddings-tied",
    scope="serving",
    explanation=(
        "vLLM ties the output head to the embedding if `tie_word_embeddings` of the text config says so. From "
        f"{vllm_releases.UNTIES_SINCE} on a head that is stored counts all the same where the root has it too."
    ),
    remedy="Set `tie_word_embeddings` in the text config, and at the root, to whether an lm_head is left out.",
)
def tied(inspection: Inspection) -> Iterator[Fault]:
    checkpoint = inspection.checkpoint
    said = bool(checkpoint.text_config.get("tie_word_embeddings", False))
    stored = [name for name in checkpoint.loaded if name.startswith("lm_head.")]
    if not said and not stored and checkpoint.config.get("tie_word_embeddings"):
        yield Fault(
            "config.json has `tie_word_embeddings` at its root alone; vLLM goes by text_config, and builds an "
            "lm_head that no file holds",
            tensor=HEAD,
            file="config.json",
        )
    elif inspection.layout.output_head is None and stored and not _same_as_embedding(inspection):
        yield Fault(
            "there is an lm_head, but the config ties the output head to the embedding: vLLM throws the stored "
            "one away",
            tensor=stored[0],
            file="config.json",
        )


def _same_as_embedding(inspection: Inspection) -> bool:
    """Whether the stored head is a copy of the embedding, as far as sampled."""
    loaded = inspection.checkpoint.loaded
    name = next((s.name for s in inspection.layout.plain if s.name.endswith("embed_tokens.weight")), "")
    head, embedding = loaded.get(HEAD), loaded.get(name)
    if head is None or embedding is None or (head.dtype, head.shape) != (embedding.dtype, embedding.shape):
        return False
    one, other = samples(inspection.checkpoint, [head, embedding])
    return one == other


CONFIG_RULES = (model_class, values, tied)
