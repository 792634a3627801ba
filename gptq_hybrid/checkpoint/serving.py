"""The exact ``vllm serve`` line for a checkpoint."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

from ._checkpoint import Checkpoint
from .gpu import GpuProfile
from .plugins import gpu_profiles, layout_for

# qwen3_coder and qwen3 are vLLM's parsers for this family's tool calls and thinking blocks.
_CHAT_FLAGS = (
    "--reasoning-parser",
    "qwen3",
    "--enable-auto-tool-choice",
    "--tool-call-parser",
    "qwen3_coder",
)
DRAFTS = 2


def profile_for(device_name: str) -> GpuProfile | None:
    """The profile of the GPU a driver calls ``device_name``, a plugin's before a built-in one."""
    matching = [p for p in gpu_profiles() if any(name in device_name for name in p.device_names)]
    return matching[-1] if matching else None


def serve_arguments(
    checkpoint: Checkpoint, profile: GpuProfile | None = None, *, drafts: int = DRAFTS, chat: bool = True
) -> list[str]:
    """Arguments of ``vllm serve``, checkpoint first; MTP only where the checkpoint has a head.

    ``chat`` adds the reasoning and tool-call parsers, if there is a chat template.
    """
    arguments = [str(checkpoint.path)]
    if drafts and layout_for(checkpoint.config).mtp:
        arguments += ["--speculative-config", json.dumps({"method": "mtp", "num_speculative_tokens": drafts})]
    if chat and any(
        (checkpoint.path / name).is_file() for name in ("chat_template.jinja", "chat_template.json")
    ):
        arguments += _CHAT_FLAGS
    return arguments + list(profile.serve_flags if profile else ())


def serve_line(path: Path, profile: GpuProfile | None = None) -> str:
    """A line to paste into a shell."""
    return shlex.join(["vllm", "serve", *serve_arguments(Checkpoint.open(path), profile)])
