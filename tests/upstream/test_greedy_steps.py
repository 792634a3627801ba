"""Which steps need the largest logit alone: requests by their fields, and both of vLLM's model runners."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")
np = pytest.importorskip("numpy")

from vllm import SamplingParams  # noqa: E402
from vllm.sampling_params import StructuredOutputsParams  # noqa: E402

from vllm_qwen36_plugin.errors import CompatError  # noqa: E402
from vllm_qwen36_plugin.upstream import greedy_steps as steps  # noqa: E402

pytestmark = pytest.mark.engine  # no engine, but vLLM is imported: some seconds

PLAIN: tuple[dict[str, Any], ...] = (
    {},
    {"max_tokens": 4000, "stop": ["\n"], "ignore_eos": True, "n": 1, "seed": 3},
    {"stop_token_ids": [7], "detokenize": False, "include_stop_str_in_output": True},
)
OTHER: tuple[dict[str, Any], ...] = (
    {"temperature": 0.7},
    {"logprobs": 0},
    {"prompt_logprobs": 1},
    {"presence_penalty": 0.1},
    {"frequency_penalty": 0.1},
    {"repetition_penalty": 1.1},
    {"min_tokens": 3},
    {"logit_bias": {5: 1.0}},
    {"allowed_token_ids": [1, 2]},
    {"bad_words": ["no"]},
    {"structured_outputs": StructuredOutputsParams(regex="a+")},
    {"extra_args": {"mine": 1}},
)


def greedy(**fields: Any) -> SamplingParams:
    return SamplingParams(**{"temperature": 0.0, **fields})


@pytest.mark.parametrize("fields", PLAIN)
def test_a_request_for_the_likeliest_token_is_plain(fields: dict[str, Any]) -> None:
    assert steps.is_plain_and_greedy(greedy(**fields))


@pytest.mark.parametrize("fields", OTHER, ids=lambda fields: next(iter(fields)))
def test_a_request_that_looks_at_other_logits_is_not(fields: dict[str, Any]) -> None:
    assert not steps.is_plain_and_greedy(greedy(**fields))


def test_a_field_that_is_not_known_counts_as_one_that_matters() -> None:
    class Later(SamplingParams):  # type: ignore[misc]
        taste: int = 0

    assert steps.is_plain_and_greedy(Later(temperature=0.0))
    assert not steps.is_plain_and_greedy(Later(temperature=0.0, taste=1))


def vllms(name: str = "Sampler") -> Any:
    """An object of a class of vLLM's, by its name."""
    return type(name, (), {"__module__": "vllm.v1.sample"})()


def first_runner(*params: Any) -> Any:
    """The V1 runner as far as it is asked."""

    class Runner:
        def execute_model(self, scheduler_output: Any) -> bool:
            return steps.only_the_largest_counts()

    steps._wrap(Runner, "execute_model", ("self", "scheduler_output"), steps._in_execute_model)
    runner = Runner()
    runner.sampler = vllms()  # type: ignore[attr-defined]
    runner.requests = {  # type: ignore[attr-defined]
        str(place): SimpleNamespace(sampling_params=each) for place, each in enumerate(params)
    }
    processors = SimpleNamespace(argmax_invariant=[], non_argmax_invariant=[vllms("MinTokens")])
    runner.input_batch = SimpleNamespace(  # type: ignore[attr-defined]
        req_ids=list(runner.requests),  # type: ignore[attr-defined]
        logitsprocs=processors,
    )
    return runner


def test_a_step_of_the_first_runner_is_greedy_if_every_request_is() -> None:
    assert first_runner(greedy(), greedy(max_tokens=9)).execute_model(None)
    assert not first_runner(greedy(), greedy(logprobs=1)).execute_model(None)
    # Warm-up: no request at all.
    assert not first_runner().execute_model(None)
    assert not steps.only_the_largest_counts()


def test_a_request_that_is_continued_with_other_parameters_is_judged_again() -> None:
    runner = first_runner(greedy())
    assert runner.execute_model(None)
    runner.requests["0"].sampling_params = greedy(logprobs=1)
    assert not runner.execute_model(None)


def test_processors_and_samplers_from_elsewhere_see_all_logits() -> None:
    runner = first_runner(greedy())
    runner.input_batch.logitsprocs.argmax_invariant.append(SimpleNamespace())
    assert not runner.execute_model(None)
    runner = first_runner(greedy())
    runner.sampler = SimpleNamespace()
    assert not runner.execute_model(None)


def second_runner(*params: Any) -> tuple[Any, Any]:
    """The V2 runner as far as it is asked, and a batch of these requests, the last first."""

    class Sampler:
        def add_request(self, req_idx: int, sampling_params: Any) -> None:
            pass

    class Runner:
        def sample(self, hidden_states: Any, input_batch: Any, grammar_output: Any) -> bool:
            return steps.only_the_largest_counts()

    Sampler.__module__ = "vllm.v1.worker.gpu.sample.sampler"
    steps._wrap(Sampler, "add_request", ("self", "req_idx"), steps._in_add_request)
    steps._wrap(Runner, "sample", ("self", "hidden_states", "input_batch"), steps._in_sample)
    runner = Runner()
    runner.sampler = Sampler()  # type: ignore[attr-defined]
    for place, each in enumerate(params):
        runner.sampler.add_request(place + 3, each)  # type: ignore[attr-defined]
    return runner, SimpleNamespace(idx_mapping_np=np.arange(len(params))[::-1] + 3)


def test_a_step_of_the_second_runner_is_greedy_if_every_request_is_and_no_grammar_is_applied() -> None:
    runner, batch = second_runner(greedy(), greedy(seed=1))
    assert runner.sample(None, batch, None)
    assert not runner.sample(None, batch, "a grammar")
    runner, batch = second_runner(greedy(), greedy(min_tokens=1))
    assert not runner.sample(None, batch, None)
    batch.idx_mapping_np = np.array([3])
    assert runner.sample(None, batch, None)
    # Another request in the same place.
    runner.sampler.add_request(3, greedy(temperature=1.0))
    assert not runner.sample(None, batch, None)
    # One that nobody announced.
    batch.idx_mapping_np = np.array([9])
    assert not runner.sample(None, batch, None)


def test_a_sampler_that_returns_its_mask_needs_all_logits() -> None:
    runner, batch = second_runner(greedy())
    runner.sampler.return_sampling_mask = True
    assert not runner.sample(None, batch, None)


def test_vllms_runners_are_wrapped_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    monkeypatch.setattr(GPUModelRunner, "execute_model", GPUModelRunner.execute_model)
    steps.publish_greedy_steps()
    first = GPUModelRunner.execute_model
    steps.publish_greedy_steps()
    assert GPUModelRunner.execute_model is first


def test_a_runner_that_moved_is_refused() -> None:
    class Moved:
        def execute_model(self, plan: Any) -> None:
            pass

    with pytest.raises(CompatError, match="other parameters"):
        steps._wrap(Moved, "execute_model", ("self", "scheduler_output"), steps._in_execute_model)
