"""``qwen36 draft-vocab``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

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
from gptq_hybrid.common.terminal import SETTINGS, Step, err, out, print_next
from gptq_hybrid.common.text import printable

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
    samples: Annotated[int, typer.Option(min=1, help="Most documents of each SOURCE.")] = 4096,
    max_length: Annotated[int, typer.Option(min=16, help="Tokens counted of each document.")] = 4096,
    as_json: AsJson = False,
) -> None:
    """Rank tokens by how often replies use them.

    Drafts over the first of them are cheaper. Counts the tokens of replies in conversations, and all tokens of
    plain text. Prints what share of held-out documents the first N tokens hold.

    Exit code 2: nothing could be read, or nothing was written.
    """
    specs = data or [DEFAULT_CALIBRATION]
    if not (checkpoint / "config.json").is_file():
        raise CheckpointError(checkpoint, "has no config.json", remedy="Give the folder of a checkpoint.")
    target = out_file or checkpoint / DRAFT_VOCAB_FILE
    refuse_unwritable("--out", target)
    for spec in specs:
        refuse_bad_calibration(spec)
    refuse_missing("transformers")
    vocab = _count(checkpoint, specs, samples, max_length)
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


def _count(checkpoint: Path, specs: Sequence[str], samples: int, max_length: int) -> DraftVocab:
    from transformers import AutoTokenizer

    from gptq_hybrid.draft_vocab import draft_vocab_from_rows

    try:
        tokenizer = AutoTokenizer.from_pretrained(checkpoint, local_files_only=True)
    except Exception as error:
        raise CheckpointError(
            checkpoint, f"has no tokenizer that can be loaded: {error}", remedy="Copy it from the original."
        ) from error
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
