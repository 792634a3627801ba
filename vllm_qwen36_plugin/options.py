"""The plugin's own options: ``--additional-config '{"qwen36": {…}}'``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args, get_type_hints

from .errors import OptionsError

SECTION = "qwen36"
# No GPU has more memory.
_MOST_MIB = 1 << 20
_EXAMPLE = f'\'{{"{SECTION}": {{"mtp_check": "off"}}}}\''


@dataclass(frozen=True, slots=True)
class PluginOptions:
    """What a user can set. A ``Literal`` lists its valid values, the default first."""

    # The checks of the MTP head, before start and in the worker; the check of every g_idx.
    mtp_check: Literal["on", "off"] = "on"
    act_order_check: Literal["on", "off"] = "on"
    # How linears multiply many tokens. `auto` and `exact`: with the checkpoint's own numbers, wherever that was
    # measured faster. `a8`: with those and activations of 8 bits. `fp8`: in e4m3.
    prefill: Literal["auto", "exact", "a8", "fp8", "off"] = "auto"
    prefill_scratch_mib: int = 128
    prefill_profile: str | None = None
    # Weights that MTP drafts with: the plugin's choice, the checkpoint's own, e4m3, 4 or 8 bits as GPTQ.
    draft: Literal["auto", "bf16", "fp8", "w4", "w8"] = "auto"
    # How many tokens may be drafted, the likeliest of a list: 0 for all, None for the usual number if there is one.
    draft_vocab: int | None = None
    draft_vocab_file: str | None = None
    # `copy`: greedy steps are verified with drafts' copy of the output head, as far as that is certain.
    verify: Literal["off", "copy"] = "off"

    @classmethod
    def of(cls, additional_config: object) -> PluginOptions:
        """Read the options in vLLM's ``additional_config``; the defaults if it has no section of ours.

        Raises:
            OptionsError: an unknown key or value, or a section that is not an object.
        """
        if not isinstance(additional_config, Mapping) or SECTION not in additional_config:
            return cls()
        section = additional_config[SECTION]
        if not isinstance(section, Mapping):
            raise OptionsError(f'"{SECTION}" in --additional-config must be an object, e.g. {_EXAMPLE}')
        hints = get_type_hints(cls)
        names = [field.name for field in fields(cls)]
        for key, value in section.items():
            if key not in names:
                raise OptionsError(
                    f'unknown option "{SECTION}.{_cut(str(key))}" in --additional-config; '
                    f"there are: {', '.join(names)}"
                )
            valid, description = _judge(hints[key], value)
            if not valid:
                raise OptionsError(
                    f'"{SECTION}.{key}" in --additional-config must be {description}, not {_shown(value)}'
                )
        return cls(**section)


def _shown(value: object) -> str:
    """What the user gave, cut to what fits a message."""
    try:
        text = value if isinstance(value, str) else repr(value)
    except (RecursionError, ValueError):  # nested too deeply, or a number of more digits than Python writes
        return "what is given"
    return repr(_cut(text)) if isinstance(value, str) else _cut(text)


def _cut(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:79]}…"


def _judge(hint: Any, value: object) -> tuple[bool, str]:
    """Return whether a value fits a field's type, and a description of those that do."""
    choices = get_args(hint)
    number = value if isinstance(value, int) and not isinstance(value, bool) else -1
    if hint is int:
        return 0 < number <= _MOST_MIB, f"a whole number from 1 to {_MOST_MIB}"
    if int in choices:
        return value is None or number >= 0, "a whole number, 0 or more"
    if type(None) in choices:
        return value is None or (isinstance(value, str) and value != ""), "the path of a file"
    return value in choices, " or ".join(f'"{choice}"' for choice in choices)
