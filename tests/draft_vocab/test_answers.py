"""`qwen36 draft-vocab --server`: a list counted from what a running server answers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gptq_hybrid.calibration.prompts import SHIPPED_PROMPTS
from gptq_hybrid.checkpoint import DRAFT_VOCAB_FILE, read_draft_vocab
from gptq_hybrid.demo.builder import DemoCheckpoint
from gptq_hybrid.draft_vocab import Counts
from gptq_hybrid.draft_vocab.answers import recommended_sampling
from tests.command_line import Run, in_process
from tests.live.server import serving

from .answering import Answering, answering


@pytest.fixture(scope="module")
def tokenizer(original: DemoCheckpoint) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(original.path)


@pytest.fixture
def server(tokenizer: Any) -> Iterator[Answering]:
    with answering(tokenizer) as state:
        yield state


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a file of prompts."""
    rows = [{"prompt": f"Question number {n}?"} for n in range(6)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    return in_process(monkeypatch, capfd, "draft-vocab")


@pytest.fixture
def ask(run: Run) -> Run:
    def asked(folder: Path, url: str, *more: str) -> tuple[int, str, str]:
        prompts = () if "--prompts" in more else ("--prompts", "prompts.jsonl")
        return run(folder, "--server", url, "--out", "list.json", *prompts, *more)

    return asked


def test_the_list_holds_what_was_answered_and_what_ends_an_answer(
    original: DemoCheckpoint, server: Answering, here: Path, ask: Run
) -> None:
    code, out, err = ask(original.path, server.url, "--samples", "9", "--json")
    assert code == 0, err
    result = json.loads(out)["result"]
    vocab = read_draft_vocab(original.path, file=here / "list.json")
    assert vocab is not None
    assert set(server.ids()) <= set(vocab.ranked)
    counted = result["source"]["counted"]
    assert counted == {
        "documents": 9,
        "reply_tokens": 9 * len(server.ids()),
        "tokens_of_texts_without_roles": 0,
    }
    assert result["source"]["answers"]["prompts_answered"] == 6
    # A model's name may be a path of the machine that serves it.
    assert result["source"]["answers"]["model"] == "made"
    assert not (original.path / DRAFT_VOCAB_FILE).exists()


def test_prompts_are_asked_in_turn_with_the_sampling_that_is_recommended(
    original: DemoCheckpoint, server: Answering, here: Path, tmp_path: Path, damaged: Any, ask: Run
) -> None:
    folder = damaged(original.path)
    recommended = {"temperature": 0.6, "top_k": 20, "do_sample": True, "top_p": 0.95}
    (folder / "generation_config.json").write_text(json.dumps(recommended))
    code, _, err = ask(folder, server.url, "--samples", "12", "--max-length", "77")
    assert code == 0, err
    assert {path for path, _ in server.bodies} == {"/v1/chat/completions"}
    asked = [body["messages"][0]["content"] for _, body in server.bodies]
    assert sorted(asked) == sorted(f"Question number {n}?" for n in range(6) for _ in range(2))
    for _, body in server.bodies:
        assert (body["temperature"], body["top_k"], body["top_p"]) == (0.6, 20, 0.95)
        assert body["max_tokens"] == 77
        # A seed ends vLLM 0.32.0 on a CPU.
        assert not body.keys() & {"do_sample", "seed"}


def test_nothing_of_sampling_is_sent_where_nothing_is_recommended(tmp_path: Path) -> None:
    assert recommended_sampling(tmp_path) == {}
    (tmp_path / "generation_config.json").write_text('{"do_sample": false, "eos_token_id": [1, 2]}')
    assert recommended_sampling(tmp_path) == {}


def test_a_greedy_answer_is_asked_for_once(
    original: DemoCheckpoint, server: Answering, here: Path, ask: Run
) -> None:
    code, out, _ = ask(original.path, server.url, "--samples", "50", "--temperature", "0")
    assert code == 0
    assert len(server.bodies) == 6
    assert "6 documents" in out


def test_the_prompts_that_ship_are_asked_by_default(
    original: DemoCheckpoint, server: Answering, here: Path, ask: Run, run: Run
) -> None:
    code, _, err = ask(original.path, server.url, "--samples", "36", "--prompts", str(SHIPPED_PROMPTS))
    assert code == 0, err
    again = run(original.path, "--server", server.url, "--out", "list.json", "--samples", "36")
    assert again[0] == 0
    # All were there already: the same prompts.
    assert len(server.bodies) == 36
    assert "36 answers were in qwen36-answers.jsonl already" in again[2]


def test_the_same_command_goes_on_where_the_server_broke_off(
    original: DemoCheckpoint, server: Answering, here: Path, ask: Run
) -> None:
    server.most = 4
    arguments = ("--samples", "12", "--in-flight", "1")
    code, _, err = ask(original.path, server.url, *arguments)
    assert code == 2
    assert "4 answers are in qwen36-answers.jsonl; the same command goes on." in err
    assert not (here / "list.json").exists()
    # Killed while it wrote a line.
    with (here / "qwen36-answers.jsonl").open("a") as handle:
        handle.write('{"prompt": "0123')
    server.most = 1 << 30
    code, out, err = ask(original.path, server.url, *arguments)
    assert code == 0, err
    assert "12 documents" in out
    assert "4 answers were in qwen36-answers.jsonl already" in err
    assert len(server.bodies) == 12
    assert len((here / "qwen36-answers.jsonl").read_text().splitlines()) == 1 + 12


def test_answers_that_were_asked_for_otherwise_are_not_mixed(
    original: DemoCheckpoint, server: Answering, here: Path, ask: Run
) -> None:
    assert ask(original.path, server.url, "--samples", "6")[0] == 0
    code, _, err = ask(original.path, server.url, "--samples", "6", "--temperature", "0.7")
    assert code == 2
    assert "asked for otherwise: `sampling` was {} there, and is {'temperature': 0.7} now" in err
    (here / "mine.txt").write_text("my notes\n")
    code, _, err = ask(original.path, server.url, "--answers", "mine.txt")
    assert code == 2
    assert "mine.txt is no file of answers" in err
    assert (here / "mine.txt").read_text() == "my notes\n"


def test_a_server_that_tells_no_ids_has_its_text_tokenized(
    original: DemoCheckpoint, server: Answering, here: Path, ask: Run
) -> None:
    server.tells_ids = False
    code, out, err = ask(original.path, server.url, "--samples", "6", "--json")
    assert code == 0, err
    assert "The server does not tell token ids" in err
    counted = json.loads(out)["result"]["source"]["counted"]["reply_tokens"]
    assert counted == 6 * len(server.encode(server.reply))


def test_prompts_that_are_refused_are_left_out_and_said(
    original: DemoCheckpoint, server: Answering, here: Path, ask: Run
) -> None:
    server.refuses = "number 3"
    code, out, err = ask(original.path, server.url, "--samples", "12")
    assert code == 0, err
    assert "The server refused 1 prompts" in err
    assert "10 documents" in out
    server.refuses = "number"
    code, _, err = ask(original.path, server.url, "--answers", "other.jsonl")
    assert code == 2
    assert "the prompt is too long" in err


def test_another_vocabulary_is_refused_before_anything_is_asked(
    original: DemoCheckpoint, server: Answering, here: Path, ask: Run
) -> None:
    server.shift = 1
    code, _, err = ask(original.path, server.url)
    assert code == 2
    assert "whose vocabulary is not that of" in err
    assert server.bodies == []
    assert sorted(path.name for path in here.iterdir()) == ["prompts.jsonl"]


@pytest.mark.parametrize(
    ("pages", "words"),
    [
        ({"/metrics": "# TYPE node_load1 gauge\nnode_load1 0.5\n"}, "is no vLLM server"),
        ({"/metrics": 404}, "is no vLLM server"),
        ({"/metrics": "# TYPE a gauge\n", "/v1/models": 401}, "it wants an API key"),
    ],
)
def test_what_is_no_vllm_is_refused(
    original: DemoCheckpoint, here: Path, pages: dict[str, Any], words: str, ask: Run
) -> None:
    with serving(pages) as url:
        code, _, err = ask(original.path, url)
    assert code == 2
    assert words in err
    assert sorted(path.name for path in here.iterdir()) == ["prompts.jsonl"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--server", "http://127.0.0.1:9", "--data", "prompts.jsonl"), "a list is made of one of them"),
        (("--prompts", "prompts.jsonl"), "--prompts is for a server that is asked"),
        (("--server", "http://127.0.0.1:9"), "nothing answers at"),
        (("--server", "http://127.0.0.1:9", "--answers", "."), ". is a folder"),
    ],
)
def test_arguments_that_do_not_go_together_are_one_error(
    original: DemoCheckpoint, here: Path, arguments: tuple[str, ...], words: str, run: Run
) -> None:
    code, _, err = run(original.path, *arguments)
    assert code == 2
    assert words in err


def test_answers_to_one_prompt_are_held_out_together() -> None:
    counts = Counts(8)
    counts.add_answers([("one", [1, 2]), ("one", [3]), ("one", []), ("another", [1, 1])])
    assert counts.documents == 3
    assert counts.reply == 5
    by_fold = [set(fold.nonzero()[0].tolist()) for fold in counts.folds if fold.any()]
    assert {1, 2, 3} in by_fold or by_fold == [{1, 2, 3}]
