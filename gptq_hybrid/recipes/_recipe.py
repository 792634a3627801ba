"""Read and check recipe files."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from gptq_hybrid.common.errors import HybridError
from gptq_hybrid.common.small_files import read_small_file

from .packaging import Packaging
from .tuning import TuneSettings

# Least divergence of the W4 recipes in bench/quality, over four calibration seeds.
DEFAULT_RECIPE = "static-mse"
# Keyword arguments of QuantizeConfig that mean something for this family and format.
_SETTINGS = (
    "bits", "group_size", "sym", "desc_act", "static_groups", "act_group_aware", "damp_percent",
    "damp_auto_increment", "mse", "true_sequential", "fallback", "gptaq", "dynamic",
)  # fmt: skip
_REQUIRED = ("bits", "group_size", "sym", "desc_act")
# What a rule of `dynamic` may change; act order is one setting for all, as it is for vLLM.
_OVERRIDES = ("bits", "group_size", "damp_percent", "mse")
_GPTAQ: dict[str, tuple[object, ...]] = {"device": ("cpu", "auto")}
# What vLLM's GPTQ kernels load, and what gptqmodel writes for them.
_VALUES: dict[str, tuple[object, ...]] = {"bits": (4, 8), "group_size": (-1, 32, 64, 128), "sym": (True,)}
_SECTIONS: dict[str, dict[str, tuple[object, ...]]] = {
    "lm_head": {"bits": (8, 16)},
    "mtp": {"bits": (4, 8, 16)},
    "checkpoint": {"text_only": (True, False)},
}
# Of the table [tune]: the kind of each value, and the least.
_TUNE: dict[str, tuple[type, int]] = {
    "steps": (int, 0), "align_tokens": (int, 0), "tokens": (int, 16), "documents": (int, 20),
    "scale_rate": (float, 0), "norm_rate": (float, 0),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a recipe file says.

    Attributes:
        name: without ``.toml``.
        description: one sentence, for people.
        settings: keyword arguments of gptqmodel's ``QuantizeConfig``. ``gptaq``, where set, is a table of
            ``alpha`` and ``device`` (of the unquantized model's inputs).
        packaging: what the writer does.
        tune: how codes are rounded again, and scales and norms tuned, afterwards; None if they are not.
    """

    name: str
    description: str
    settings: dict[str, Any]
    packaging: Packaging = field(default_factory=Packaging)
    tune: TuneSettings | None = None

    def quantize_config(self, **overrides: Any) -> Any:
        """Return gptqmodel's ``QuantizeConfig`` for this recipe; ``overrides`` win.

        Raises:
            HybridError: the recipe asks for GPTAQ, and this gptqmodel has none.
        """
        from gptqmodel import QuantizeConfig

        settings = {**self.settings, **overrides}
        if isinstance(settings.get("gptaq"), dict):
            from gptq_hybrid.upstream import gptaq_config

            # gptqmodel's own default would keep them on the GPU: 96 GiB at the 27B.
            settings["gptaq"] = gptaq_config({"device": "cpu", **settings["gptaq"]})
        return QuantizeConfig(**settings)


def recipe_names() -> list[str]:
    """Return the names of the recipes that come with this package."""
    here = files(__package__)
    return sorted(p.name.removesuffix(".toml") for p in here.iterdir() if p.name.endswith(".toml"))


def load_recipe(name: str | Path) -> Recipe:
    """Load the recipe called ``name``, or the one in the ``.toml`` file at the path ``name``.

    Raises:
        HybridError: there is none, or the file holds something that no recipe has; the message names it.
    """
    text = str(name)
    if isinstance(name, str) and name in recipe_names():
        return _parse((files(__package__) / f"{name}.toml").read_text(encoding="utf-8"), f"{name}.toml", name)
    if not text.endswith(".toml"):
        raise HybridError(
            f"no recipe is called {text!r}",
            remedy="Recipes: " + ", ".join(recipe_names()) + "; or give the path of a .toml file.",
        )
    path = Path(name)
    try:
        content = read_small_file(path).decode("utf-8")
    except (HybridError, UnicodeDecodeError) as error:
        raise HybridError(f"{path} cannot be read: {error}", remedy="Give the path of a recipe.") from error
    return _parse(content, text, path.stem)


def _parse(content: str, where: str, name: str) -> Recipe:
    try:
        data = tomllib.loads(content)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise HybridError(f"{where} is not TOML: {error}", remedy="Correct the file.") from error
    _refuse_unknown(where, "", data, ("description", "quantize_config", *_SECTIONS, "tune"))
    description = data.get("description")
    if not isinstance(description, str):
        raise HybridError(f"{where}: `description` must be a sentence", remedy="Say what the recipe is for.")
    settings = _table(where, data, "quantize_config")
    _refuse_unknown(where, "quantize_config.", settings, _SETTINGS)
    for key in _REQUIRED:
        if key not in settings:
            raise HybridError(f"{where}: quantize_config lacks `{key}`", remedy="Add it.")
    _refuse_values(where, "quantize_config.", settings, _VALUES)
    sections: dict[str, Any] = {}
    for section, keys in _SECTIONS.items():
        table = _table(where, data, section)
        _refuse_unknown(where, f"{section}.", table, tuple(keys))
        _refuse_values(where, f"{section}.", table, keys)
        sections[section] = table
    packaging = Packaging(
        lm_head_bits=sections["lm_head"].get("bits", 16),
        mtp_bits=sections["mtp"].get("bits", 16),
        text_only=sections["checkpoint"].get("text_only", False),
    )
    _refuse_gptaq(where, settings)
    _refuse_dynamic(where, settings, packaging)
    return Recipe(name, description, settings, packaging, _tune(where, data, settings))


def _tune(where: str, data: Mapping[str, Any], settings: Mapping[str, Any]) -> TuneSettings | None:
    """Read the table ``[tune]``; an empty one stands for the defaults."""
    if "tune" not in data:
        return None
    table = _table(where, data, "tune")
    _refuse_unknown(where, "tune.", table, tuple(_TUNE))
    for key, value in table.items():
        kind, least = _TUNE[key]
        number = isinstance(value, int) or (kind is float and isinstance(value, float))
        # NaN is not at least anything.
        if isinstance(value, bool) or not number or not value >= least or value == float("inf"):
            raise HybridError(
                f"{where}: `tune.{key}` is {value!r}",
                remedy=f"It must be {'a number' if kind is float else 'a whole number'} from {least} on.",
            )
    if settings["desc_act"] and not settings.get("static_groups"):
        raise HybridError(
            f"{where}: groups in act order cannot be tuned",
            remedy="Set static_groups = true, as static-mse has.",
        )
    tune = TuneSettings(**table)
    if not tune.steps and not tune.align_tokens:
        raise HybridError(
            f"{where}: [tune] has neither `steps` nor `align_tokens`",
            remedy="Set one of them above 0, or leave [tune] out.",
        )
    return tune


def _table(where: str, data: Mapping[str, Any], key: str) -> dict[str, Any]:
    table = data.get(key, {})
    if not isinstance(table, dict):
        raise HybridError(f"{where}: `{key}` must be a table", remedy=f"Write [{key}] and its keys below.")
    return table


def _refuse_unknown(where: str, prefix: str, table: Mapping[str, Any], keys: tuple[str, ...]) -> None:
    unknown = [f"`{prefix}{key}`" for key in table if key not in keys]
    if unknown:
        raise HybridError(
            f"{where}: {', '.join(unknown)} {'is' if len(unknown) == 1 else 'are'} not known",
            remedy=f"Keys: {', '.join(prefix + key for key in keys)}.",
        )


def _refuse_values(
    where: str, prefix: str, table: Mapping[str, Any], allowed: Mapping[str, tuple[object, ...]]
) -> None:
    for key, values in allowed.items():
        # True == 1 in Python, and a recipe that says `bits = true` is wrong all the same.
        if key in table and not any(
            table[key] is v or (type(table[key]) is type(v) and table[key] == v) for v in values
        ):
            choices = ", ".join(str(value).lower() for value in values)
            raise HybridError(
                f"{where}: `{prefix}{key}` is {table[key]!r}",
                remedy=f"It must be one of: {choices}." if len(values) > 1 else f"It must be {choices}.",
            )


def _refuse_gptaq(where: str, settings: Mapping[str, Any]) -> None:
    gptaq = settings.get("gptaq")
    if gptaq is None:
        return
    if not isinstance(gptaq, dict):
        raise HybridError(
            f"{where}: `quantize_config.gptaq` must be a table", remedy="Such as gptaq = { alpha = 0.25 }."
        )
    _refuse_unknown(where, "quantize_config.gptaq.", gptaq, ("alpha", *_GPTAQ))
    _refuse_values(where, "quantize_config.gptaq.", gptaq, _GPTAQ)
    alpha = gptaq.get("alpha")
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 < alpha <= 1:
        raise HybridError(
            f"{where}: `quantize_config.gptaq.alpha` is {alpha!r}",
            remedy="It must be above 0 and at most 1; 0.25 was measured.",
        )
    if settings.get("act_group_aware"):
        raise HybridError(
            f"{where}: GPTAQ would ignore `act_group_aware`",
            remedy="Set desc_act and static_groups instead, as in static-mse-gptaq.toml.",
        )


def _refuse_dynamic(where: str, settings: Mapping[str, Any], packaging: Packaging) -> None:
    dynamic = settings.get("dynamic", {})
    if not isinstance(dynamic, dict):
        raise HybridError(
            f"{where}: `quantize_config.dynamic` must be a table of rules", remedy="See careful.toml."
        )
    for pattern, overrides in dynamic.items():
        try:
            re.compile(pattern.removeprefix("-:").removeprefix("+:"))
        except re.error as error:
            raise HybridError(f"{where}: {pattern!r} is not a regular expression: {error}") from error
        if not isinstance(overrides, dict):
            raise HybridError(
                f"{where}: the rule {pattern!r} must be a table", remedy="Such as { bits = 8 }."
            )
        _refuse_unknown(where, "", overrides, _OVERRIDES)
        _refuse_values(where, "", overrides, _VALUES)
        if "mtp" in pattern:
            raise HybridError(
                f"{where}: the rule {pattern!r} is about the MTP head, which gptqmodel does not quantize",
                remedy=f"Set bits in [mtp] instead; they are {packaging.mtp_bits} here.",
            )
