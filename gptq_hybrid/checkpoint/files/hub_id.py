"""Names of models on the Hugging Face hub."""

from __future__ import annotations

import re

# The rules of huggingface_hub.utils.validate_repo_id, without importing it, and with an owner.
_NAME = r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?"
_REPO = re.compile(rf"{_NAME}/{_NAME}")
# What git allows in the name of a branch or tag; a commit is one too.
_REVISION = re.compile(r"(?![-/.])[^\x00-\x20\x7f~^:?*\[\\]{1,250}(?<![/.])")


def is_hub_id(text: str) -> bool:
    """Whether ``text`` is OWNER/NAME or OWNER/NAME@REVISION, as the hub's naming rules allow."""
    repo, at, revision = text.partition("@")
    return (
        _REPO.fullmatch(repo) is not None
        and "--" not in repo
        and ".." not in repo
        and not repo.endswith(".git")
        and (not at or (_REVISION.fullmatch(revision) is not None and ".." not in revision))
    )
