"""``qwen36 draft-vocab``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import TaskID

from gptq_hybrid.calibration import DEFAULT_CALIBRATION, load_calibration, refuse_bad_calibration
from gptq_hybrid.checkpoint import DRAFT_VOCAB_FILE, DraftVocab, write_draft_vocab
from gptq_hybrid.common.atomic import keep_previous
from gptq_hybrid.common.envelope import print_json
from gptq_hybrid.common.errors import CheckpointError, HybridError
from gptq_hybrid.common.extras import refuse_missing
from gptq_hybrid.common.options import AsJson
from gptq_hybrid.common.outputs import refuse_unwritable
from gptq_hybrid.common.progress import counting_bars
from gptq_hybrid.common.tables import report_table
from gptq_hybrid.common.terminal import SETTINGS, Step, err, note, out, print_next, warn
from gptq_hybrid.common.text import printable

if TYPE_CHECKING:
    from gptq_hybrid.draft_vocab.answers import Answered

_SERVER = "Count the answers of a running server"
_ANSWERS = Path("qwen36-answers.jsonl")
# Most documents of a source and tokens of each; most answers of a server and tokens of each.
_OF_TEXT, _OF_ANSWERS = (4096, 4096), (512, 1024)
# In bench/drafts a list that holds 98.4 % of a text keeps 0.989 of the tokens a step.
_ENOUGH = 0.98


def draft_vocab_command(
    checkpoint: Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="Folder with a tokenizer.")],
    data: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SOURCE",
            help="Anything that `quantize --calibration` takes: file, folder, hub data set or mix. Repeatable.  "
            f"[default: {DEFAULT_CALIBRATION}]",
        ),
    ] = None,
    out_file: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="FILE", help=f"Where the list goes.  [default: CHECKPOINT/{DRAFT_VOCAB_FILE}]"
        ),
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(
            min=1,
            help=f"Most documents of each SOURCE, or answers.  [default: {_OF_TEXT[0]}; {_OF_ANSWERS[0]} answers]",
            show_default=False,
        ),
    ] = None,
    max_length: Annotated[
        int | None,
        typer.Option(
            min=16,
            help=f"Most tokens of each.  [default: {_OF_TEXT[1]}; {_OF_ANSWERS[1]} of an answer]",
            show_default=False,
        ),
    ] = None,
    server: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="A vllm serve of this checkpoint, or of its original, which is asked.",
            rich_help_panel=_SERVER,
            show_default=False,
        ),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.jsonl",
            help="What to ask.  [default: 36 prompts in six domains]",
            rich_help_panel=_SERVER,
            show_default=False,
        ),
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            help="Of sampling.  [default: all that generation_config.json recommends]",
            rich_help_panel=_SERVER,
            show_default=False,
        ),
    ] = None,
    in_flight: Annotated[
        int, typer.Option(min=1, max=1024, help="Requests at once.", rich_help_panel=_SERVER)
    ] = 8,
    answers: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help=f"Where answers are kept, for the same command to go on from.  [default: {_ANSWERS}]",
            rich_help_panel=_SERVER,
            show_default=False,
        ),
    ] = None,
    api_key: Annotated[
        str | None,
        typer.Option(
            envvar="VLLM_API_KEY",
            help="Key of the server.",
            rich_help_panel=_SERVER,
            show_default=False,
            show_envvar=False,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Rank tokens by how often replies use them.

    Drafts over the first of them are cheaper. Counts the tokens of replies in conversations, and all tokens of
    plain text; with --server, those of answers that the model itself gives, thoughts included. Prints what share
    of held-out documents the first N tokens hold.

    Exit code 2: nothing could be read, or nothing was written.
    """
    if not (checkpoint / "config.json").is_file():
        raise CheckpointError(checkpoint, "has no config.json", remedy="Give the folder of a checkpoint.")
    target = out_file or checkpoint / DRAFT_VOCAB_FILE
    refuse_unwritable("--out", target)
    asked = None
    if server is None:
        given = {"--prompts": prompts, "--temperature": temperature, "--answers": answers}
        if alone := [name for name, value in given.items() if value is not None]:
            raise HybridError(
                f"{alone[0]} is for a server that is asked", remedy="Give its --server URL too."
            )
        specs = data or [DEFAULT_CALIBRATION]
        for spec in specs:
            refuse_bad_calibration(spec)
        refuse_missing("transformers")
        vocab = _count(checkpoint, specs, samples or _OF_TEXT[0], max_length or _OF_TEXT[1])
    else:
        if data:
            raise HybridError(
                "--data counts text, --server counts answers: a list is made of one of them",
                remedy="Leave one out.",
            )
        limits = samples or _OF_ANSWERS[0], max_length or _OF_ANSWERS[1]
        kept_in = answers or _ANSWERS
        refuse_unwritable("--answers", kept_in)
        refuse_missing("transformers")
        asked = _ask(checkpoint, server, prompts, temperature, limits, in_flight, kept_in, api_key)
        vocab = asked.vocab
    try:
        kept = keep_previous(target, vocab.as_text())
        write_draft_vocab(target, vocab)
    except OSError as error:
        raise HybridError(
            f"{target} cannot be written: {error.strerror or error}", remedy="Give another file with --out."
        ) from error
    steps = _next_steps(vocab, target, own_place=out_file is None)
    if as_json:
        result = {
            "file": str(target),
            "kept": None if kept is None else str(kept),
            "ids": len(vocab.ranked),
            "source": dict(vocab.source),
            "coverage": vocab.coverage,
        }
        print_json(result, steps=steps)
        return
    _print(vocab, target, kept)
    print_next(*steps)


def _next_steps(vocab: DraftVocab, target: Path, *, own_place: bool) -> list[Step]:
    size = next((n for n, share in vocab.coverage.items() if share >= _ENOUGH), 65536)
    if size >= vocab.vocab_size:
        return [Step("leave the list out: fewer tokens than all hold too little of a text")]
    setting: dict[str, Any] = {"draft_vocab": size}
    if not own_place:
        setting["draft_vocab_file"] = str(target)
    switch = json.dumps({"qwen36": setting})
    return [Step(f"serve with it: add --additional-config '{switch}' to your vllm serve line")]


def _tokenizer(checkpoint: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(checkpoint, local_files_only=True)
    except Exception as error:
        raise CheckpointError(
            checkpoint, f"has no tokenizer that can be loaded: {error}", remedy="Copy it from the original."
        ) from error


def _ask(
    checkpoint: Path,
    server: str,
    prompts: Path | None,
    temperature: float | None,
    limits: tuple[int, int],
    in_flight: int,
    kept_in: Path,
    api_key: str | None,
) -> Answered:
    from gptq_hybrid.calibration.prompts import SHIPPED_PROMPTS, read_prompts
    from gptq_hybrid.draft_vocab.answers import (
        Asking,
        connect,
        draft_vocab_from_answers,
        recommended_sampling,
        refuse_other_vocabulary,
    )

    sampling = recommended_sampling(checkpoint)
    if temperature is not None:
        sampling["temperature"] = temperature
    with closing(connect(server, api_key=api_key)) as endpoint:
        read_in = read_prompts(prompts or SHIPPED_PROMPTS, chat=endpoint.has_chat_template())
        asking = Asking(read_in, limits[0], limits[1], sampling, in_flight, kept_in)
        tokenizer = _tokenizer(checkpoint)
        refuse_other_vocabulary(endpoint, checkpoint, tokenizer)
        with counting_bars(err()) as progress:
            task = progress.add_task(f"answers of {printable(endpoint.model)}", total=None)

            def on_progress(done: int, total: int) -> None:
                progress.update(task, completed=done, total=total)

            asked = draft_vocab_from_answers(checkpoint, tokenizer, endpoint, asking, on_progress)
    if asked.taken:
        note(f"{asked.taken:,} answers were in {kept_in} already.")
    if asked.refused:
        warn(f"The server refused {asked.refused:,} prompts, such as those longer than it takes.")
    if asked.tokenized:
        warn(
            f"The server does not tell token ids: the text of {asked.tokenized:,} answers was tokenized anew, "
            "without the tokens that a parser took out."
        )
    return asked


def _count(checkpoint: Path, specs: Sequence[str], samples: int, max_length: int) -> DraftVocab:
    from gptq_hybrid.draft_vocab import draft_vocab_from_rows

    tokenizer = _tokenizer(checkpoint)
    rows: list[dict[str, list[int]]] = []
    manifests: list[Mapping[str, Any]] = []
    with counting_bars(err()) as progress:
        for spec in specs:
            task = progress.add_task(printable(spec), total=None)

            def on_progress(done: int, total: int, task: TaskID = task) -> None:
                progress.update(task, completed=done, total=total)

            calibration = load_calibration(
                spec, tokenizer, samples=samples, max_length=max_length, on_progress=on_progress
            )
            # A source may have fewer documents than were asked for.
            progress.finish(task)
            rows += calibration.rows
            manifests.append(calibration.manifest)
    vocab = draft_vocab_from_rows(checkpoint, tokenizer, rows, manifests)
    if vocab is None:
        raise HybridError(
            "the text has no reply to count",
            remedy="Give conversations with replies, or plain text, or count more of each with --max-length.",
        )
    return vocab


def _print(vocab: DraftVocab, target: Path, kept: Path | None) -> None:
    counted = vocab.source["counted"]
    screen = out()
    screen.say(
        f"{target}: {len(vocab.ranked):,} of {vocab.vocab_size:,} tokens ranked, by "
        f"{counted['documents']:,} documents: {counted['reply_tokens']:,} tokens of replies, "
        f"{counted['tokens_of_texts_without_roles']:,} of texts without roles."
    )
    if kept is not None:
        screen.say(f"The list that was there before is in {kept}.")
    if SETTINGS.quiet:
        return
    if vocab.coverage:
        table = report_table("", "Measured on documents that were not counted for the ranking")
        table.add_column("drafts over\nthe first", justify="right")
        table.add_column("can propose so much\nof a text's tokens", justify="right")
        for n, share in vocab.coverage.items():
            table.add_row(f"{n:,}", f"{share:.2%}")
        screen.print(table)
    else:
        screen.say("Too few documents to hold some out and measure what the first N tokens hold.")
