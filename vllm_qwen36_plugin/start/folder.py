"""The checkpoint that vLLM will read: where it is on this machine, and whether a parent process has checked it."""

from __future__ import annotations

import os
from pathlib import Path

from gptq_hybrid.checkpoint import INDEX_NAME, Checkpoint

# Formats whose loader reads *.safetensors as the index chooses them. The run:ai streamer reads unindexed
# files too, others read none.
INDEXED_FORMATS = frozenset({"auto", "hf", "safetensors", "fastsafetensors", "instanttensor"})


def open_local(model: str, revision: str | None, download_dir: str | None) -> Checkpoint | None:
    """Open the checkpoint vLLM will read; None if it is not complete on this machine, or not in safetensors.

    A hub id is looked up in the local cache, without a network request.

    Raises:
        CheckpointError: a local folder with an unreadable config or index.
    """
    folder = Path(model)
    on_hub = not folder.is_dir()
    if on_hub:
        snapshot = _cached_snapshot(model, revision, download_dir)
        if snapshot is None:
            return None
        folder = snapshot
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
            path = try_to_load_from_cache(repo, name, cache_dir=download_dir, revision=revision)
        except ValueError:  # not a possible repository name
            return None
        if isinstance(path, str):
            folder = Path(path).parent
            return folder if (folder / "config.json").is_file() else None
    return None


def note_passed(variable: str, model: str) -> None:
    """Tell child processes, by an environment variable, that ``model`` has passed a check.

    vLLM's further API servers (``--api-server-count``) build the same config again. In the process that checked it
    the note counts for nothing, as files may change between two engines.
    """
    os.environ[variable] = f"{os.getpid()}:{model}"


def passed_in_parent(variable: str, model: str) -> bool:
    """Whether ``model`` has passed in the parent of this process (:func:`note_passed`)."""
    process, _, passed = os.environ.get(variable, "").partition(":")
    return passed == model and process == str(os.getppid())
