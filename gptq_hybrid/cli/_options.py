"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

Reference = Annotated[str, typer.Argument(metavar="REF", help="Folder of the BF16 original, or its hub id.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Most documents of each domain.")]
MaxLength = Annotated[int, typer.Option(min=16, help="Tokens kept of each document.")]
Drafts = Annotated[int, typer.Option(min=0, max=8, help="MTP drafts to look at; 0 for none.")]
Device = Annotated[str | None, typer.Option(help="cuda, cuda:1 or cpu.  [default: the GPU if there is one]")]
BatchTokens = Annotated[
    int | None, typer.Option(min=16, help="Tokens run at once.  [default: 8192 on a GPU, 4096 on a CPU]")
]
Seed = Annotated[int, typer.Option(help="Seed for drawing documents and for the intervals.")]
Wide = Annotated[bool, typer.Option("--wide", help="Print 95 % intervals and percentiles too.")]
