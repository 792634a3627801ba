"""Data sets of the hub, streamed: only what is used is downloaded, at one commit."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from gptq_hybrid.checkpoint.files import is_hub_id
from gptq_hybrid.common.errors import HybridError

from ._files import on_disk

_SPEC = re.compile(
    r"(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?"
    r"(?::(?:(?P<config>[\w.-]+)/)?(?P<split>[\w.-]+))?(?:#(?P<columns>[\w.-]+(?:=[\w.-]+(?:,[\w.-]+=[\w.-]+)*)?))?"
)
_ROLES = ("system", "user", "reasoning", "assistant")
_COLUMNS = ("text", "messages", "tools", *_ROLES)
# Rows downloaded before the first is drawn; files are drawn from in a random order besides. Documents of
# 100 KB make this 100 MB.
_SHUFFLE_BUFFER = 1_000
_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class HubSpec:
    """``OWNER/NAME[@REVISION][:[CONFIG/]SPLIT][#COLUMNS]``.

    ``columns`` maps what a row is made of (``text``, ``messages``, ``tools``, or a role of a conversation of
    one turn: ``system``, ``user``, ``reasoning``, ``assistant``) to the data set's column.
    """

    repo: str
    revision: str | None
    config: str | None
    split: str
    columns: tuple[tuple[str, str], ...]


def is_hub_spec(spec: str) -> bool:
    """Whether ``spec`` has the form of a data set id and is not something on this disk."""
    match = _SPEC.fullmatch(spec)
    return match is not None and is_hub_id(match["repo"]) and on_disk(spec) is None


def parse_hub_spec(spec: str) -> HubSpec:
    """Take a data set id apart.

    Raises:
        HybridError: it names a part of a row that there is not.
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
            # Of a lone column the rows themselves say whether it is text.
            columns.append((name, column) if equals else ("", name))
    return HubSpec(
        match["repo"], match["revision"], match["config"], match["split"] or "train", tuple(columns)
    )


@cache
def resolve(repo: str, revision: str | None) -> dict[str, str]:
    """The commit of a data set, and its licence where its card names one; asked once a process.

    Raises:
        HybridError: the hub cannot be asked, or knows no such data set.
    """
    from huggingface_hub import HfApi

    try:
        info = HfApi().dataset_info(repo, revision=revision, timeout=_SECONDS)
    except Exception as error:
        raise HybridError(
            f"data set {repo}{'@' + revision if revision else ''} cannot be found: {error}",
            remedy="Check the name, the network and, if it is gated, your token; or give a .jsonl file.",
        ) from error
    found = {"revision": str(info.sha)}
    card: Any = info.card_data or {}
    licence = card.get("license")
    if licence:
        found["licence"] = licence if isinstance(licence, str) else ", ".join(map(str, licence))
    return found


def hub_rows(spec: str, count: int, seed: int) -> Iterator[dict[str, Any]]:
    """At most ``count`` rows of a data set, unchecked, in an order of ``seed``; their domain is its name.

    Raises:
        HybridError: it cannot be read.
    """
    wanted = parse_hub_spec(spec)
    commit = resolve(wanted.repo, wanted.revision)["revision"]
    try:
        from datasets import load_dataset

        stream = load_dataset(wanted.repo, wanted.config, split=wanted.split, revision=commit, streaming=True)
        for number, row in enumerate(stream.shuffle(seed=seed, buffer_size=_SHUFFLE_BUFFER)):
            if number >= count:
                return
            yield {**mapped(row, wanted.columns), "domain": wanted.repo.partition("/")[2]}
    except Exception as error:
        raise HybridError(
            f"data set {spec!r} cannot be read: {error}",
            remedy="Check its configurations, splits and columns on its page, and the network; "
            "or give a .jsonl file.",
        ) from error


def describe_hub(spec: str) -> dict[str, Any]:
    """Commit and licence, for the manifest."""
    wanted = parse_hub_spec(spec)
    return dict(resolve(wanted.repo, wanted.revision))


def mapped(row: dict[str, Any], columns: tuple[tuple[str, str], ...]) -> dict[str, Any]:
    """``row`` with its columns under the names that calibration rows have.

    Raises:
        HybridError: a column is not there.
    """
    if not columns:
        # A data set's own columns of these names are about something else.
        return {key: value for key, value in row.items() if key not in ("domain", "licence", "license")}
    found: dict[str, Any] = {}
    for name, column in columns:
        if column not in row:
            raise HybridError(f"there is no column {column!r}; there are {', '.join(row)}")
        found[name or ("messages" if isinstance(row[column], list) else "text")] = row[column]
    turns = {role: found.pop(role) for role in _ROLES if role in found}
    reasoning = turns.pop("reasoning", None)
    if turns:
        found["messages"] = [{"role": role, "content": content} for role, content in turns.items() if content]
        if reasoning and found["messages"] and found["messages"][-1]["role"] == "assistant":
            found["messages"][-1]["reasoning_content"] = reasoning
    return found
