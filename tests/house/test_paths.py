"""A path may be text: whoever types one into Python writes a string."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gptq_hybrid.evaluate import EvalRequest, TaskRequest
from gptq_hybrid.quantize import QuantizeRequest
from gptq_hybrid.sensitivity import ScanRequest

from .pages import ROOT

ROOMS = sorted(f"gptq_hybrid.{init.parent.name}" for init in (ROOT / "gptq_hybrid").glob("*/__init__.py"))


def public_functions(room: str) -> Iterator[tuple[str, Any]]:
    module = importlib.import_module(room)
    for name in getattr(module, "__all__", ()):
        value = getattr(module, name)
        if inspect.isfunction(value):
            yield f"{room}.{name}", value
        elif inspect.isclass(value):
            for member, function in vars(value).items():
                inner = getattr(function, "__func__", function)
                if not member.startswith("_") and inspect.isfunction(inner):
                    yield f"{room}.{name}.{member}", inner


@pytest.mark.parametrize("room", ROOMS)
def test_no_public_function_wants_a_path_object(room: str) -> None:
    wanting = {
        f"{name}({parameter.name})"
        for name, function in public_functions(room)
        if function.__module__.startswith("gptq_hybrid")
        for parameter in inspect.signature(function).parameters.values()
        if str(parameter.annotation) in ("Path", "Path | None", "Sequence[Path]")
    }
    assert wanting == set()


def test_requests_take_text() -> None:
    assert QuantizeRequest("a", "b").target == Path("b")  # type: ignore[arg-type]
    assert EvalRequest("a", ("b",), (), work="c").quantized == (Path("b"),)  # type: ignore[arg-type]
    assert TaskRequest("a", ("b",), (), work="c").work == Path("c")  # type: ignore[arg-type]
    assert ScanRequest("a", "b", ()).work == Path("b")  # type: ignore[arg-type]
