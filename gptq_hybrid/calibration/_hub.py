"""Data sets of the Hugging Face hub, streamed at one commit: only what is used is downloaded."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from gptq_hybrid.checkpoint.files import is_hub_id
from gptq_hybrid.common.errors import HybridError

from ._files import path_kind

_SPEC = re.compile(
    r"(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?"
    r"(?::(?:(?P<config>[\w.-]+)/)?(?P<split>[\w.-]+))?(?:#(?P<columns>[\w.-]+(?:=[\w.-]+(?:,[\w.-]+=[\w.-]+)*)?))?"
)
_ROLES = ("system", "user", "reasoning", "assistant")
_COLUMNS = ("text", "messages", "tools", *_ROLES)
# Rows that are downloaded before the first one is drawn. Files are also read in a random order. With documents of
# 100 KB the buffer takes 100 MB.
_SHUFFLE_BUFFER = 1_000
_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class HubSpec:
    """A parsed ``OWNER/NAME[@REVISION][:[CONFIG/]SPLIT][#COLUMNS]``.

    ``columns`` pairs a part of a row with the data set's column for it. Parts are ``text``, ``messages``,
    ``tools``, and the roles of a conversation of one turn: ``system``, ``user``, ``reasoning``, ``assistant``. A
    column given alone has the part ``""``.
    """

    repo: str
    revision: str | None
    config: str | None
    split: str
    columns: tuple[tuple[str, str], ...]


def is_hub_spec(spec: str) -> bool:
    """Whether ``spec`` has the form of a data set id and names nothing on this disk."""
    match = _SPEC.fullmatch(spec)
    return match is not None and is_hub_id(match["repo"]) and path_kind(spec) is None


def parse_hub_spec(spec: str) -> HubSpec:
    """Parse a data set id.

    Raises:
        HybridError: it has another form, or names a part that rows do not have.
    """
    match = _SPEC.fullmatch(spec)
    if match is None:
        raise HybridError(
            f"{spec!r} is not a data set id",
            remedy="OWNER/NAME[@REVISION][:[CONFIG/]SPLIT][#COLUMN or #user=COLUMN,assistant=COLUMN]",
        )
    columns = []
    for part in (match["columns"] or "").split(","):
        name, equals, column = part.partition("=")
        if equals and name not in _COLUMNS:
            raise HybridError(
                f"data set {spec!r}: a row has no {name!r}", remedy="Rows have: " + ", ".join(_COLUMNS) + "."
            )
        if part:
            # Whether a lone column is text or messages shows in the rows.
            columns.append((name, column) if equals else ("", name))
    return HubSpec(
        match["repo"], match["revision"], match["config"], match["split"] or "train", tuple(columns)
    )


@cache
def resolve_commit(repo: str, revision: str | None) -> dict[str, str]:
    """Ask the hub, once per process, for the commit of a data set and the licence on its card.

    Returns:
        ``revision``, and ``licence`` if the card names one.

    Raises:
        HybridError: the hub cannot be reached, or has no such data set.
    """
    from huggingface_hub import HfApi

    try:
        info = HfApi().dataset_info(repo, revision=revision, timeout=_SECONDS)
    except Exception as error:
        raise HybridError(
            f"data set {repo}{'@' + revision if revision else ''} cannot be found: {error}",
            remedy="Check the name, the network and, if it is gated, your token; or give a .jsonl file.",
        ) from error
    facts = {"revision": str(info.sha)}
    card: Any = info.card_data or {}
    licence = card.get("license")
    if licence:
        facts["licence"] = licence if isinstance(licence, str) else ", ".join(map(str, licence))
    return facts


def hub_rows(spec: str, count: int, seed: int) -> Iterator[dict[str, Any]]:
    """Read at most ``count`` rows of a data set, unchecked, in an order that ``seed`` decides.

    Their ``domain`` is the name of the data set.

    Raises:
        HybridError: it cannot be read.
    """
    source = parse_hub_spec(spec)
    commit = resolve_commit(source.repo, source.revision)["revision"]
    try:
        from datasets import load_dataset

        stream = load_dataset(source.repo, source.config, split=source.split, revision=commit, streaming=True)
        for number, row in enumerate(stream.shuffle(seed=seed, buffer_size=_SHUFFLE_BUFFER)):
            if number >= count:
                return
            yield {**map_columns(row, source.columns), "domain": source.repo.partition("/")[2]}
    except Exception as error:
        raise HybridError(
            f"data set {spec!r} cannot be read: {error}",
            remedy="Check its configurations, splits and columns on its page, and the network; "
            "or give a .jsonl file.",
        ) from error


def describe_hub(spec: str) -> dict[str, Any]:
    """Return commit and licence, for the manifest."""
    source = parse_hub_spec(spec)
    return dict(resolve_commit(source.repo, source.revision))


def map_columns(row: dict[str, Any], columns: tuple[tuple[str, str], ...]) -> dict[str, Any]:
    """Put the columns of ``row`` under the names that calibration rows have.

    Raises:
        HybridError: a column is not there.
    """
    if not columns:
        # A data set's own columns of these names mean something else.
        return {key: value for key, value in row.items() if key not in ("domain", "licence", "license")}
    parts: dict[str, Any] = {}
    for name, column in columns:
        if column not in row:
            raise HybridError(f"there is no column {column!r}; there are {', '.join(row)}")
        parts[name or ("messages" if isinstance(row[column], list) else "text")] = row[column]
    turns = {role: parts.pop(role) for role in _ROLES if role in parts}
    reasoning = turns.pop("reasoning", None)
    if turns:
        messages = [{"role": role, "content": content} for role, content in turns.items() if content]
        if reasoning and messages and messages[-1]["role"] == "assistant":
            messages[-1]["reasoning_content"] = reasoning
        parts["messages"] = messages
    return parts
