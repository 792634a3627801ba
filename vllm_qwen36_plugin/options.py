"""The plugin's own options: ``--additional-config '{"qwen36": {…}}'``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args, get_type_hints

from .errors import OptionsError

SECTION = "qwen36"


@dataclass(frozen=True, slots=True)
class PluginOptions:
    """What a user can set. A ``Literal`` lists its valid values, the default first."""

    mtp_check: Literal["on", "off"] = "on"
    act_order_check: Literal["on", "off"] = "on"
    # Linears for many rows: the checkpoint's numbers, wherever measured faster; the same, asked for by name;
    # in 8 bits.
    prefill: Literal["auto", "exact", "fp8", "off"] = "auto"
    prefill_scratch_mib: int = 128
    prefill_profile: str | None = None
    # Weights that MTP drafts with: the plugin's choice; the checkpoint's own; e4m3; 4 or 8 bits as GPTQ.
    draft: Literal["auto", "bf16", "fp8", "w4", "w8"] = "auto"
    # Tokens that may be drafted, the likeliest of a list; 0 for all; None for the usual number if there is a list.
    draft_vocab: int | None = None
    draft_vocab_file: str | None = None

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
        hints = get_type_hints(cls)
        names = [field.name for field in fields(cls)]
        for key, value in section.items():
            if key not in names:
                raise OptionsError(
                    f'unknown option "{SECTION}.{key}" in --additional-config; there are: {", ".join(names)}'
                )
            wanted = _unless_valid(hints[key], value)
            if wanted:
                raise OptionsError(
                    f'"{SECTION}.{key}" in --additional-config must be {wanted}, not {value!r}'
                )
        return cls(**section)


def _unless_valid(hint: Any, value: object) -> str | None:
    """What a value must be, if it is not."""
    choices = get_args(hint)
    if hint is int:
        return None if _whole(value) and value != 0 else "a whole number above 0"
    if int in choices:
        return None if value is None or _whole(value) else "a whole number, 0 or more"
    if type(None) in choices:
        return None if value is None or (isinstance(value, str) and value) else "the path of a file"
    return None if value in choices else " or ".join(f'"{choice}"' for choice in choices)


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _example() -> str:
    return f'\'{{"{SECTION}": {{"mtp_check": "off"}}}}\''
