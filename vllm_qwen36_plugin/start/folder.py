"""Where the files are that vLLM will read, if they are on this machine already."""

from __future__ import annotations

import os
from pathlib import Path

from gptq_hybrid.checkpoint import INDEX_NAME, Checkpoint

# Formats whose loader reads *.safetensors as the index chooses them. The run:ai streamer reads unindexed
# files too, others read none.
INDEXED_FORMATS = frozenset({"auto", "hf", "safetensors", "fastsafetensors", "instanttensor"})


def open_local(model: str, revision: str | None, download_dir: str | None) -> Checkpoint | None:
    """The checkpoint vLLM will read; None where it is not complete on this machine, or not in safetensors.

    A hub id is looked up in the local cache, without a network request.

    Raises:
        CheckpointError: a local folder with an unreadable config or index.
    """
    folder = Path(model)
    on_hub = not folder.is_dir()
    if on_hub:
        found = _cached_snapshot(model, revision, download_dir)
        if found is None:
            return None
        folder = found
    checkpoint = Checkpoint.open(folder)
    if on_hub and checkpoint.missing_files:
        return None  # a download that the worker has yet to complete
    # vLLM prefers consolidated*.safetensors (Mistral's layout) and falls back to *.bin without safetensors.
    if not checkpoint.on_disk or any(folder.glob("consolidated*.safetensors")):
        return None
    return checkpoint


def _cached_snapshot(repo: str, revision: str | None, download_dir: str | None) -> Path | None:
    if "://" in repo or os.environ.get("VLLM_USE_MODELSCOPE", "").lower() in {"1", "true"}:
        return None
    from huggingface_hub import try_to_load_from_cache

    for name in (INDEX_NAME, "model.safetensors"):
        try:
            found = try_to_load_from_cache(repo, name, cache_dir=download_dir, revision=revision)
        except ValueError:  # not a possible repository name
            return None
        if isinstance(found, str):
            folder = Path(found).parent
            return folder if (folder / "config.json").is_file() else None
    return None
