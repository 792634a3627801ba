"""Recipes: named quantization settings, one TOML file each."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from gptq_hybrid.checkpoint import HybridError

DEFAULT_RECIPE = "static"
__all__ = ["DEFAULT_RECIPE", "Recipe", "load_recipe", "recipe_names"]


@dataclass(frozen=True, slots=True)
class Recipe:
    """``settings`` are the keyword arguments of gptqmodel's ``QuantizeConfig``."""

    name: str
    description: str
    settings: dict[str, Any]

    def quantize_config(self, **overrides: Any) -> Any:
        """A gptqmodel ``QuantizeConfig`` of this recipe; ``overrides`` win."""
        from gptqmodel import QuantizeConfig

        return QuantizeConfig(**{**self.settings, **overrides})


def recipe_names() -> list[str]:
    return sorted(p.name.removesuffix(".toml") for p in files(__name__).iterdir() if p.name.endswith(".toml"))


def load_recipe(name: str) -> Recipe:
    """The recipe called ``name``.

    Raises:
        HybridError: there is none; the message lists those there are.
    """
    if name not in recipe_names():
        raise HybridError(
            f"no recipe is called {name!r}", remedy="Recipes: " + ", ".join(recipe_names()) + "."
        )
    data = tomllib.loads((files(__name__) / f"{name}.toml").read_text(encoding="utf-8"))
    return Recipe(name, data["description"], data["quantize_config"])
