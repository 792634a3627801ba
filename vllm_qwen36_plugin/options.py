"""The plugin's own options: ``--additional-config '{"qwen36": {…}}'``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args, get_type_hints

from .errors import OptionsError

SECTION = "qwen36"


@dataclass(frozen=True, slots=True)
class PluginOptions:
    """What a user can set. Every field is a ``Literal`` of its valid values, the default first."""

    mtp_check: Literal["on", "off"] = "on"
    act_order_check: Literal["on", "off"] = "on"

    @classmethod
    def of(cls, additional_config: object) -> PluginOptions:
        """Options in vLLM's ``additional_config``; the defaults where it has no section of ours.

        Raises:
            OptionsError: an unknown key or value, or a section that is not an object.
        """
        if not isinstance(additional_config, Mapping) or SECTION not in additional_config:
            return cls()
        section = additional_config[SECTION]
        if not isinstance(section, Mapping):
            raise OptionsError(f'"{SECTION}" in --additional-config must be an object, e.g. {_example()}')
        valid = _valid()
        for key, value in section.items():
            if key not in valid:
                raise OptionsError(
                    f'unknown option "{SECTION}.{key}" in --additional-config; there are: {", ".join(valid)}'
                )
            if value not in valid[key]:
                choices = " or ".join(f'"{choice}"' for choice in valid[key])
                raise OptionsError(
                    f'"{SECTION}.{key}" in --additional-config must be {choices}, not {value!r}'
                )
        return cls(**section)


def _valid() -> dict[str, tuple[Any, ...]]:
    hints = get_type_hints(PluginOptions)
    return {field.name: get_args(hints[field.name]) for field in fields(PluginOptions)}


def _example() -> str:
    return f'\'{{"{SECTION}": {{"mtp_check": "off"}}}}\''
