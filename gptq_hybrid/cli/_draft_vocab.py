"""``qwen36 draft-vocab``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import TaskID

from gptq_hybrid.calibration import DEFAULT_CALIBRATION, load_calibration
from gptq_hybrid.checkpoint import DRAFT_VOCAB_FILE, DraftVocab, write_draft_vocab
from gptq_hybrid.common.errors import CheckpointError, HybridError
from gptq_hybrid.common.options import AsJson
from gptq_hybrid.common.progress import counting_bars
from gptq_hybrid.common.tables import plain, report_table


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
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help=f"Where the list goes.  [default: CHECKPOINT/{DRAFT_VOCAB_FILE}]"),
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Most documents of each SOURCE.")] = 4096,
    max_length: Annotated[int, typer.Option(min=16, help="Tokens counted of each document.")] = 4096,
    as_json: AsJson = False,
) -> None:
    """Rank tokens by how often replies use them, for drafts over few tokens.

    Counts the tokens of replies in conversations, and all tokens of plain text. Prints what share of held-out
    documents the first N tokens hold. Exit code 2: nothing could be read, or nothing was written.
    """
    vocab = _count(checkpoint, data or [DEFAULT_CALIBRATION], samples, max_length, quiet=as_json)
    target = out or checkpoint / DRAFT_VOCAB_FILE
    try:
        write_draft_vocab(target, vocab)
    except OSError as error:
        raise HybridError(
            f"{target} cannot be written: {error.strerror or error}", remedy="Give another file with --out."
        ) from error
    if as_json:
        report = {
            "file": str(target),
            "ids": len(vocab.ranked),
            "source": dict(vocab.source),
            "coverage": vocab.coverage,
        }
        typer.echo(json.dumps(report, indent=2, ensure_ascii=False))
    else:
        _print(vocab, target)


def _count(
    checkpoint: Path, specs: Sequence[str], samples: int, max_length: int, *, quiet: bool
) -> DraftVocab:
    from transformers import AutoTokenizer

    from gptq_hybrid.draft_vocab import draft_vocab_from_rows

    if not (checkpoint / "config.json").is_file():
        raise CheckpointError(checkpoint, "has no config.json", remedy="Give the folder of a checkpoint.")
    try:
        tokenizer = AutoTokenizer.from_pretrained(checkpoint, local_files_only=True)
    except Exception as error:
        raise CheckpointError(
            checkpoint, f"has no tokenizer that can be loaded: {error}", remedy="Copy it from the original."
        ) from error
    rows: list[dict[str, list[int]]] = []
    manifests: list[Mapping[str, Any]] = []
    with counting_bars(Console(stderr=True, quiet=quiet)) as progress:
        for spec in specs:
            task = progress.add_task(plain(spec), total=None)

            def on_progress(done: int, total: int, task: TaskID = task) -> None:
                progress.update(task, completed=done, total=total)

            calibration = load_calibration(
                spec, tokenizer, samples=samples, max_length=max_length, on_progress=on_progress
            )
            rows += calibration.rows
            manifests.append(calibration.manifest)
    vocab = draft_vocab_from_rows(checkpoint, tokenizer, rows, manifests)
    if vocab is None:
        raise HybridError(
            "the text has no reply to count",
            remedy="Give conversations with replies, or plain text, or count more of each with --max-length.",
        )
    return vocab


def _print(vocab: DraftVocab, target: Path) -> None:
    counted = vocab.source["counted"]
    console = Console()
    lines = [
        f"{target}: {len(vocab.ranked):,} of {vocab.vocab_size:,} tokens ranked, by "
        f"{counted['documents']:,} documents: {counted['reply_tokens']:,} tokens of replies, "
        f"{counted['tokens_of_texts_without_roles']:,} of texts without roles."
    ]
    if vocab.coverage:
        table = report_table("", "")
        table.add_column("first", justify="right")
        table.add_column("hold of held-out documents", justify="right")
        for n, share in vocab.coverage.items():
            table.add_row(f"{n:,}", f"{share:.2%}")
        console.print(table)
    else:
        lines.append("Too few documents to hold some out and measure what the first N tokens hold.")
    for line in lines:
        console.print(plain(line), highlight=False, soft_wrap=True)
