"""Which tokens may be drafted: the likeliest of a list that the checkpoint has, the user gives, or we ship."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptq_hybrid.checkpoint import (
    DRAFT_VOCAB_FILE,
    DraftVocab,
    find_draft_vocab,
    read_draft_vocab,
)
from gptq_hybrid.common.errors import CheckpointError
from vllm_qwen36_plugin.errors import OptionsError
from vllm_qwen36_plugin.start import open_local

from .settings import USUAL_VOCABULARY, DraftSettings

if TYPE_CHECKING:
    import torch

_OPTION = '"qwen36.draft_vocab" in --additional-config'
_FILE = '"qwen36.draft_vocab_file" in --additional-config'
# vLLM's kernels take whole tiles of a head's channels.
_TILE = 64


def draft_list(vllm_config: Any, settings: DraftSettings) -> DraftVocab | None:
    """Return the list of tokens for the served checkpoint; None if it has none or is not on this machine yet.

    Raises:
        OptionsError: a number of tokens was asked for and there is no list, or the user's file is none.
        CheckpointError: the checkpoint's list is damaged or of another tokenizer.
    """
    if settings.vocabulary == 0:
        return None
    model = vllm_config.model_config
    checkpoint = open_local(str(model.model), model.revision, vllm_config.load_config.download_dir)
    folder = None if checkpoint is None else checkpoint.path
    return None if folder is None else _list_in(folder, settings)


def _list_in(folder: Path, settings: DraftSettings) -> DraftVocab | None:
    if settings.list_file is not None:
        try:
            return read_draft_vocab(folder, file=settings.list_file)
        except CheckpointError as error:
            raise OptionsError(f"{_FILE}: {error}") from error
    ranking = find_draft_vocab(folder)
    if ranking is None and settings.vocabulary is not None:
        raise OptionsError(
            f"{_OPTION} is {settings.vocabulary}, but {folder} has no {DRAFT_VOCAB_FILE} that says which tokens; "
            f"make one with qwen36 draft-vocab {folder}, or name a file in qwen36.draft_vocab_file"
        )
    return ranking


def ids_to_draft(settings: DraftSettings, ranking: DraftVocab | None, ranks: int = 1) -> torch.Tensor | None:
    """Return the ids of the tokens that may be drafted, int64, ascending; None for all.

    With several ranks their number divides into parts of whole tiles.

    Raises:
        OptionsError: too few tokens are asked for.
    """
    import torch

    if ranking is None:
        return None
    tokens = USUAL_VOCABULARY if settings.vocabulary is None else settings.vocabulary
    tile = _TILE * ranks
    count = min(tokens, ranking.vocab_size) // tile * tile
    if count == 0:
        over = f" over {ranks} GPUs" if ranks > 1 else ""
        raise OptionsError(f"{_OPTION} must be 0, for all tokens, or at least {tile}{over}, not {tokens}")
    if count >= ranking.vocab_size // tile * tile:
        return None
    # Ascending, so that of equal logits the first wins, as it does among all tokens.
    return torch.tensor(sorted(ranking.ids(count)), dtype=torch.int64)
