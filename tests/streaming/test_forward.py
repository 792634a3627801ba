"""The streamed forward pass against the whole model's."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from gptq_hybrid.streaming import (
    Batch,
    CheckpointWeights,
    LayerStream,
    MtpHead,
    OutputHead,
    TextStack,
    make_batches,
)
from tests.streaming.rounded import CHECKPOINT, copy_with, read_config, read_tensors

CPU = torch.device("cpu")


def load_stack(path: Path, dtype: torch.dtype = torch.float32) -> TextStack:
    return TextStack(CheckpointWeights(path), CPU, dtype)


def streamed_logits(
    path: Path, batches: Sequence[Batch], dtype: torch.dtype = torch.float32
) -> dict[int, torch.Tensor]:
    """Streamed logits ``[length, vocabulary]`` by document."""
    stack = load_stack(path, dtype)
    stream = LayerStream(stack, batches)
    stream.run()
    head, logits = OutputHead(stack), {}
    for batch, hidden in zip(batches, stream.final(), strict=True):
        for row, (number, length) in enumerate(zip(batch.numbers, batch.lengths, strict=True)):
            logits[number] = head.logits(hidden[row, :length])
    return logits


def load_whole_model(path: Path) -> torch.nn.Module:
    from transformers import AutoModelForCausalLM

    model: torch.nn.Module = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    return model.eval()


@torch.inference_mode()
def test_logits_are_those_of_transformers_whatever_the_batches(documents: list[list[int]]) -> None:
    model = load_whole_model(CHECKPOINT)
    expected = [model(input_ids=torch.tensor([ids])).logits[0] for ids in documents]
    for batch_tokens in (1, 140, 10_000):
        batches = make_batches(documents, batch_tokens)
        streamed = streamed_logits(CHECKPOINT, batches)
        assert sorted(streamed) == list(range(len(documents)))
        for number, logits in streamed.items():
            torch.testing.assert_close(logits, expected[number], atol=1e-3, rtol=0)
    assert len(batches) == 1, "the last case pads all documents to the longest"
    assert expected[0].std() > 1, "logits of a trained model: an error of 1e-3 is small"


def test_batches_hold_every_document_once_and_no_more_tokens_than_asked(documents: list[list[int]]) -> None:
    batches = make_batches(documents, 140)
    assert sorted(n for batch in batches for n in batch.numbers) == list(range(len(documents)))
    for batch in batches:
        assert batch.tokens.numel() <= 140
        for row, (number, length) in enumerate(zip(batch.numbers, batch.lengths, strict=True)):
            assert batch.tokens[row, :length].tolist() == documents[number]
            assert not batch.tokens[row, length:].any()


def test_a_document_longer_than_a_batch_makes_its_own() -> None:
    batches = make_batches([[1] * 50, [2] * 5, [3] * 5], 16)
    assert [batch.numbers for batch in batches] == [(1, 2), (0,)]


@pytest.mark.parametrize("left_after", [0, 1, 3, 4, 7, 8])
def test_a_stream_left_after_a_layer_and_resumed_gives_the_same_bits(
    documents: list[list[int]], left_after: int
) -> None:
    batches = make_batches(documents, 200)
    straight = LayerStream(load_stack(CHECKPOINT), batches)
    straight.run()
    first = LayerStream(load_stack(CHECKPOINT), batches)
    first.run(until=left_after)
    assert first.done == left_after
    resumed = LayerStream(
        load_stack(CHECKPOINT), batches, states=[state.clone() for state in first.states], done=left_after
    )
    numbers: list[int] = []
    resumed.run(after_layer=lambda at: numbers.append(at.done))
    assert numbers == list(range(left_after + 1, 9))
    for one, other in zip(straight.final(), resumed.final(), strict=True):
        assert torch.equal(one, other)


def test_bfloat16_is_near_float32_and_its_logits_are_not_rounded(documents: list[list[int]]) -> None:
    batches = make_batches(documents[:2], 1000)
    exact, rough = (streamed_logits(CHECKPOINT, batches, dtype) for dtype in (torch.float32, torch.bfloat16))
    for number, logits in rough.items():
        assert logits.dtype == torch.float32
        assert (logits != logits.bfloat16()).float().mean() > 0.9
        error = (logits - exact[number]).std() / exact[number].std()
        assert 0 < error < 0.05


def test_vectors_stored_in_float32_stay_so_in_bfloat16(tmp_path: Path) -> None:
    tensors = {
        name: tensor.float() if name.endswith("A_log") else tensor
        for name, tensor in read_tensors(CHECKPOINT).items()
    }
    layer = load_stack(copy_with(tmp_path / "wide", tensors, read_config()), torch.bfloat16).layer(0)
    kinds = {name: tensor.dtype for name, tensor in layer.named_parameters()}
    assert kinds["linear_attn.A_log"] == torch.float32
    assert kinds["linear_attn.dt_bias"] == kinds["linear_attn.in_proj_qkv.weight"] == torch.bfloat16


def test_a_text_only_checkpoint_computes_the_same(tmp_path: Path, documents: list[list[int]]) -> None:
    config, old = read_config(), "model.language_model."
    text = {**config["text_config"], "architectures": ["Qwen3_5ForCausalLM"], "tie_word_embeddings": False}
    tensors = {
        name.replace(old, "model."): tensor
        for name, tensor in read_tensors(CHECKPOINT).items()
        if not name.startswith("model.visual.")
    }
    path = copy_with(tmp_path / "text", tensors, text)
    batches = make_batches(documents[:2], 1000)
    for number, logits in streamed_logits(path, batches).items():
        assert torch.equal(logits, streamed_logits(CHECKPOINT, batches)[number])


@torch.inference_mode()
def test_tied_embeddings_are_the_output_head(tmp_path: Path, documents: list[list[int]]) -> None:
    config, tensors = read_config(), read_tensors(CHECKPOINT)
    config["tie_word_embeddings"] = config["text_config"]["tie_word_embeddings"] = True
    tensors["model.language_model.embed_tokens.weight"] = tensors.pop("lm_head.weight")
    path = copy_with(tmp_path / "tied", tensors, config)
    expected = load_whole_model(path)(input_ids=torch.tensor([documents[0]])).logits[0]
    streamed = streamed_logits(path, make_batches(documents[:1], 1000))[0]
    torch.testing.assert_close(streamed, expected, atol=1e-3, rtol=0)


@torch.inference_mode()
def test_drafts_are_those_of_a_head_in_plain_torch(documents: list[list[int]]) -> None:
    """Step ``k`` from position ``i``."""
    from bench.mini.mtp import MTPHead

    model, plain, streamed = (
        load_whole_model(CHECKPOINT).model,
        MTPHead(CHECKPOINT),
        MtpHead(load_stack(CHECKPOINT)),
    )
    for ids in documents[:3]:
        tokens = torch.tensor([ids])
        hidden = model(input_ids=tokens).last_hidden_state
        expected = plain.drafts(hidden[:, :-2], tokens[:, 1:-1], tokens[:, 2:])
        for drafts, reference in zip(streamed.run(hidden, tokens, 2), expected, strict=True):
            torch.testing.assert_close(drafts, reference, atol=1e-4, rtol=0)


def test_more_drafts_do_not_change_the_earlier_ones(documents: list[list[int]]) -> None:
    stack = load_stack(CHECKPOINT)
    tokens = torch.tensor([documents[0]])
    hidden = torch.randn(1, tokens.shape[1], 256, generator=torch.Generator().manual_seed(0))
    few, many = (MtpHead(stack).run(hidden, tokens, drafts) for drafts in (1, 4))
    assert len(many) == 4
    torch.testing.assert_close(few[0][:, : many[0].shape[1]], many[0], atol=1e-4, rtol=0)


def test_a_draft_looks_at_nothing_that_comes_later(documents: list[list[int]]) -> None:
    stack = load_stack(CHECKPOINT)
    tokens = torch.tensor([documents[0]])
    hidden = torch.randn(1, tokens.shape[1], 256, generator=torch.Generator().manual_seed(0))
    changed_tokens, changed_hidden = tokens.clone(), hidden.clone()
    # Position 20 drafts from its own state and tokens 21 to 23.
    changed_tokens[:, 24:], changed_hidden[:, 21:] = 5, 0.5
    head = MtpHead(stack)
    for one, other in zip(
        head.run(hidden, tokens, 3), head.run(changed_hidden, changed_tokens, 3), strict=True
    ):
        torch.testing.assert_close(one[:, :21], other[:, :21], atol=1e-5, rtol=0)
        assert not torch.allclose(one[:, 30:], other[:, 30:], atol=1e-2)


def test_a_layer_that_does_not_fit_is_named(tmp_path: Path) -> None:
    from gptq_hybrid.common.errors import CheckpointError

    tensors = read_tensors(CHECKPOINT)
    name = "model.language_model.layers.2.mlp.up_proj.weight"
    tensors[name] = tensors[name][:-1]
    stack = load_stack(copy_with(tmp_path / "odd", tensors, read_config()))
    with pytest.raises(CheckpointError, match=r"layer 2 .*mlp\.up_proj\.weight"):
        stack.layer(2)


def test_an_error_in_a_layer_that_is_read_ahead_arrives(
    tmp_path: Path, documents: list[list[int]], packed: Callable[..., Path]
) -> None:
    from gptq_hybrid.common.errors import CheckpointError

    path = Path(shutil.copytree(packed(), tmp_path / "copy"))
    config = json.loads((path / "config.json").read_text())
    config["quantization_config"]["dynamic"] = {r"+:.*layers\.1\.mlp\.down_proj": {"bits": 8}}
    (path / "config.json").write_text(json.dumps(config))
    stream = LayerStream(load_stack(path), make_batches(documents[:1], 100))
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.down_proj is not packed in 8 bits"):
        stream.run()
    assert stream.done <= 1
