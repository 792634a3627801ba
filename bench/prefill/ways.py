"""Which way the linears of a running engine go, proof that they went it, and what is timed of each way.

Prefill is not in a CUDA graph, and the way of a call is looked up when it runs: one start serves all comparisons.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from bench.engine import generate, kernels_between, prompts, turns
from bench.prefill.results import lengths
from bench.results import Json

if TYPE_CHECKING:
    from vllm_qwen36_plugin.prefill.dispatch import Linear

_ROUTES: dict[str, tuple[str, ...]] = {"stock": (), "exact": ("exact",), "fp8": ("fp8", "exact")}
Calls = dict[str, dict[str, int]]


class _Problems:
    """What was found wrong. Not raised: a start is too dear to throw its other figures away."""

    def __init__(self) -> None:
        self.problems: list[str] = []

    def add_problem(self, text: str) -> None:
        """Note it, and say it, once."""
        if text not in self.problems:
            self.problems.append(text)
            print(f"PROBLEM: {text}", flush=True)


class OneWay(_Problems):
    """A process without the plugin: there is nothing to set and nothing to count."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.names: tuple[str, ...] = (name,)
        self.usual = name

    @contextmanager
    def through(self, name: str, tokens: int | None = None) -> Iterator[Calls]:
        """Calls made inside go this way."""
        if name not in self.names:
            raise ValueError(f"there is no way {name!r} here, only {self.names[0]!r}")
        yield {}

    def taken(self, name: str, tokens: int) -> dict[str, str]:
        """The route of each shape for so many tokens."""
        return {}


class Ways(_Problems):
    """The ways of `vllm_qwen36_plugin.prefill`, from what start-up found: its routes, and from how many tokens on.

    Args:
        linears: entries of the dispatch table.
        layers: by shape key, how many layers call it in one pass.
    """

    def __init__(self, linears: Sequence[Linear], layers: Mapping[str, int]) -> None:
        super().__init__()
        if not linears:
            raise RuntimeError("the plugin serves no linear: see the warnings above for why prefill is off")
        missing = {linear.shape.key for linear in linears} ^ set(layers)
        if missing:
            raise RuntimeError(f"in the table or in the model, but not in both: {', '.join(sorted(missing))}")
        self._linears = [(linear, tuple(linear.routes), linear.starts) for linear in linears]
        self._layers = dict(layers)
        from vllm_qwen36_plugin.prefill import dispatch

        # The ways are compared, on this host as well: not the choice between them.
        dispatch.pace().eager_from = dispatch.pace().cut_from = 0
        dispatch.pace().watching = False
        served = {route for _, routes, _ in self._linears for route in routes}
        self.names = ("stock", *(route for route in ("exact", "fp8") if route in served))
        # What a user has who sets no option.
        self.usual = "exact" if "exact" in served else "stock"

    @contextmanager
    def through(self, name: str, tokens: int | None = None) -> Iterator[Calls]:
        """Calls made inside go this way; the dict is filled with those of each shape and route when it is left.

        With ``tokens``, exactly one pass of so many tokens is to be made; another route, or number of calls,
        is one of ``problems``.
        """
        self._set(name)
        before = {linear.shape.key: Counter(linear.served) for linear, _, _ in self._linears}
        calls: Calls = {}
        yield calls
        for linear, _, _ in self._linears:
            key = linear.shape.key
            calls[key] = dict(Counter(linear.served) - before[key])
        if tokens is not None:
            expected = {key: {route: self._layers[key]} for key, route in self.taken(name, tokens).items()}
            if calls != expected:
                self.add_problem(
                    f"{name} with {tokens} tokens should have made the calls {expected}, not {calls}"
                )

    def taken(self, name: str, tokens: int) -> dict[str, str]:
        """The route of each shape for so many tokens: a way may leave some to the stock kernel."""
        self._set(name)
        return {linear.shape.key: linear.route_for(tokens) or "stock" for linear, _, _ in self._linears}

    def _set(self, name: str) -> None:
        if name not in self.names:
            raise ValueError(f"there is no way {name!r} here, only {', '.join(self.names)}")
        for linear, routes, starts in self._linears:
            linear.routes = tuple(route for route in _ROUTES[name] if route in routes)
            linear.starts = starts


def layers_by_shape(model: Any) -> dict[str, int]:
    """How many layers of a loaded model the plugin's kernel serves, by shape key."""
    from vllm_qwen36_plugin.prefill.kernel import PrefillLinearKernel

    return dict(
        Counter(kernel.shape.key for kernel in kernels(model) if isinstance(kernel, PrefillLinearKernel))
    )


def kernels(model: Any) -> list[Any]:
    """The kernel of every packed linear."""
    each = [getattr(getattr(module, "quant_method", None), "kernel", None) for module in model.modules()]
    return [kernel for kernel in each if kernel is not None]


def kernel_names(model: Any) -> dict[str, int]:
    """How many linears run which kernel; the plugin's with the one it holds."""
    names = Counter[str]()
    for kernel in kernels(model):
        stock = getattr(kernel, "stock", None)
        names[type(kernel).__name__ + (f" ({type(stock).__name__})" if stock is not None else "")] += 1
    return dict(names)


AnyWays = OneWay | Ways


def first_tokens(llm: Any, ways: AnyWays, case: str, repeats: int, vocabulary: int) -> dict[str, list[float]]:
    """By way, milliseconds until all prompts of a case have one token; ways in turns, so that drift meets them all.

    A pass that did not go its way is one of ``ways.problems``.
    """
    batch, tokens = prompts(lengths(case), vocabulary), sum(lengths(case))
    by_way: dict[str, list[float]] = {way: [] for way in ways.names}
    for way in ways.names:
        with ways.through(way, tokens):
            generate(llm, batch, 1)
    for order in turns(ways.names, repeats):
        for way in order:
            with ways.through(way, tokens):
                seconds, _ = generate(llm, batch, 1)
            by_way[way].append(round(seconds * 1e3, 3))
    return by_way


def kernels_of_a_first_token(llm: Any, ways: AnyWays, case: str, vocabulary: int) -> dict[str, Json]:
    """By way, milliseconds of kernels until all prompts of a case have one token: in all, and of the longest.

    Empty without a GPU, where `kernels_between` would make no pass for ``ways`` to count.
    """
    import torch

    if not torch.cuda.is_available():
        return {}
    batch, tokens = prompts(lengths(case), vocabulary), sum(lengths(case))
    by_way = {}
    for way in ways.names:
        with ways.through(way, tokens):
            by_way[way] = kernels_between(lambda: None, lambda: generate(llm, batch, 1), 1)
    return by_way


def first_choice(llm: Any, ways: AnyWays, case: str, vocabulary: int) -> dict[str, Json]:
    """By way, the first token of a case's first prompt and its log-probability.

    Logits that are not finite, or all alike, are one of ``ways.problems``: they are not a model's.
    """
    from vllm import SamplingParams

    sampling = SamplingParams(temperature=0.0, max_tokens=1, ignore_eos=True, detokenize=False, logprobs=1)
    by_way = {}
    for way in ways.names:
        with ways.through(way):
            output = llm.generate(prompts(lengths(case), vocabulary)[:1], sampling, use_tqdm=False)[
                0
            ].outputs[0]
        token = output.token_ids[0]
        logprob = float(output.logprobs[0][token].logprob)
        if not math.isfinite(logprob) or abs(logprob + math.log(vocabulary)) < 1e-4:
            ways.add_problem(f"{way}: the logits are not finite, or all alike (log-probability {logprob})")
        by_way[way] = {"token": token, "logprob": round(logprob, 5) if math.isfinite(logprob) else None}
    return by_way
