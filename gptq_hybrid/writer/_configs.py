"""Write config.json, quantize_config.json and the small files beside them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from gptq_hybrid.checkpoint import Checkpoint, layout_for, read_json_object
from gptq_hybrid.checkpoint.files import LocalFiles
from gptq_hybrid.checkpoint.formats.gptq import settings
from gptq_hybrid.checkpoint.g_idx import is_natural
from gptq_hybrid.checkpoint.quantization import with_mtp_excluded
from gptq_hybrid.common.atomic import write_json_atomic
from gptq_hybrid.common.errors import HybridError
from gptq_hybrid.recipes import Packaging

# Copied from the source as they are. gptqmodel's rewritten versions are dropped: it appends "Fast" to
# tokenizer_class, injects fix_mistral_regex, and the like.
COMPANION_PATTERNS = (
    "tokenizer*", "vocab.*", "merges.txt", "special_tokens_map.json", "added_tokens.json", "chat_template*",
    "generation_config.json", "*processor_config.json", "preprocessor_config.json", "LICENSE*", "NOTICE*",
)  # fmt: skip
# vLLM looks up the target's head as `language_model.lm_head`, the draft's as `lm_head`. A rule for the head
# must not begin with "-:" and name mtp: from 0.27.1 on vLLM would then build the draft unquantized.
_LM_HEAD_RULE = r"+:^(?:language_model\.)?lm_head$"
_MTP_RULE = r"+:^mtp\."
_META_ABOUT_THIS_MACHINE = frozenset({"offload_to_disk", "offload_to_disk_path"})


def copy_companions(source: Path, folder: Path) -> None:
    """Replace tokenizer, processor, chat template and generation config by the source's own files."""
    for pattern in COMPANION_PATTERNS:
        for path in folder.glob(pattern):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
    for pattern in COMPANION_PATTERNS:
        for path in source.glob(pattern):
            if path.is_file():
                shutil.copyfile(path, folder / path.name)


def write_configs(source: Path, folder: Path, *, keep_mtp: bool, packaging: Packaging | None = None) -> None:
    """Write both configs: the source's own, plus what vLLM needs to know about the quantization.

    ``desc_act`` is written false only if every ``g_idx`` is proven in natural order; a permuted one keeps the flag.
    ``dynamic`` names an MTP head in BF16, and heads of other bits than the rest. ``language_model_only`` says that
    there is no vision tower.
    """
    packaging = packaging or Packaging()
    saved = read_json_object(folder / "quantize_config.json")
    quantization = dict(saved)
    quantization["meta"] = {
        key: value
        for key, value in (saved.get("meta") or {}).items()
        if value is not None and key not in _META_ABOUT_THIS_MACHINE
    }
    if isinstance(gptaq := quantization["meta"].get("gptaq"), dict):
        # `device` says where inputs were stored during the run.
        quantization["meta"]["gptaq"] = {key: value for key, value in gptaq.items() if key != "device"}
    config = read_json_object(source / "config.json")
    if not keep_mtp:
        _declare_no_mtp(config)
    if packaging.text_only and isinstance(config.get("vision_config"), dict):
        config["language_model_only"] = True
    if saved.get("desc_act") and _all_natural(folder, config, saved):
        quantization["desc_act"] = False
        # For people: vLLM reads the flag only to know how to load.
        quantization["meta"]["act_order"] = "static"
    quantization = _with_heads(quantization, packaging, keep_mtp=keep_mtp)
    config["quantization_config"] = quantization
    write_json_atomic(folder / "quantize_config.json", quantization)
    write_json_atomic(folder / "config.json", config)


def _with_heads(quantization: dict[str, Any], packaging: Packaging, *, keep_mtp: bool) -> dict[str, Any]:
    """Add ``lm_head`` and the rules of ``dynamic`` that the two heads need, ahead of rules for single modules."""
    base, rules = int(quantization["bits"]), dict(quantization.get("dynamic") or {})
    if packaging.lm_head_bits < 16:
        quantization["lm_head"] = True
        if packaging.lm_head_bits != base:
            rules = {_LM_HEAD_RULE: {"bits": packaging.lm_head_bits}, **rules}
    quantization.pop("dynamic", None)
    if packaging.mtp_bits < 16 and keep_mtp:
        if packaging.mtp_bits != base:
            rules = {_MTP_RULE: {"bits": packaging.mtp_bits}, **rules}
        return {**quantization, **({"dynamic": rules} if rules else {})}
    return with_mtp_excluded({**quantization, "dynamic": rules})


def _declare_no_mtp(config: dict[str, Any]) -> None:
    text = config.get("text_config")
    (text if isinstance(text, dict) else config)["mtp_num_hidden_layers"] = 0


def _all_natural(folder: Path, config: dict[str, Any], quantization: dict[str, Any]) -> bool:
    checkpoint = Checkpoint(LocalFiles(folder), config)
    orders = [
        (info, settings(quantization, linear.name)[1])
        for linear in layout_for(config).quantized
        if (info := checkpoint.loaded.get(f"{linear.name}.g_idx")) is not None
    ]
    return bool(orders) and all(
        is_natural(checkpoint.read_bytes(info), info.shape[0], size) for info, size in orders
    )


def refuse_machine_paths(folder: Path, paths: list[Path]) -> None:
    """Refuse a folder in which a text file names one of ``paths`` (source, target, working folders).

    Raises:
        HybridError: one does.
    """
    needles = {str(path.absolute()) for path in paths} | {str(path.resolve()) for path in paths}
    for file in sorted(folder.iterdir()):
        if file.suffix in {".json", ".csv", ".jinja", ".txt"} and file.stat().st_size < 1 << 20:
            text = file.read_text(encoding="utf-8", errors="replace")
            named = sorted(needle for needle in needles if len(needle) > 1 and needle in text)
            if named:
                raise HybridError(f"{file.name} names {named[0]}, a path of this machine")
