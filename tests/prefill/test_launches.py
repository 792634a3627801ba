"""How `expand` launches its kernel: past Triton's look-up, but for what another kernel is compiled for."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from vllm_qwen36_plugin.prefill import expand  # noqa: E402

K, N = 512, 256


class Compiled:
    """What a launch of Triton's returns. ``run`` takes what Triton's does (3.0 to 3.7)."""

    function = 1
    packed_metadata = (4, 1, 0)

    def __init__(self) -> None:
        self.launches: list[tuple[Any, ...]] = []

    def run(self, x: int, y: int, z: int, stream: Any, function: Any, metadata: Any, *rest: Any) -> None:
        assert (stream, function, metadata) == (("stream", None), self.function, self.packed_metadata)
        launch, enter, leave, *arguments = rest
        assert (launch, enter, leave) == (None, None, None)
        self.launches.append(((x, y, z), *arguments))


class Triton:
    """Takes the kernel's place: every look-up, and what it compiled."""

    def __init__(self) -> None:
        self.launches: list[tuple[Any, ...]] = []
        self.compiled: list[Compiled] = []
        self.options: list[dict[str, Any]] = []

    def __getitem__(self, grid: Any) -> Any:
        def launch(*arguments: Any, **options: Any) -> Compiled:
            self.launches.append((grid, *arguments))
            self.options.append(options)
            self.compiled.append(Compiled())
            return self.compiled[-1]

        return launch


def stand_in(monkeypatch: pytest.MonkeyPatch, module: Any, kernel: str) -> Triton:
    """For a module's kernel, with none launched yet."""
    triton = Triton()
    monkeypatch.setattr(module, kernel, triton)
    active = SimpleNamespace(get_current_stream=lambda device: ("stream", device))
    monkeypatch.setattr(module.triton.runtime, "driver", SimpleNamespace(active=active))
    monkeypatch.setattr(module, "_launchers", {})
    return triton


@pytest.fixture
def triton(monkeypatch: pytest.MonkeyPatch) -> Triton:
    return stand_in(monkeypatch, expand, "_expand")


def launch(**changes: Any) -> tuple[Any, ...]:
    """One call with all its tensors; returns what the kernel must get, but for the tensors' order."""
    arguments: dict[str, Any] = {
        "k": K,
        "n": N,
        "columns": 128,
        "first": 64,
        "layout": "marlin",
        "bits": 4,
        "group_size": 128,
        "scales": torch.bfloat16,
        "out": torch.bfloat16,
        "inverse": False,
        "odd": False,
    } | changes
    k, n = arguments["k"], arguments["n"]
    groups = 1 if arguments["group_size"] == -1 else k // arguments["group_size"]
    words = torch.zeros(k * n * arguments["bits"] // 32 + 1, dtype=torch.int32)
    words = words[1:] if arguments["odd"] else words[:-1]
    scales = torch.ones(groups, n, dtype=arguments["scales"])
    out = torch.zeros(arguments["columns"], k, dtype=arguments["out"])
    inverse = torch.ones(n) if arguments["inverse"] else None
    expand.expand(
        words,
        scales,
        out,
        arguments["first"],
        layout=arguments["layout"],
        bits=arguments["bits"],
        group_size=arguments["group_size"],
        inverse=inverse,
    )
    return words, scales, words if inverse is None else inverse, out, k, n, arguments["first"]


def same_objects(objects: tuple[Any, ...], expected: tuple[Any, ...]) -> bool:
    return all(
        a is b if isinstance(b, torch.Tensor) else a == b for a, b in zip(objects, expected, strict=True)
    )


def addresses(arguments: tuple[Any, ...]) -> list[Any]:
    return [one.data_ptr() if isinstance(one, torch.Tensor) else one for one in arguments]


def test_a_second_launch_of_a_kind_goes_past_the_look_up_with_the_same_arguments(triton: Triton) -> None:
    first = launch()
    (looked_up,) = triton.launches
    again = launch(first=128, columns=64, n=320, k=256)
    assert len(triton.launches) == 1
    ((grid, *arguments),) = triton.compiled[0].launches
    assert same_objects(looked_up[1:8], first)
    assert arguments[:7] == addresses(again)
    assert arguments[7:] == list(looked_up[8:])
    runs = 512 // expand.BLOCK_K, 256 // expand.BLOCK_K
    assert (looked_up[0], grid) == ((runs[0], 2, 1), (runs[1], 1, 1))
    assert triton.options == [{"num_warps": 4}]


@pytest.mark.parametrize(
    "change",
    [
        {"layout": "machete"},
        {"bits": 8},
        {"group_size": 64},
        {"group_size": -1},
        {"scales": torch.float16},
        {"out": torch.float16},
        {"out": torch.float8_e4m3fn},
        {"inverse": True},
        {"odd": True},  # an address that 16 does not divide: Triton compiles other loads for it
    ],
    ids=str,
)
def test_whatever_another_kernel_is_compiled_for_is_looked_up(triton: Triton, change: dict[str, Any]) -> None:
    launch()
    launch(**change)
    assert len(triton.launches) == 2
    launch(**change)
    launch()
    assert len(triton.launches) == 2
    assert [len(compiled.launches) for compiled in triton.compiled] == [1, 1]


def test_a_group_of_all_of_k_is_one_kind_however_it_is_spelled(triton: Triton) -> None:
    launch(group_size=-1)
    launch(group_size=K)
    assert len(triton.launches) == 1
