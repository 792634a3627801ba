"""Recipes: named quantization settings, one TOML file each, and rules for single modules."""

from ._dynamic import dynamic_rules
from ._recipe import DEFAULT_RECIPE, Recipe, load_recipe, recipe_names
from .packaging import Packaging, refuse_impossible
from .tuning import TuneSettings, TuneSizes

__all__ = [
    "DEFAULT_RECIPE",
    "Packaging",
    "Recipe",
    "TuneSettings",
    "TuneSizes",
    "dynamic_rules",
    "load_recipe",
    "recipe_names",
    "refuse_impossible",
]
