"""Whether the step at hand needs of its logits which is the largest, and no more: every request plain and greedy.

Changes: ``GPUModelRunner.execute_model`` of vLLM's V1 runner, and ``GPUModelRunner.sample`` and
``Sampler.add_request`` of its V2 runner, note whose requests are at hand while they run.
Why: a model's ``compute_logits`` is given hidden states alone.
Versions: the same first parameters in 0.19.1 to 0.33.0.
Checks: the methods and those parameters. A request with any field that is not known here, a sampler that is not
vLLM's own, a logits processor from elsewhere: then all logits count.
May go: when vLLM tells a model what its logits are for.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial, wraps
from typing import Any

from vllm_qwen36_plugin.errors import CompatError

_MARK = "qwen36_greedy"
# Fields of a greedy request that change no logit, nor what is returned of them.
_OF_NO_MATTER = frozenset(
    (
        "n", "seed", "stop", "stop_token_ids", "ignore_eos", "max_tokens", "detokenize", "skip_special_tokens",
        "spaces_between_special_tokens", "include_stop_str_in_output", "output_kind", "stream_interval",
        "skip_clone", "output_text_buffer_length", "_eos_token_id", "_all_stop_token_ids",
        "skip_reading_prefix_cache", "watermarking", "_watermarking_skipped",
        "repetition_detection", "flat_logprobs", "temperature", "truncate_prompt_tokens", "include_reasoning",
        "routed_experts_prompt_start",
    )
)  # fmt: skip
# What is asked while a runner computes a step's logits; the newest last.
_asked: list[Callable[[], bool]] = []


def only_the_largest_counts() -> bool:
    """Whether the requests at hand take the largest logit of each row, whatever the others are."""
    return bool(_asked) and _asked[-1]()


def is_plain_and_greedy(params: Any) -> bool:
    """Whether a request's ``SamplingParams`` ask for the likeliest token and for nothing that looks at others."""
    if params is None or params.temperature != 0 or getattr(params, "watermarking", None):
        return False
    plain = type(params)(temperature=0.0)
    fields = set(params.__struct_fields__) - _OF_NO_MATTER
    return all(getattr(params, name) == getattr(plain, name) for name in fields)


def publish_greedy_steps() -> None:
    """Have vLLM's runners say so. Idempotent.

    Raises:
        CompatError: the runners are not what they were in vLLM 0.19.1 to 0.33.0.
    """
    try:
        from vllm.v1.worker.gpu_model_runner import GPUModelRunner
    except ImportError as error:
        raise CompatError(f"vLLM's model runner cannot be imported: {error}") from error
    _wrap(GPUModelRunner, "execute_model", ("self", "scheduler_output"), _in_execute_model)
    try:
        from vllm.v1.worker.gpu.model_runner import GPUModelRunner as SecondRunner
        from vllm.v1.worker.gpu.sample.sampler import Sampler
    except ImportError:  # needs Triton, which vLLM's builds for CPUs lack
        return
    _wrap(SecondRunner, "sample", ("self", "hidden_states", "input_batch", "grammar_output"), _in_sample)
    _wrap(Sampler, "add_request", ("self", "req_idx"), _in_add_request)


def _wrap(owner: type, name: str, parameters: tuple[str, ...], make: Callable[[Any], Any]) -> None:
    stock = getattr(owner, name, None)
    if getattr(stock, _MARK, False):
        return
    if not callable(stock) or tuple(inspect.signature(stock).parameters)[: len(parameters)] != parameters:
        raise CompatError(f"{owner.__name__}.{name} takes other parameters than in vLLM 0.33.0")
    wrapped = wraps(stock)(make(stock))
    setattr(wrapped, _MARK, True)
    setattr(owner, name, wrapped)


def _in_execute_model(stock: Any) -> Any:
    def execute_model(self: Any, *args: Any, **kwargs: Any) -> Any:
        # Asked when logits are computed: requests of this step are known by then.
        _asked.append(partial(_first_runner_is_greedy, self))
        try:
            return stock(self, *args, **kwargs)
        finally:
            _asked.pop()

    return execute_model


def _first_runner_is_greedy(runner: Any) -> bool:
    batch = runner.input_batch
    processors = batch.logitsprocs
    if not batch.req_ids or not _from_vllm(
        runner.sampler, *processors.argmax_invariant, *processors.non_argmax_invariant
    ):
        return False
    return all(_request_is_plain(runner.requests[name]) for name in batch.req_ids)


def _request_is_plain(request: Any) -> bool:
    params = request.sampling_params
    judged: tuple[Any, bool] = getattr(request, _MARK, (None, False))
    # A request that is continued may be given others.
    if judged[0] is not params:
        judged = params, is_plain_and_greedy(params)
        setattr(request, _MARK, judged)
    return judged[1]


def _in_sample(stock: Any) -> Any:
    def sample(self: Any, hidden_states: Any, input_batch: Any, grammar_output: Any, *args: Any) -> Any:
        _asked.append(partial(_second_runner_is_greedy, self, input_batch, grammar_output))
        try:
            return stock(self, hidden_states, input_batch, grammar_output, *args)
        finally:
            _asked.pop()

    return sample


def _second_runner_is_greedy(runner: Any, batch: Any, grammar: Any) -> bool:
    sampler = runner.sampler
    if (
        grammar is not None
        or not len(batch.idx_mapping_np)
        or getattr(sampler, "return_sampling_mask", False)
    ):
        return False
    if type(sampler).__name__ != "Sampler" or not _from_vllm(
        sampler, *getattr(sampler, "logits_processors", ())
    ):
        return False
    known: dict[int, bool] = getattr(sampler, _MARK, {})
    return all(known.get(int(place), False) for place in batch.idx_mapping_np)


def _in_add_request(stock: Any) -> Any:
    def add_request(self: Any, req_idx: int, *args: Any, **kwargs: Any) -> Any:
        params = kwargs.get("sampling_params", args[-1] if args else None)
        self.__dict__.setdefault(_MARK, {})[int(req_idx)] = is_plain_and_greedy(params)
        return stock(self, req_idx, *args, **kwargs)

    return add_request


def _from_vllm(*objects: Any) -> bool:
    return all(type(each).__module__.startswith("vllm.") for each in objects)
