"""Rows of decoding and of draft verification never take 8-bit activations, by vLLM's own metadata of the step."""

from __future__ import annotations

import random
import weakref
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")
pytest.importorskip("vllm")

from vllm_qwen36_plugin.errors import CompatError  # noqa: E402
from vllm_qwen36_plugin.prefill import dispatch, mixed  # noqa: E402
from vllm_qwen36_plugin.prefill.profile import Starts  # noqa: E402
from vllm_qwen36_plugin.prefill.shape import Shape  # noqa: E402
from vllm_qwen36_plugin.upstream import decode_rows  # noqa: E402

from .made import DenseKernel, Weight  # noqa: E402

pytestmark = [
    pytest.mark.engine,  # no engine, but vLLM is imported: some seconds
    pytest.mark.usefixtures("clean"),
]

SHAPE = Shape("marlin", 64, 128, 4, -1, "bfloat16")
DRAFTS = 2
Build = Callable[..., Any]
Step = Callable[..., AbstractContextManager[None]]


@pytest.fixture(scope="module")
def config() -> Any:
    """vLLM's config, as far as its builder asks it."""
    from vllm.config import VllmConfig

    made = VllmConfig()
    made.model_config = SimpleNamespace(
        hf_text_config=SimpleNamespace(), hf_config=SimpleNamespace(architectures=[]), architecture=""
    )
    return made


@pytest.fixture
def build(config: Any, monkeypatch: pytest.MonkeyPatch) -> Build:
    """Metadata of a step, from vLLM's own builder: lengths of its requests, and how many drafts each verifies."""
    from vllm.v1.attention.backend import CommonAttentionMetadata
    from vllm.v1.attention.backends.gdn_attn import GDNAttentionMetadataBuilder as Builder
    from vllm.v1.kv_cache_interface import MambaSpec

    monkeypatch.setattr(Builder, "build", Builder.build)  # as it was, afterwards
    decode_rows.publish_rows()
    spec = MambaSpec(block_size=16, shapes=((4, 4), (4, 4)), dtypes=(torch.float32, torch.float32))
    builder = Builder(spec, ["linear_attn"], config, torch.device("cpu"))

    def built(lengths: Sequence[int], drafts: Sequence[int] | None = None) -> Any:
        builder.num_spec = 0 if drafts is None else DRAFTS
        builder.use_spec_decode = drafts is not None
        starts = torch.tensor([0, *lengths]).cumsum(0).int()
        requests, seen = len(lengths), torch.tensor(lengths) + 100
        common = CommonAttentionMetadata(
            query_start_loc=starts,
            query_start_loc_cpu=starts,
            seq_lens=seen.int(),
            seq_lens_cpu_upper_bound=seen.int(),
            num_reqs=requests,
            num_actual_tokens=int(starts[-1]),
            max_query_len=max(lengths),
            max_seq_len=int(seen.max()),
            block_table_tensor=torch.zeros(requests, 4, dtype=torch.int32),
            slot_mapping=torch.zeros(int(starts[-1]), dtype=torch.int64),
            is_prefilling=torch.tensor([length > 1 + builder.num_spec for length in lengths]),
        )
        if drafts is None:
            return builder.build(0, common)
        accepted = torch.ones(requests, dtype=torch.int32)
        return builder.build(
            0, common, num_accepted_tokens=accepted, num_decode_draft_tokens_cpu=torch.tensor(drafts)
        )

    return built


@pytest.fixture
def step(build: Build, config: Any) -> Step:
    """vLLM's forward context of such a step."""
    from vllm.forward_context import set_forward_context

    def within(lengths: Sequence[int], drafts: Sequence[int] | None = None) -> AbstractContextManager[None]:
        layers = {"attention": SimpleNamespace(), "linear_attn": build(lengths, drafts)}
        return set_forward_context(layers, config, num_tokens=sum(lengths))  # type: ignore[no-any-return]

    return within


@pytest.fixture
def linear(monkeypatch: pytest.MonkeyPatch) -> dispatch.Linear:
    """A table entry whose `fp8` returns NaN, to show which rows went there. The host keeps up with anything."""

    def fp8(x: Any, weight: Any, shape: Any, gemm: str, out: Any = None) -> Any:
        out = x.new_empty(x.shape[0], shape.n) if out is None else out
        return out.fill_(float("nan"))

    monkeypatch.setattr(dispatch, "fp8", fp8)
    monkeypatch.setattr(
        dispatch, "exact", lambda x, weight, shape: DenseKernel(shape).apply_weights(weight, x)
    )
    layer = torch.nn.Module()
    weight = Weight.random(SHAPE)
    layer.words, layer.scales = weight.stock_words(), weight.stock_scales()
    layer.dense = weight.dense().bfloat16()
    entry = dispatch.Linear(
        SHAPE,
        DenseKernel(SHAPE),
        ("words", "scales"),
        0,
        1,
        weakref.ref(layer),
        starts=Starts(fp8=64),
        routes=("fp8", "exact"),
    )
    entry.attributes["keep"] = layer
    dispatch.pace().cut_from = 0
    return dispatch.put(entry)


def call(linear: dispatch.Linear, tokens: int, *, plain: bool = True, scales: bool = True) -> Any:
    """What the op makes of so many tokens: which rows went through `fp8`. The others are checked."""
    layer = linear.attributes["keep"]
    x = torch.randn(tokens, SHAPE.k, generator=torch.Generator().manual_seed(0)).bfloat16()
    fp8 = torch.ones(2, SHAPE.n) if scales else None
    if plain:
        out = dispatch.plain_op()(x, layer.words, layer.scales, fp8, SHAPE.key, SHAPE.n)
    else:
        out = dispatch.op()(x, [layer.words, layer.scales], fp8, None, SHAPE.key, SHAPE.n)
    rows = out.isnan().all(dim=1)
    assert torch.equal(out.isnan().any(dim=1), rows)
    torch.testing.assert_close(out[~rows], (x @ layer.dense.t())[~rows])
    return rows


@pytest.mark.parametrize(
    ("lengths", "drafts", "before", "whole"),
    [
        ([300], None, 0, 300),
        ([1, 1, 300], None, 2, 302),
        ([1, 1, 1], None, 3, 3),
        ([2, 300], None, 0, 302),  # without drafts two tokens are of a prompt
        ([3, 3, 300], [2, 2, -1], 6, 306),
        # Whether the last tokens of a prompt or drafts that were rolled back: vLLM says -1 to both.
        ([3, 2, 300], [2, -1, -1], 5, 305),
        # vLLM counts a request without drafts among the prompts of such a step.
        ([3, 300, 1], [2, -1, -1], 304, 304),
        # As chunks and verification come where FlashInfer has the runner sort by one token.
        ([300, 3, 500], [-1, 2, -1], 303, 803),
        ([300], [-1], 0, 300),
        ([1, 1, 0, 0], None, 2, 2),
        ([300, 0, 0], [-1, -1, -1], 0, 300),
    ],
)
def test_a_step_says_before_which_row_a_request_may_be_decoding(
    build: Build, lengths: list[int], drafts: list[int] | None, before: int, whole: int
) -> None:
    metadata = build(lengths, drafts)
    assert decode_rows.rows_in({"attention": None, "linear_attn": metadata}) == (before, whole)


def test_rows_of_decoding_keep_sixteen_bits_and_those_of_prompts_take_eight(
    step: Step, linear: dispatch.Linear
) -> None:
    for plain in (True, False):
        linear.rows.clear()
        linear.served.clear()
        linear.kernel.calls.clear()
        with step([3, 3, 500], [2, 2, -1]):
            rows = call(linear, 506, plain=plain)
        assert rows.tolist() == [False] * 6 + [True] * 500
        assert linear.rows == {"stock": 6, "fp8": 500}
        assert linear.served == {"stock": 1, "fp8": 1}
        assert linear.kernel.calls == [6]


def test_no_row_of_decoding_goes_through_eight_bits_whatever_the_step(
    step: Step, linear: dispatch.Linear
) -> None:
    choose = random.Random(0)
    prompts = decoding = 0
    for _ in range(60):
        kinds = choose.choices(("verify", "decode", "chunk", "tail"), k=choose.randint(1, 8))
        chosen = {"verify": (3, 2), "decode": (1, -1), "tail": (2, -1)}
        requests = [chosen.get(kind, (choose.randint(4, 900), -1)) for kind in kinds]
        if choose.random() < 0.5:  # as runners sort them
            requests.sort(key=lambda request: request[0])
            kinds.sort(key=lambda kind: chosen.get(kind, (9,))[0])
        lengths = [length for length, _ in requests]
        with step(lengths, [drafts for _, drafts in requests]):
            rows = call(linear, sum(lengths))
        ends = torch.tensor([0, *lengths]).cumsum(0).tolist()
        for (first, last), kind in zip(pairwise(ends), kinds, strict=True):
            if kind != "chunk":
                assert not rows[first:last].any(), (lengths, kinds)
                decoding += last - first
        prompts += int(rows.sum())
    assert prompts > 1000
    assert decoding > 100
    assert linear.rows["fp8"] == prompts


def test_a_step_of_prompts_alone_takes_eight_bits_and_one_of_decoding_alone_none(
    step: Step, linear: dispatch.Linear
) -> None:
    with step([500], [-1]):
        assert call(linear, 500).all()
    with step([3] * 100, [2] * 100):
        assert not call(linear, 300).any()
    assert linear.rows == {"fp8": 500, "stock": 300}


def test_a_cuda_graph_holds_no_eight_bits_since_any_step_may_replay_it(
    step: Step, linear: dispatch.Linear, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "_recorded", lambda x: True)
    linear.starts = Starts(exact=200, fp8=64)
    assert not call(linear, 100).any()
    assert not call(linear, 300).any()
    with step([500], [-1]):
        assert not call(linear, 500).any()
    assert linear.served == {"stock": 1, "exact": 2}


def test_trials_without_requests_take_any_route(config: Any, linear: dispatch.Linear) -> None:
    from vllm.forward_context import set_forward_context

    assert call(linear, 100).all()
    with set_forward_context(None, config, num_tokens=100):
        assert call(linear, 100).all()


def test_a_draft_models_step_says_nothing_and_keeps_sixteen_bits(
    config: Any, linear: dispatch.Linear
) -> None:
    from vllm.forward_context import set_forward_context

    for metadata in ({"mtp.attention": SimpleNamespace()}, [{}, {}]):
        with set_forward_context(metadata, config, num_tokens=500):
            assert not call(linear, 500).any()
    assert linear.served == {"stock": 2}


def test_fewer_rows_than_the_steps_keep_sixteen_bits_and_padding_does_not_matter(
    step: Step, linear: dispatch.Linear
) -> None:
    with step([500], [-1]):
        assert not call(linear, 499).any()
        assert call(linear, 512).all()


def test_a_layer_without_scales_keeps_sixteen_bits(linear: dispatch.Linear) -> None:
    assert not call(linear, 500, scales=False).any()
    assert call(linear, 500).all()


def test_one_compiled_graph_serves_steps_of_every_kind(step: Step, linear: dispatch.Linear) -> None:
    from torch._dynamo.testing import CompileCounterWithBackend

    layer, op = linear.attributes["keep"], dispatch.plain_op()
    scales = torch.ones(2, SHAPE.n)
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(
        lambda x: op(x, layer.words, layer.scales, scales, SHAPE.key, SHAPE.n),
        backend=counter,
        fullgraph=True,
        dynamic=True,
    )
    for lengths, eight in (([500], 500), ([3, 497], 497), ([3] * 100, 0), ([500, 3], 0)):
        drafts = [DRAFTS if length == 3 else -1 for length in lengths]
        with step(lengths, drafts):
            out = compiled(torch.ones(sum(lengths), SHAPE.k, dtype=torch.bfloat16))
        assert int(out.isnan().all(dim=1).sum()) == eight
    assert counter.frame_count == 1


def test_a_slow_host_is_asked_for_no_second_call(step: Step, linear: dispatch.Linear) -> None:
    dispatch.pace().cut_from = 507
    with step([3, 3, 500], [2, 2, -1]):
        assert not call(linear, 506).any()
    with step([3, 3, 501], [2, 2, -1]):
        assert int(call(linear, 507).sum()) == 501


def test_measured_times_decide_whether_two_calls_beat_one(step: Step, linear: dispatch.Linear) -> None:
    stock = {4: 100.0, 128: 100.0, 1024: 800.0}
    linear.times = {"stock": stock, "fp8": {128: 150.0, 1024: 650.0}}
    with step([3, 597], [2, -1]):
        assert not call(linear, 600).any()  # 100 and 412 µs, and 469 for all
    with step([3, 1021], [2, -1]):
        assert int(call(linear, 1024).sum()) == 1021  # 100 and 648, and 800


@pytest.mark.parametrize(
    ("tokens", "first", "cut"),
    [(800, 1, True), (512, 192, False), (600, 6, True), (338, 6, False), (344, 6, True), (99, 50, False)],
)
def test_without_times_a_route_has_to_be_well_beyond_its_start(tokens: int, first: int, cut: bool) -> None:
    assert mixed.pays(tokens, first, 64, None, None, None) is cut


def test_times_between_measured_numbers_are_read_in_line() -> None:
    times = {128: 100.0, 256: 200.0, 512: 300.0}
    expected = {1: 100.0, 128: 100.0, 192: 150.0, 256: 200.0, 384: 250.0, 1024: 600.0}
    assert {tokens: mixed.microseconds(times, tokens) for tokens in expected} == expected


def test_a_builder_that_moved_is_a_named_error(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.v1.attention.backends.gdn_attn import GDNAttentionMetadataBuilder as Builder

    again = Builder.build
    decode_rows.publish_rows()
    assert Builder.build is again
    monkeypatch.setattr(Builder, "build", lambda self, metadata: None)
    with pytest.raises(CompatError, match=r"GDNAttentionMetadataBuilder\.build"):
        decode_rows.publish_rows()
