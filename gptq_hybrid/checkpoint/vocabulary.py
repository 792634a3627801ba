"""Read what tells two tokenizers apart: their map from tokens to ids."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from operator import itemgetter
from typing import Any

from gptq_hybrid.common.errors import CheckpointError

from .files import Files, file_label
from .json_files import fetch_json_object

_TOKENIZER, _VOCAB, _CONFIG = "tokenizer.json", "vocab.json", "tokenizer_config.json"


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """A tokenizer's learned tokens and those added to them.

    Attributes:
        sha256: of the learned tokens in the order of their ids, one line ``ID TOKEN`` each, in UTF-8. Added
            tokens are left out: tools write them to one file, to another or to both, and a model tuned with one
            more keeps the ids of all others.
        size: number of learned tokens.
        added: id by added token, such as ``<|im_end|>``.
    """

    sha256: str
    size: int
    added: Mapping[str, int]


def read_vocabulary(files: Files) -> Vocabulary:
    """Read the vocabulary of ``tokenizer.json`` (20 MB and 0.5 s at 27B), or of ``vocab.json`` without one.

    Raises:
        CheckpointError: neither file exists, or it holds no map from tokens to ids.
    """
    names = files.names()
    if names is None or _TOKENIZER in names or _VOCAB not in names:
        name, content = _TOKENIZER, fetch_json_object(files, _TOKENIZER)
        model, listed = content.get("model"), content.get("added_tokens")
        learned = model.get("vocab") if isinstance(model, dict) else None
    else:
        name, listed = _VOCAB, None
        learned = fetch_json_object(files, _VOCAB)
    if not isinstance(learned, dict) or not learned or not all(type(i) is int for i in learned.values()):
        raise CheckpointError(
            file_label(files, name), "holds no map from tokens to ids, as BPE tokenizers have"
        )
    added = {**_configured(files, names), **_listed(listed)}
    by_id = sorted(((token, i) for token, i in learned.items() if token not in added), key=itemgetter(1))
    lines = "".join(f"{i} {token}\n" for token, i in by_id)
    return Vocabulary(sha256(lines.encode("utf-8", "surrogatepass")).hexdigest(), len(by_id), added)


def end_tokens(files: Files, config: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the ids a reply ends with: ``eos_token_id`` of the generation config, then of ``config.json``."""
    owners: list[Mapping[str, Any]] = []
    names = files.names()
    if names is None or "generation_config.json" in names:
        owners.append(fetch_json_object(files, "generation_config.json"))
    text = config.get("text_config")
    owners += [config, text if isinstance(text, Mapping) else {}]
    token_ids: list[int] = []
    for owner in owners:
        ids = owner.get("eos_token_id")
        token_ids += [i for i in (ids if isinstance(ids, list) else [ids]) if type(i) is int and i >= 0]
    return tuple(dict.fromkeys(token_ids))


def _listed(added: Any) -> dict[str, int]:
    """Added tokens of ``tokenizer.json``."""
    entries = [entry for entry in added if isinstance(entry, dict)] if isinstance(added, list) else []
    return _named((entry.get("content"), entry.get("id")) for entry in entries)


def _configured(files: Files, names: tuple[str, ...] | None) -> dict[str, int]:
    """Added tokens of ``tokenizer_config.json``."""
    if names is not None and _CONFIG not in names:
        return {}
    decoder = fetch_json_object(files, _CONFIG).get("added_tokens_decoder")
    entries = decoder.items() if isinstance(decoder, dict) else ()
    return _named(
        (entry.get("content"), int(key))
        for key, entry in entries
        if isinstance(entry, dict) and re.fullmatch(r"[0-9]{1,9}", key)
    )


def _named(pairs: Any) -> dict[str, int]:
    return {token: i for token, i in pairs if isinstance(token, str) and type(i) is int}
