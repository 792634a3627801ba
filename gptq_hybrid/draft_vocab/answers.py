"""Have a running server answer prompts, and keep the tokens of each answer as it comes."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path, PurePath
from queue import SimpleQueue
from typing import Any

from gptq_hybrid.calibration.prompts import Prompt, Prompts
from gptq_hybrid.checkpoint import DraftVocab
from gptq_hybrid.checkpoint.draft_vocab_file import read_vocab_size
from gptq_hybrid.checkpoint.files import LocalFiles
from gptq_hybrid.checkpoint.json_files import fetch_json_object
from gptq_hybrid.checkpoint.vocabulary import read_vocabulary
from gptq_hybrid.common.errors import HybridError
from gptq_hybrid.live import read, scrape
from gptq_hybrid.live.endpoint import Answer, Endpoint, RefusedError

from ._build import make_draft_vocab
from ._count import Counts

OnProgress = Callable[[int, int], None]
# What a request can say of sampling, and vLLM takes from generation_config.json where it says nothing.
_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
_PROBED = 128
_KIND, _FORMAT = "qwen36 answers", 1


@dataclass(frozen=True)
class Asking:
    """What to ask of a server.

    Attributes:
        prompts: what is asked, one after the other; then all of them again.
        samples: how many answers; at temperature 0 no more than there are prompts.
        max_tokens: most tokens of an answer.
        sampling: ``temperature`` and the like; empty for the server's defaults.
        in_flight: requests at once.
        kept: JSONL file of the answers; those it holds already are not asked for again.
    """

    prompts: Prompts
    samples: int
    max_tokens: int
    sampling: Mapping[str, float]
    in_flight: int
    kept: Path

    def jobs(self) -> list[tuple[Prompt, int]]:
        """All requests: a prompt, and how many times it was asked before."""
        prompts = self.prompts.prompts
        count = min(self.samples, len(prompts)) if self.sampling.get("temperature") == 0 else self.samples
        return [(prompts[at % len(prompts)], at // len(prompts)) for at in range(count)]


@dataclass(frozen=True)
class Answered:
    """A list, and how it came about.

    Attributes:
        vocab: the list.
        answers: how many were counted.
        taken: of these, how many the file held before.
        refused: prompts that the server refused, such as those longer than it takes.
        tokenized: answers whose tokens the server did not tell, so that their text was tokenized anew.
    """

    vocab: DraftVocab
    answers: int
    taken: int
    refused: int
    tokenized: int


def connect(url: str, *, api_key: str | None = None) -> Endpoint:
    """Find a running vLLM.

    Raises:
        HybridError: nothing answers there, what answers is no vLLM, or it wants a key.
    """
    scraped = scrape(url, api_key=api_key)
    reading = read(scraped)
    if not scraped.models or reading.model is None:
        why = reading.models_problem or "it lists no model"
        raise HybridError(
            f"{scraped.url} is no vLLM server that can be asked: of /v1/models, {why}",
            remedy="Give the address of `vllm serve` itself, and its --api-key if it wants one.",
        )
    return Endpoint(scraped.url, reading.model, api_key)


def recommended_sampling(folder: str | Path) -> dict[str, float]:
    """Return what ``generation_config.json`` of a checkpoint recommends; empty if it recommends nothing."""
    files = LocalFiles(Path(folder))
    names = files.names()
    if names is not None and "generation_config.json" not in names:
        return {}
    config = fetch_json_object(files, "generation_config.json")
    return {
        name: config[name]
        for name in _SAMPLING
        if isinstance(config.get(name), int | float) and not isinstance(config[name], bool)
    }


def refuse_other_vocabulary(endpoint: Endpoint, folder: str | Path, tokenizer: Any) -> None:
    """Refuse a server whose tokenizer is not that of a checkpoint: ids of one mean nothing in the other.

    A text made of tokens from all over the vocabulary is tokenized by both.

    Raises:
        HybridError: the ids differ, or the server has no ``/tokenize``.
    """
    size = read_vocabulary(LocalFiles(Path(folder))).size
    text = tokenizer.decode(range(0, size, max(1, size // _PROBED))) + "<|im_end|>"
    # Half a character of one token would be replaced; both tokenize the same text, whatever it is.
    here, there = tokenizer(text, add_special_tokens=False)["input_ids"], endpoint.encode(text)
    if list(here) != there:
        raise HybridError(
            f"{endpoint.url} serves {endpoint.model!r}, whose vocabulary is not that of {folder}: "
            f"of a text that is {len(here)} tokens here, it makes {len(there)} others",
            remedy="Serve this checkpoint, or the original that it was quantized from.",
        )


def draft_vocab_from_answers(
    folder: str | Path,
    tokenizer: Any,
    endpoint: Endpoint,
    asking: Asking,
    on_progress: OnProgress = lambda done, total: None,
) -> Answered:
    """Make the draft vocabulary of a checkpoint from what a server answers.

    Args:
        folder: the checkpoint.
        tokenizer: its transformers tokenizer.
        endpoint: a server with the same vocabulary.
        asking: what to ask.
        on_progress: called with the answers so far and those asked for.

    Raises:
        HybridError: the server broke off, what the file holds was asked otherwise, or nothing was answered.
    """
    folder = Path(folder)
    files = LocalFiles(folder)
    size = read_vocab_size(files)
    kept = _Kept.open(asking, endpoint.model, read_vocabulary(files).sha256)
    jobs = asking.jobs()
    missing = [job for job in jobs if _key(*job) not in kept.rows]
    taken = len(jobs) - len(missing)
    refused, first_refusal = set[str](), None
    on_progress(taken, len(jobs))
    for done, (job, outcome) in enumerate(_ask_all(endpoint, missing, asking), taken + 1):
        if isinstance(outcome, RefusedError):
            refused.add(_digest(job[0]))
            first_refusal = first_refusal or outcome
        elif isinstance(outcome, Exception):
            raise HybridError(
                outcome.message if isinstance(outcome, HybridError) else str(outcome),
                remedy=f"{len(kept.rows)} answers are in {asking.kept}; the same command goes on.",
            ) from outcome
        else:
            kept.add(job, outcome, tokenizer, size, endpoint)
        on_progress(done, len(jobs))
    rows = [kept.rows[key] for key in (_key(*job) for job in jobs) if key in kept.rows]
    counts = Counts(size)
    counts.add_answers((row["prompt"], row["ids"]) for row in rows)
    if not counts.tokens:
        if first_refusal is not None:
            raise first_refusal
        raise HybridError(f"{endpoint.url} gave empty answers alone", remedy="Give other --prompts.")
    vocab = make_draft_vocab(
        folder,
        counts,
        {
            "answers": {
                "model": _public(endpoint.model),
                "prompts": asking.prompts.path.name,
                "prompts_sha256": asking.prompts.sha256,
                "prompts_answered": len({row["prompt"] for row in rows}),
                "max_tokens": asking.max_tokens,
                "sampling": dict(asking.sampling),
            }
        },
    )
    tokenized = sum(bool(row.get("tokenized")) for row in rows)
    return Answered(vocab, counts.documents, taken, len(refused), tokenized)


Outcome = Answer | Exception


def _ask_all(
    endpoint: Endpoint, jobs: list[tuple[Prompt, int]], asking: Asking
) -> Iterator[tuple[tuple[Prompt, int], Outcome]]:
    """Yield what came of each job, in the order in which they end."""
    waiting, ended = jobs[::-1], SimpleQueue[tuple[tuple[Prompt, int], Outcome]]()
    lock = threading.Lock()

    def work() -> None:
        while True:
            with lock:
                if not waiting:
                    return
                job = waiting.pop()
            try:
                # Without a seed: vLLM's CPU build (0.32.0) ends at one, with "CPU Generator does not use offset".
                answer = endpoint.answer(job[0], max_tokens=asking.max_tokens, **asking.sampling)
                ended.put((job, answer))
            except RefusedError as error:
                ended.put((job, error))
            except Exception as error:  # noqa: BLE001 - raised by who reads the queue
                with lock:
                    waiting.clear()
                ended.put((job, error))

    # Daemons, so that Ctrl-C need not wait for answers of a thousand tokens.
    for _ in range(min(asking.in_flight, len(jobs))):
        threading.Thread(target=work, daemon=True).start()
    for _ in jobs:
        yield ended.get()


@dataclass
class _Kept:
    """Answers of a JSONL file: a first line that says how they were asked for, then one a line."""

    path: Path
    rows: dict[tuple[str, int], dict[str, Any]]

    @classmethod
    def open(cls, asking: Asking, model: str, tokenizer: str) -> _Kept:
        head = {
            "kind": _KIND,
            "format": _FORMAT,
            "model": model,
            "tokenizer": tokenizer,
            "max_tokens": asking.max_tokens,
            "sampling": dict(asking.sampling),
        }
        path = asking.kept
        if not path.exists() or not path.stat().st_size:
            try:
                path.write_text(json.dumps(head) + "\n", encoding="utf-8")
            except OSError as error:
                raise HybridError(
                    f"{path} cannot be written: {error.strerror or error}",
                    remedy="Give another --answers FILE.",
                ) from error
            return cls(path, {})
        return cls(path, _read_rows(path, head))

    def add(
        self, job: tuple[Prompt, int], answer: Answer, tokenizer: Any, size: int, endpoint: Endpoint
    ) -> None:
        row: dict[str, Any] = {"prompt": _digest(job[0]), "draw": job[1]}
        if answer.ids is None:
            row |= {"ids": tokenizer(answer.text, add_special_tokens=False)["input_ids"], "tokenized": True}
        else:
            row["ids"] = list(answer.ids)
        if max(row["ids"], default=0) >= size:
            raise HybridError(
                f"{endpoint.url} answered with token {max(row['ids'])}; this checkpoint has {size:,}",
                remedy="Serve this checkpoint, or the original that it was quantized from.",
            )
        with self.path.open("a", encoding="utf-8") as handle:
            handle.write(json.dumps(row) + "\n")
        self.rows[row["prompt"], row["draw"]] = row


def _read_rows(path: Path, head: Mapping[str, Any]) -> dict[tuple[str, int], dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8")
        # A killed process leaves half a line at the end.
        first, *lines = text[: text.rfind("\n") + 1].splitlines()
        found = json.loads(first)
        if found.get("kind") != _KIND or found.get("format") != _FORMAT:
            raise ValueError("its first line is another")
        rows = {(row["prompt"], row["draw"]): row for row in map(json.loads, lines)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise HybridError(
            f"{path} is no file of answers: {error}", remedy="Give another with --answers FILE."
        ) from error
    for name, value in head.items():
        if found.get(name) != value:
            raise HybridError(
                f"{path} holds answers that were asked for otherwise: `{name}` was {found.get(name)!r} there, "
                f"and is {value!r} now",
                remedy="Ask as before, or give another file with --answers.",
            )
    if not text.endswith("\n"):
        path.write_text(text[: text.rfind("\n") + 1], encoding="utf-8")
    return rows


def _digest(prompt: Prompt) -> str:
    body = json.dumps(prompt.body(), sort_keys=True, ensure_ascii=False)
    return sha256(body.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _key(prompt: Prompt, draw: int) -> tuple[str, int]:
    return _digest(prompt), draw


def _public(model: str) -> str:
    """A model's name without the folders of the machine that serves it."""
    return PurePath(model).name if model.startswith(("/", "~", ".")) else model
