"""What is measured of a running engine: first tokens, decode steps, a load of requests."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

from bench.generate import generate
from bench.generate import prompts as short_prompts
from bench.gpu_time import step_kernels
from bench.prefill.engine_results import digest, first_differences, lengths
from bench.prefill.engine_ways import OneWay, Ways
from bench.results import Json

AnyWays = OneWay | Ways
Prompts = list[dict[str, list[int]]]


def prompts(case: str, vocabulary: int) -> Prompts:
    """Token ids of a case, different in each prompt."""
    return [
        {"prompt_token_ids": [(7919 * (row + 1) + 104729 * i) % (vocabulary - 8) for i in range(length)]}
        for row, length in enumerate(lengths(case))
    ]


def first_tokens(llm: Any, ways: AnyWays, case: str, repeats: int, vocabulary: int) -> dict[str, list[float]]:
    """By way, milliseconds until all prompts of a case have one token; ways in turns, so that drift meets them all.

    A pass that did not go its way is one of ``ways.problems``.
    """
    given, rows = prompts(case, vocabulary), sum(lengths(case))
    found: dict[str, list[float]] = {way: [] for way in ways.names}
    for way in ways.names:
        with ways.through(way, rows):
            generate(llm, given, 1)
    for round_ in range(repeats):
        turn = round_ % len(ways.names)
        for way in ways.names[turn:] + ways.names[:turn]:
            with ways.through(way, rows):
                seconds, _ = generate(llm, given, 1)
            found[way].append(round(seconds * 1e3, 3))
    return found


def steps(llm: Any, ways: AnyWays, batch: int, count: int, repeats: int, vocabulary: int) -> list[float]:
    """Milliseconds a decode step: the time for ``count`` + 1 tokens less the time for one, over ``count``."""
    given = short_prompts(batch, vocabulary)
    found = []
    with ways.through(ways.usual):
        generate(llm, given, 1 + count)
        for _ in range(repeats):
            one, _ = generate(llm, given, 1)
            all_, _ = generate(llm, given, 1 + count)
            found.append(round((all_ - one) / count * 1e3, 4))
    return found


def kernels_of_a_step(llm: Any, ways: AnyWays, batch: int, count: int, vocabulary: int) -> Json:
    """The same as the sum over its kernels: the host, which differs from process to process, has no part in it."""
    given = short_prompts(batch, vocabulary)
    with ways.through(ways.usual):
        return step_kernels(partial(generate, llm, given, 1), partial(generate, llm, given, 1 + count), count)


def kernels_of_a_first_token(llm: Any, ways: AnyWays, case: str, vocabulary: int) -> dict[str, Json]:
    """By way, milliseconds of kernels until all prompts of a case have one token: in all, and of the longest.

    Empty without a GPU, where `step_kernels` would make no pass for ``ways`` to count.
    """
    import torch

    if not torch.cuda.is_available():
        return {}
    given, rows = prompts(case, vocabulary), sum(lengths(case))
    found = {}
    for way in ways.names:
        with ways.through(way, rows):
            found[way] = step_kernels(lambda: None, lambda: generate(llm, given, 1), 1)
    return found


def first_choice(llm: Any, ways: AnyWays, case: str, vocabulary: int) -> dict[str, Json]:
    """By way, the first token of a case's first prompt and its log-probability.

    Logits that are not finite, or all alike, are one of ``ways.problems``: they are not a model's.
    """
    from vllm import SamplingParams

    sampling = SamplingParams(temperature=0.0, max_tokens=1, ignore_eos=True, detokenize=False, logprobs=1)
    found = {}
    for way in ways.names:
        with ways.through(way):
            output = llm.generate(prompts(case, vocabulary)[:1], sampling, use_tqdm=False)[0].outputs[0]
        token = output.token_ids[0]
        logprob = float(output.logprobs[0][token].logprob)
        if not math.isfinite(logprob) or abs(logprob + math.log(vocabulary)) < 1e-4:
            ways.add_problem(f"{way}: the logits are not finite, or all alike (log-probability {logprob})")
        found[way] = {"token": token, "logprob": round(logprob, 5) if math.isfinite(logprob) else None}
    return found


def requests(count: int, least: int, most: int, vocabulary: int, seed: int = 20) -> Prompts:
    """Prompts of mixed lengths, always the same."""
    draw = random.Random(seed)
    return [
        {"prompt_token_ids": [draw.randrange(vocabulary - 8) for _ in range(draw.randint(least, most))]}
        for _ in range(count)
    ]


def loads(llm: Any, ways: AnyWays, given: Prompts, new: int) -> Iterator[Json]:
    """Serve all requests once each way, and with several the first once more; yields what is known after each.

    Of each: seconds, a digest of the greedy tokens, calls by path, GPU memory before and after, and for each
    request how many tokens it shares with the first way's (None: all), and by how many nats the first way preferred
    its token to the next best where they part (next to nothing: a tie, which the order of a sum decides).
    """
    found: Json = {
        "requests": len(given),
        "prompt_tokens": sum(len(prompt["prompt_token_ids"]) for prompt in given),
        "new_tokens": new,
        "ways": {},
    }
    reference: list[list[int]] = []
    margins: list[list[float]] = []
    first = ways.names[0]
    again = [(f"{first} again", first)] if len(ways.names) > 1 else []
    for label, way in [*((name, name) for name in ways.names), *again]:
        # Else what one way has computed would be the next one's.
        llm.reset_prefix_cache()
        before = gpu_memory()
        with ways.through(way) as calls:
            seconds, tokens, gaps = with_margins(llm, given, new)
        reference, margins = reference or tokens, margins or gaps
        apart = first_differences(reference, tokens)
        paths = {path for by in calls.values() for path in by}
        found["ways"][label] = {
            "seconds": round(seconds, 3),
            "digest": digest(tokens),
            "calls": {path: sum(by.get(path, 0) for by in calls.values()) for path in sorted(paths)},
            "first_difference": apart,
            "margin": [
                None if at is None else round(of[at], 5) for at, of in zip(apart, margins, strict=True)
            ],
            "memory": {"before": before, "after": gpu_memory()},
        }
        yield found


def with_margins(llm: Any, given: Prompts, new: int) -> tuple[float, list[list[int]], list[list[float]]]:
    """Seconds, greedy tokens, and for each the nats between it and the next best."""
    from vllm import SamplingParams

    sampling = SamplingParams(temperature=0.0, max_tokens=new, ignore_eos=True, detokenize=False, logprobs=2)
    begin = time.perf_counter()
    outputs = [output.outputs[0] for output in llm.generate(given, sampling, use_tqdm=False)]
    seconds = time.perf_counter() - begin
    margins = []
    for output in outputs:
        two = [sorted((choice.logprob for choice in at.values()), reverse=True) for at in output.logprobs]
        margins.append([at[0] - at[1] for at in two])
    return seconds, [list(output.token_ids) for output in outputs], margins


def gpu_memory() -> dict[str, int]:
    """Bytes: what tensors hold, what PyTorch holds, what the card has free. Empty without a GPU."""
    import torch

    if not torch.cuda.is_available():
        return {}
    torch.cuda.synchronize()
    free, _ = torch.cuda.mem_get_info()
    return {
        "allocated": torch.cuda.memory_allocated(),
        "reserved": torch.cuda.memory_reserved(),
        "free": free,
    }


class Preparation:
    """Seconds that vLLM spends on loaded weights (repacking, the plugin's test and times); memory after it."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.memory: dict[str, int] = {}

    def watch(self) -> Preparation:
        """From now on."""
        from vllm.model_executor.model_loader import base_loader

        inner = base_loader.process_weights_after_loading

        def process(*args: Any, **kwargs: Any) -> None:
            gpu_memory()
            begin = time.perf_counter()
            inner(*args, **kwargs)
            self.memory = gpu_memory()
            self.seconds += time.perf_counter() - begin

        base_loader.process_weights_after_loading = process
        return self
