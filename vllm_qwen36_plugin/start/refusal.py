"""A refusal to start, as the user of `vllm serve` reads it: one message, without 40 lines of frames around it."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

from gptq_hybrid.common.text import printable
from vllm_qwen36_plugin.errors import OptionsError, RefusalError
from vllm_qwen36_plugin.options import PluginOptions

_MOST = 5


def plugin_options(vllm_config: object) -> PluginOptions:
    """Read the user's options for the plugin from a ``VllmConfig``.

    Raises:
        OptionsError: ``additional_config["qwen36"]`` holds something unknown; only its text will be shown.
    """
    try:
        return PluginOptions.of(getattr(vllm_config, "additional_config", None))
    except OptionsError:
        show_refusal_alone()
        raise


def refusal_text(headline: str, problems: Iterable[tuple[str, str]], closing: Iterable[str]) -> str:
    """Compose a refusal: a headline, at most 11 lines of problems, closing lines.

    Args:
        problems: pairs of what is wrong and what to do about it. Advice that several share is given once, last.
    """
    problems = list(problems)
    shown = problems[:_MOST]
    lines = []
    for number, (wrong, remedy) in enumerate(shown):
        lines.append(f"  * {printable(wrong, lines=False)}")
        following = [later for _, later in shown[number + 1 :]]
        if remedy and remedy not in following:
            lines.append(f"    -> {printable(remedy, lines=False)}")
    if len(problems) > _MOST:
        lines.append(f"  * and {len(problems) - _MOST} more")
    return "\n".join([headline, "", *lines, "", *closing])


def show_refusal_alone() -> None:
    """From now on print an uncaught :class:`RefusalError` as its text; the exit status stays 1. Idempotent.

    Only in vLLM's own commands: a program that uses vLLM as a library keeps its traceback.
    """
    if _is_vllm_command() and not isinstance(sys.excepthook, _Hook):
        sys.excepthook = _Hook()


def refusal_in(error: BaseException | None) -> RefusalError | None:
    """Find the refusal that ``error`` is, wraps (pydantic's ``ctx``), or was raised from."""
    seen: set[int] = set()
    queue = [error]
    while queue:
        error = queue.pop(0)
        if isinstance(error, RefusalError):
            return error
        if error is None or id(error) in seen:
            continue
        seen.add(id(error))
        queue += [error.__cause__, error.__context__, *_wrapped_by_pydantic(error)]
    return None


def _wrapped_by_pydantic(error: BaseException) -> list[BaseException]:
    try:
        details = error.errors(include_url=False, include_input=False)  # type: ignore[attr-defined]
        causes = [detail.get("ctx", {}).get("error") for detail in details]
    except Exception:  # noqa: BLE001 - any error may come by here, and any may have an `errors`
        return []
    return [cause for cause in causes if isinstance(cause, BaseException)]


class _Hook:
    def __init__(self) -> None:
        self._previous = sys.excepthook

    def __call__(
        self, kind: type[BaseException], error: BaseException, traceback: TracebackType | None
    ) -> None:
        refusal = refusal_in(error)
        if refusal is None:
            self._previous(kind, error, traceback)
        else:
            sys.stderr.write(f"\nvllm-qwen36-plugin: {refusal}\n\n")


def _is_vllm_command() -> bool:
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    module = getattr(spec, "name", "") or ""
    program = Path(sys.argv[0]).stem if sys.argv else ""
    return program == "vllm" or module.split(".")[0] == "vllm"
