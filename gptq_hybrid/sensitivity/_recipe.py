"""Write a recipe file from a base recipe and a choice of bits."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

from gptq_hybrid.checkpoint import TensorLayout
from gptq_hybrid.common.atomic import write_text_atomic
from gptq_hybrid.common.errors import HybridError
from gptq_hybrid.recipes import Recipe, dynamic_rules, load_recipe
from gptq_hybrid.recipes.packaging import Packaging

from ._budget import DENSE, Choice, recipe_bits


def refuse_base(base: Recipe) -> None:
    """Make sure that rules of ``base`` set only bits, because its rules are replaced.

    Raises:
        HybridError: a rule sets more; the message names it.
    """
    for pattern, overrides in base.settings.get("dynamic", {}).items():
        if set(overrides) - {"bits"}:
            raise HybridError(
                f"recipe {base.name!r} has a rule on more than bits: {pattern}",
                remedy="Give another --base, such as static.",
            )


def write_recipe(path: str | Path, base: Recipe, choice: Choice, layout: TensorLayout) -> Recipe:
    """Write ``base`` with the bits of ``choice`` as a recipe file, and read it back.

    Returns:
        What :func:`load_recipe` reads: every linear of ``layout`` gets the bits chosen.

    Raises:
        HybridError: a rule of ``base`` sets more than bits.
    """
    path = Path(path)
    refuse_base(base)
    default = int(base.settings["bits"])
    rules = dynamic_rules(layout, choice.bits, bits=default)
    text = _toml(base, choice, rules)
    path.parent.mkdir(parents=True, exist_ok=True)
    trial = path.with_name(f".{path.stem}.{uuid4().hex[:8]}.toml")
    try:
        trial.write_text(text, encoding="utf-8")
        read = load_recipe(trial)
    finally:
        trial.unlink(missing_ok=True)
    wrong = [name for name, bits in choice.bits.items() if recipe_bits(read.settings, name) != bits]
    assert not wrong, f"rules give {wrong[0]} other bits than chosen"
    write_text_atomic(path, text)
    return load_recipe(path)


def _toml(base: Recipe, choice: Choice, rules: Mapping[str, Mapping[str, Any]]) -> str:
    counts: dict[str, int] = {}
    for bits in choice.raised.values():
        precision = "BF16" if bits == DENSE else f"{bits} bit"
        counts[precision] = counts.get(precision, 0) + 1
    raised = " and ".join(f"{count} modules in {precision}" for precision, count in sorted(counts.items()))
    raised = raised or "no module with more bits"
    lines = [
        f'description = "`{base.name}`, with {raised}, by measured KL divergence per byte."',
        "",
        "# Made by qwen36 sensitivity. Modules that vLLM loads as one count as one.",
        f"# Budget {choice.budget:,} bytes more than `{base.name}`; used {choice.extra_bytes:,}.",
        f"# Sum of what each module costs by itself, nats per token: {choice.kld_before:.6g} before, "
        f"{choice.kld_after:.6g} after.",
        "# That costs add up is an assumption; check with qwen36 eval.",
        "",
        "[quantize_config]",
    ]
    lines += [f"{key} = {_value(value)}" for key, value in base.settings.items() if key != "dynamic"]
    if rules:
        lines += ["", "[quantize_config.dynamic]"]
        # Literal strings, because patterns are full of backslashes.
        lines += [f"'{pattern}' = {_value(rule)}" for pattern, rule in rules.items()]
    plain = Packaging()
    for section, key, value, usual in (
        ("lm_head", "bits", base.packaging.lm_head_bits, plain.lm_head_bits),
        ("mtp", "bits", base.packaging.mtp_bits, plain.mtp_bits),
        ("checkpoint", "text_only", base.packaging.text_only, plain.text_only),
    ):
        if value != usual:
            lines += ["", f"[{section}]", f"{key} = {_value(value)}"]
    return "\n".join(lines) + "\n"


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        # A JSON string is a TOML basic string, except for DEL, which no setting holds.
        return json.dumps(value)
    if isinstance(value, Mapping):
        inner = ", ".join(f"{key} = {_value(item)}" for key, item in value.items())
        return "{ " + inner + " }" if inner else "{}"
    raise HybridError(f"a recipe's setting cannot be written: {value!r}", remedy="Give another --base.")
