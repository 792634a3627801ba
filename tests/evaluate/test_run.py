"""Whole evaluations of the trained model against rounded copies of itself."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import gptq_hybrid.evaluate._run as run_module
import gptq_hybrid.evaluate.passes as pass_module
from gptq_hybrid.common.errors import HybridError
from gptq_hybrid.evaluate import EvalRequest, Evaluation, evaluate
from gptq_hybrid.streaming import LayerStream
from tests.streaming.rounded import CHECKPOINT, HELDOUT, copy_with, read_config, read_tensors, rounded

DOMAINS = ("en", "python", "zh")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two documents in each of three domains."""
    folder = tmp_path_factory.mktemp("documents")
    for domain in DOMAINS:
        lines = (HELDOUT / f"{domain}.jsonl").read_text().splitlines()[:2]
        (folder / f"{domain}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    folder = tmp_path_factory.mktemp("copies")
    return {bits: rounded(folder / f"w{bits}", bits) for bits in (3, 4, 8)}


@pytest.fixture(scope="module")
def request_(data: Path, copies: dict[int, Path]) -> EvalRequest:
    return EvalRequest(CHECKPOINT, (copies[4],), (str(data),), max_length=96, drafts=2, device="cpu")


@pytest.fixture
def layers_run(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Layers that are computed, by the folder of the checkpoint."""
    names: list[str] = []

    class Counted(LayerStream):
        def run(self, **how: Any) -> list[torch.Tensor]:
            after = how.pop("after_layer")

            def noted(at: LayerStream) -> None:
                names.append(at.stack.weights.checkpoint.path.name)  # type: ignore[attr-defined]
                after(at)

            return super().run(after_layer=noted, **how)

    monkeypatch.setattr(pass_module, "LayerStream", Counted)
    return names


def rows(evaluation: Evaluation, number: int = 0) -> list[Any]:
    checkpoint = evaluation.checkpoints[number]
    return [checkpoint.overall, *checkpoint.domains]


def test_a_model_against_itself_loses_nothing(request_: EvalRequest) -> None:
    evaluation = evaluate(replace(request_, quantized=(CHECKPOINT,)))
    assert [row.domain for row in rows(evaluation)] == ["all", *DOMAINS]
    for row in rows(evaluation):
        assert row.kld_mean.value == row.kld_p999.value == 0
        assert row.top1.value == 1
        assert row.perplexity_ratio.value == 1
        assert row.perplexity.value == row.perplexity_ref.value > 1
        assert row.acceptance == row.acceptance_ref
        assert 1.5 < row.acceptance.length.value <= 3


def test_fewer_bits_lose_more_in_every_domain(request_: EvalRequest, copies: dict[int, Path]) -> None:
    evaluation = evaluate(replace(request_, quantized=tuple(copies.values())))
    assert [c.name for c in evaluation.checkpoints] == ["w3", "w4", "w8"]
    for three, four, eight in zip(*(rows(evaluation, i) for i in range(3)), strict=True):
        assert three.kld_mean.value > 2 * four.kld_mean.value > 20 * eight.kld_mean.value > 0
        assert three.top1.value < four.top1.value < eight.top1.value <= 1
        assert three.perplexity_ref == eight.perplexity_ref
        assert three.perplexity.value > eight.perplexity.value
    assert [(c.a, c.b) for c in evaluation.comparisons] == [("w3", "w4"), ("w3", "w8"), ("w4", "w8")]
    worse = {d.measure: d for d in evaluation.comparisons[0].overall.differences}["kld_mean"]
    assert worse.difference.value > 0


def test_perplexity_is_that_of_transformers(request_: EvalRequest, data: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(CHECKPOINT, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT)
    losses: list[torch.Tensor] = []
    for line in (data / "en.jsonl").read_text().splitlines():
        ids = torch.tensor([tokenizer(json.loads(line)["text"], add_special_tokens=False)["input_ids"][:96]])
        with torch.inference_mode():
            logits = model(input_ids=ids).logits[0, :-1]
        losses.append(torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none"))
    expected = float(torch.cat(losses).mean().exp())
    by_domain = {
        row.domain: row for row in rows(evaluate(replace(request_, quantized=(CHECKPOINT,), drafts=0)))
    }
    assert by_domain["en"].perplexity.value == pytest.approx(expected, rel=1e-4)
    assert by_domain["en"].tokens == 2 * 95
    assert by_domain["en"].acceptance is None


def test_the_size_of_batches_changes_nothing_that_shows(request_: EvalRequest) -> None:
    one, other = (rows(evaluate(replace(request_, batch_tokens=size))) for size in (96, 4096))
    for a, b in zip(one, other, strict=True):
        assert a.kld_mean.value == pytest.approx(b.kld_mean.value, rel=1e-3)
        assert a.perplexity.value == pytest.approx(b.perplexity.value, rel=1e-5)


def test_packed_head_and_mtp_are_measured_as_packed(request_: EvalRequest, tmp_path: Path) -> None:
    packed = rounded(tmp_path / "packed", 4, also=r"lm_head|mtp\.layers\.0\..*_proj|mtp\.fc")
    evaluation = evaluate(replace(request_, quantized=(packed, request_.quantized[0])))
    smaller, plain = rows(evaluation, 0)[0], rows(evaluation, 1)[0]
    assert smaller.kld_mean.value > plain.kld_mean.value
    assert smaller.acceptance.length.value != plain.acceptance.length.value


def test_a_text_only_checkpoint_is_held_against_a_multimodal_original(
    request_: EvalRequest, tmp_path: Path
) -> None:
    config = read_config()
    text = {**config["text_config"], "architectures": ["Qwen3_5ForCausalLM"], "tie_word_embeddings": False}
    tensors = {
        name.replace("model.language_model.", "model."): tensor
        for name, tensor in read_tensors(CHECKPOINT).items()
        if not name.startswith("model.visual.")
    }
    path = copy_with(tmp_path / "text-only", tensors, text)
    row = rows(evaluate(replace(request_, quantized=(path,))))[0]
    assert row.kld_mean.value == 0
    assert row.acceptance == row.acceptance_ref


def test_a_head_that_was_lost_shows_as_none(request_: EvalRequest, tmp_path: Path) -> None:
    tensors = {k: v for k, v in read_tensors(CHECKPOINT).items() if not k.startswith("mtp.")}
    path = copy_with(tmp_path / "headless", tensors, read_config())
    row = rows(evaluate(replace(request_, quantized=(path,))))[0]
    assert row.acceptance is None
    assert row.acceptance_ref.length.value > 1.5


def test_the_reference_runs_once_and_is_kept_for_the_next_checkpoint(
    request_: EvalRequest, copies: dict[int, Path], tmp_path: Path, layers_run: list[str]
) -> None:
    work = tmp_path / "work"
    evaluate(replace(request_, quantized=(copies[3], copies[4]), work=work))
    assert layers_run == ["checkpoint"] * 8 + ["w3"] * 8 + ["w4"] * 8
    assert len(list(work.iterdir())) == 1, "of the copies nothing stays"
    layers_run.clear()
    again = evaluate(replace(request_, work=work))
    assert layers_run == ["w4"] * 8
    assert again == evaluate(request_)


def test_damaged_states_of_the_reference_run_again_and_a_line_says_so(
    request_: EvalRequest, tmp_path: Path, layers_run: list[str]
) -> None:
    request = replace(request_, work=tmp_path / "work", drafts=0)
    undisturbed = evaluate(request)
    [file] = (tmp_path / "work").iterdir()
    content = bytearray(file.read_bytes())
    content[-len(content) // 2 :] = bytes(len(content[-len(content) // 2 :]))
    file.write_bytes(content)
    layers_run.clear()
    lines: list[str] = []
    assert evaluate(request, on_note=lines.append) == undisturbed
    assert layers_run == ["checkpoint"] * 8 + ["w4"] * 8
    assert [line.split(":")[0] for line in lines] == [f"The states in {file} are not used"]
    layers_run.clear()
    evaluate(request, on_note=lines.append)
    assert layers_run == ["w4"] * 8, "saved anew, they are used"
    assert len(lines) == 1


@pytest.mark.parametrize("change", ["checkpoint", "documents", "dtype", "drafts", "length"])
def test_states_of_something_else_are_not_used(
    request_: EvalRequest, data: Path, tmp_path: Path, layers_run: list[str], change: str
) -> None:
    reference = Path(shutil.copytree(CHECKPOINT, tmp_path / "checkpoint"))
    documents = Path(shutil.copytree(data, tmp_path / "documents"))
    request = replace(request_, reference=reference, data=(str(documents),), work=tmp_path / "work")
    evaluate(request)
    layers_run.clear()
    evaluate(request)
    assert layers_run == ["w4"] * 8, "unchanged, they are used"
    layers_run.clear()
    if change == "checkpoint":
        tensors = read_tensors(reference)
        shutil.rmtree(reference)
        name = "model.language_model.layers.0.mlp.down_proj.weight"
        tensors[name] = tensors[name] * 1.01
        copy_with(reference, tensors, read_config())
    elif change == "documents":
        (documents / "en.jsonl").write_text(
            json.dumps({"text": "A text of which nothing is known. " * 9}) + "\n"
        )
    elif change == "dtype":
        request = replace(request, dtype="bfloat16")
    elif change == "drafts":
        request = replace(request, drafts=1)
    else:
        request = replace(request, max_length=64)
    evaluation = evaluate(request)
    assert layers_run == ["checkpoint"] * 8 + ["w4"] * 8
    assert evaluation == evaluate(replace(request, work=None))


def test_a_disk_too_full_is_an_error_before_the_first_layer(
    request_: EvalRequest, tmp_path: Path, layers_run: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    free = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(run_module.shutil, "disk_usage", lambda _: free)
    with pytest.raises(HybridError, match="hidden states take up to"):
        evaluate(replace(request_, work=tmp_path / "work"))
    assert layers_run == []
    assert not (tmp_path / "work").exists()
    evaluate(request_)


def test_a_quantized_checkpoint_is_no_reference(request_: EvalRequest, copies: dict[int, Path]) -> None:
    with pytest.raises(HybridError, match="is quantized, so it cannot be the reference"):
        evaluate(replace(request_, reference=copies[8], quantized=(CHECKPOINT,)))


def test_a_tokenizer_that_cuts_chat_otherwise_is_found(
    request_: EvalRequest, tmp_path: Path, copies: dict[int, Path]
) -> None:
    """Rows of messages only, and a tokenizer that knows one special token less."""
    other = Path(shutil.copytree(copies[8], tmp_path / "other"))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        file = other / name
        file.write_text(file.read_text().replace("<|im_start|>", "<|im_begin|>"))
    chat = tmp_path / "chat.jsonl"
    messages = [
        {"role": "user", "content": "What is a hash table, and what is it for? Say it in one sentence."}
    ]
    chat.write_text(json.dumps({"messages": messages}) + "\n")
    with pytest.raises(HybridError, match="has another tokenizer than"):
        evaluate(replace(request_, quantized=(other,), data=(str(chat),)))
    assert evaluate(replace(request_, quantized=(copies[8],), data=(str(chat),)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"device": "tpu0"}, "device 'tpu0' is not known"),
        ({"device": "meta"}, "device 'meta' is neither a CPU nor a CUDA GPU"),
        ({"device": "cuda:9"}, "torch finds [0-8] GPUs"),
        ({"dtype": "float16"}, "dtype 'float16' is not known"),
        ({"quantized": ()}, "no quantized checkpoint"),
        ({"quantized": (CHECKPOINT, CHECKPOINT)}, "given twice"),
    ],
)
def test_a_request_that_cannot_be_met_is_refused(
    request_: EvalRequest, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(HybridError, match=message):
        evaluate(replace(request_, **change))


def test_checkpoints_are_called_by_what_tells_them_apart(tmp_path: Path) -> None:
    from gptq_hybrid.evaluate.inputs import label_checkpoints

    hub = tmp_path / "hub" / "models--Some-One--A--B" / "snapshots"
    paths = [tmp_path / "a" / "w4", tmp_path / "b" / "w4", tmp_path / "b" / "w8"]
    assert list(label_checkpoints(paths[1:])) == ["w4", "w8"]
    assert list(label_checkpoints(paths)) == ["a/w4", "b/w4", "b/w8"]
    assert list(label_checkpoints([hub / "0a1b2c", paths[0]])) == ["Some-One/A--B", "w4"]
    assert list(label_checkpoints([hub / "0a1b2c", hub / "3d4e5f"])) == [
        "Some-One/A--B@0a1b2c",
        "Some-One/A--B@3d4e5f",
    ]
    assert list(label_checkpoints([tmp_path / "x" / "reference"])) == ["x/reference"]


def test_settings_name_no_path_of_the_machine(request_: EvalRequest, data: Path) -> None:
    evaluation = evaluate(replace(request_, drafts=0))
    assert evaluation.settings["data"] == [data.name]
    assert evaluation.reference == "checkpoint"
    assert str(Path.home()) not in json.dumps(
        [evaluation.settings, evaluation.environment, evaluation.fingerprints]
    )
    assert evaluation.fingerprints.keys() == {"reference", "w4"}
    assert evaluation.settings["documents"] == 6
    assert evaluation.environment["torch"].split("+")[0] == torch.__version__.split("+")[0]


def test_rows_that_are_no_text_are_left_out_and_counted(
    request_: EvalRequest, data: Path, tmp_path: Path
) -> None:
    documents = Path(shutil.copytree(data, tmp_path / data.name))
    with (documents / "en.jsonl").open("a") as handle:
        handle.write(json.dumps({"text": "cut: \ud83d"}) + "\n")
    evaluation, clean = (evaluate(replace(request_, data=(str(d),), drafts=0)) for d in (documents, data))
    assert evaluation.settings.pop("left_out") == {"with_broken_text": 1}
    assert evaluation == clean


def test_progress_counts_every_layer(request_: EvalRequest) -> None:
    steps: list[tuple[str, int, int]] = []
    evaluate(request_, on_progress=lambda *step: steps.append(step))
    assert [done for what, done, total in steps if what == "w4: layers" and total == 8] == list(range(9))
    assert [(done, total) for what, done, total in steps if what == "w4: scores"][-1][0] == steps[-1][2]
