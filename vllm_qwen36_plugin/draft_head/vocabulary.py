"""Which tokens may be drafted: the likeliest of a list that comes with the checkpoint, from the user or with us."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gptq_hybrid.checkpoint import (
    DRAFT_VOCAB_FILE,
    DraftVocab,
    find_draft_vocab,
    read_draft_vocab,
)
from gptq_hybrid.common.errors import CheckpointError
from vllm_qwen36_plugin.errors import OptionsError

from .settings import USUAL_VOCABULARY, DraftSettings

if TYPE_CHECKING:
    import torch

_OPTION = '"qwen36.draft_vocab" in --additional-config'
_FILE = '"qwen36.draft_vocab_file" in --additional-config'
# Rows of a head of which vLLM's kernels take whole tiles.
_TILE = 64


def find_list(settings: DraftSettings, folder: Path) -> DraftVocab | None:
    """The list to cut; None where there is none and none was asked for.

    Raises:
        OptionsError: a number of tokens was asked for and there is no list, or the user's file is none.
        CheckpointError: the checkpoint's list is damaged or of another tokenizer.
    """
    if settings.vocabulary == 0:
        return None
    if settings.path is not None:
        try:
            return read_draft_vocab(folder, file=settings.path)
        except CheckpointError as error:
            raise OptionsError(f"{_FILE}: {error}") from error
    found = find_draft_vocab(folder)
    if found is None and settings.vocabulary is not None:
        raise OptionsError(
            f"{_OPTION} is {settings.vocabulary}, but {folder} has no {DRAFT_VOCAB_FILE} that says which tokens; "
            f"make one with qwen36 draft-vocab {folder}, or name a file in qwen36.draft_vocab_file"
        )
    return found


def ids_to_draft(settings: DraftSettings, found: DraftVocab | None) -> torch.Tensor | None:
    """Ids of the tokens that may be drafted, int64, ascending; None for all.

    Raises:
        OptionsError: too few tokens are asked for.
    """
    import torch

    if found is None:
        return None
    asked = USUAL_VOCABULARY if settings.vocabulary is None else settings.vocabulary
    count = min(asked, found.vocab_size) // _TILE * _TILE
    if count == 0:
        raise OptionsError(f"{_OPTION} must be 0, for all tokens, or at least {_TILE}, not {asked}")
    if count >= found.vocab_size // _TILE * _TILE:
        return None
    # Ascending: of equal logits the first wins then, as it does among all.
    return torch.tensor(sorted(found.ids(count)), dtype=torch.int64)
