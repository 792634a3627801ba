"""The output head that drafts are drawn from."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("vllm")

from vllm_qwen36_plugin.draft_head.head import DraftHead, dense_channels  # noqa: E402
from vllm_qwen36_plugin.draft_head.methods import LinearStandIn, quantizing_method  # noqa: E402

pytestmark = pytest.mark.engine  # no engine, but vLLM is imported: some seconds

VOCABULARY, WIDTH = 640, 256
IDS = torch.arange(0, VOCABULARY, 5)  # 128 of them


class Dense(torch.nn.Module):
    """vLLM's head as far as it is read, padded to more channels than there are tokens."""

    def __init__(self, channels: int = VOCABULARY + 64) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.weight = torch.nn.Parameter(
            torch.randn(channels, WIDTH, generator=generator).bfloat16(), requires_grad=False
        )


class Packed(torch.nn.Module):
    """A head whose weight can only be known from what it computes."""

    def __init__(self, dense: Dense) -> None:
        super().__init__()
        self.hidden = torch.nn.Parameter(dense.weight.data.t().contiguous(), requires_grad=False)
        self.embedding_dim = WIDTH
        self.quant_method = SimpleNamespace(apply=lambda layer, x, bias=None: x @ layer.hidden)


@pytest.fixture(autouse=True)
def one_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a worker has: its rank, and kernels for packed weights."""
    from vllm.model_executor import parameter

    from vllm_qwen36_plugin.cpu.packed_weights import offer

    offer()
    monkeypatch.setattr(parameter, "get_tensor_model_parallel_rank", lambda: 0)
    monkeypatch.setattr(parameter, "get_tensor_model_parallel_world_size", lambda: 1)


def hidden(positions: int = 7) -> torch.Tensor:
    return torch.randn(positions, WIDTH, generator=torch.Generator().manual_seed(2)).bfloat16()


def test_tokens_that_are_not_drafted_have_no_probability() -> None:
    lm_head = Dense()
    head = DraftHead(lm_head, VOCABULARY, IDS, "bf16")
    logits = head.logits(hidden())
    assert logits.shape == (7, VOCABULARY)
    torch.testing.assert_close(logits[:, IDS], hidden() @ lm_head.weight[IDS].t())
    others = torch.ones(VOCABULARY, dtype=torch.bool)
    others[IDS] = False
    assert (logits[:, others] == float("-inf")).all()
    assert (logits.float().softmax(-1)[:, others] == 0).all()


@pytest.mark.parametrize("ids", [None, IDS])
def test_the_top_token_is_that_of_the_logits(ids: Any) -> None:
    head = DraftHead(Dense(), VOCABULARY, ids, "bf16")
    many = hidden(300)
    assert torch.equal(head.top(many), head.logits(many).argmax(-1))


def test_of_equal_logits_the_first_token_wins_as_it_does_among_all() -> None:
    head = DraftHead(Dense(), VOCABULARY, IDS, "bf16")
    assert head.top(torch.zeros(2, WIDTH).bfloat16()).tolist() == [0, 0]


def test_all_channels_of_a_dense_head_are_not_copied() -> None:
    lm_head = Dense()
    assert dense_channels(lm_head, None).data_ptr() == lm_head.weight.data_ptr()
    DraftHead(lm_head, VOCABULARY, None, "w4")
    assert lm_head.weight.shape == (VOCABULARY + 64, WIDTH)


@pytest.mark.parametrize("ids", [None, IDS])
def test_a_packed_head_is_read_through_what_it_computes(ids: Any) -> None:
    dense = Dense()
    assert torch.equal(dense_channels(Packed(dense), ids), dense_channels(dense, ids))


def test_four_bits_are_close_and_differ() -> None:
    exact = DraftHead(Dense(), VOCABULARY, IDS, "bf16").logits(hidden())[:, IDS].float()
    rounded = DraftHead(Dense(), VOCABULARY, IDS, "w4").logits(hidden())[:, IDS].float()
    error = (rounded - exact).square().mean().sqrt() / exact.square().mean().sqrt()
    # Of normal weights in groups of 32 the searched scales leave 8 % of root mean square, in groups of 128 10 %.
    assert 0.07 < error < 0.09


def test_something_that_is_no_head_is_named() -> None:
    with pytest.raises(TypeError, match="Identity is no output head"):
        dense_channels(torch.nn.Identity(), None)


def test_a_packed_head_has_what_vllms_kernels_read_of_a_linear_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    """By their source: a kernel that this machine cannot run is found out here, not at a user's start."""
    import re
    from pathlib import Path

    import vllm
    from vllm.model_executor.layers import linear as layers

    monkeypatch.setattr(layers, "get_tensor_model_parallel_rank", lambda: 0)
    monkeypatch.setattr(layers, "get_tensor_model_parallel_world_size", lambda: 1)
    root = Path(vllm.__file__).parent / "model_executor"
    folders = (root / "kernels/linear/mixed_precision", root / "layers/quantization/utils/humming")
    text = "\n".join(path.read_text() for folder in folders for path in folder.glob("*.py"))
    read = set(re.findall(r"\blayer\.([a-z_]+)\b", text))
    assert {"input_size_per_partition", "output_partition_sizes", "params_dtype"} <= read
    linear = layers.ColumnParallelLinear(64, 128, bias=False, params_dtype=torch.bfloat16)
    stand_in = LinearStandIn(torch.zeros(128, 64, dtype=torch.bfloat16))
    plain = {name for name in read if isinstance(getattr(linear, name, None), int | list | torch.dtype)}
    assert {"input_size", "params_dtype"} <= plain
    assert {name: getattr(stand_in, name, None) for name in plain} == {
        name: getattr(linear, name) for name in plain
    }


def test_a_packed_weight_is_made_once_whatever_the_kernel_calls_its_words() -> None:
    """Humming's calls them ``weight``; vLLM may process a layer again when weights are loaded anew."""
    dense = torch.randn(128, 64, generator=torch.Generator().manual_seed(3)).bfloat16()
    layer, method = LinearStandIn(dense.clone()), quantizing_method(dense, "w8")
    assert method is not None
    method.process_weights_after_loading(layer)
    words = torch.arange(6, dtype=torch.int32)
    layer.weight = torch.nn.Parameter(words, requires_grad=False)
    method.process_weights_after_loading(layer)
    assert torch.equal(layer.weight.data, words)
    x = torch.randn(2, 64, generator=torch.Generator().manual_seed(4)).bfloat16()
    expected = (x @ dense.t()).float()
    assert float((method.apply(layer, x).float() - expected).norm()) < 0.05 * float(expected.norm())
