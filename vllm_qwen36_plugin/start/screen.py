"""Show a refusal to the user of `vllm serve` without 40 lines of vLLM's and pydantic's frames around it."""

from __future__ import annotations

import sys
from pathlib import Path
from types import TracebackType

from vllm_qwen36_plugin.errors import OptionsError, RefusalError
from vllm_qwen36_plugin.options import PluginOptions


def show_refusal_alone() -> None:
    """From now on an uncaught :class:`RefusalError` is printed as its text; the exit status stays 1.

    Only in vLLM's own commands: a program that uses vLLM as a library keeps its traceback. Idempotent.
    """
    if _is_vllm_command() and not isinstance(sys.excepthook, _Hook):
        sys.excepthook = _Hook()


def options_of(vllm_config: object) -> PluginOptions:
    """The user's options for the plugin.

    Raises:
        OptionsError: ``additional_config["qwen36"]`` holds something unknown; its text is all that is shown.
    """
    try:
        return PluginOptions.of(getattr(vllm_config, "additional_config", None))
    except OptionsError:
        show_refusal_alone()
        raise


def refusal_in(error: BaseException | None) -> RefusalError | None:
    """The refusal that ``error`` is, wraps (pydantic's ``ctx``), or was raised from."""
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
        found = [detail.get("ctx", {}).get("error") for detail in details]
    except Exception:  # noqa: BLE001 - any error may come by here, and any may have an `errors`
        return []
    return [item for item in found if isinstance(item, BaseException)]


class _Hook:
    def __init__(self) -> None:
        self._previous = sys.excepthook

    def __call__(
        self, kind: type[BaseException], error: BaseException, traceback: TracebackType | None
    ) -> None:
        found = refusal_in(error)
        if found is None:
            self._previous(kind, error, traceback)
        else:
            sys.stderr.write(f"\nvllm-qwen36-plugin: {found}\n\n")


def _is_vllm_command() -> bool:
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    module = getattr(spec, "name", "") or ""
    program = Path(sys.argv[0]).stem if sys.argv else ""
    return program == "vllm" or module.split(".")[0] == "vllm"
