"""Make the exact ``vllm serve`` line for a checkpoint."""

from __future__ import annotations

import json
import shlex
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from gptq_hybrid.checkpoint import Checkpoint, layout_for
from gptq_hybrid.checkpoint.files import HUB_HOSTS, is_hub_id
from gptq_hybrid.hooks import GpuProfile, contributions

from .chat import readable_template, reasoning_parser, tool_call_parser

DRAFTS = 2
_NO_IMAGES = ("--limit-mm-per-prompt", '{"image": 0, "video": 0}')


def gpu_profiles() -> list[GpuProfile]:
    """Return the GPU models that plugins know; later ones win over earlier ones."""
    return contributions("qwen36_gpu_profiles")


def profile_for(device_name: str) -> GpuProfile | None:
    """Return the profile of the GPU that a driver calls ``device_name``; a plugin's before a built-in one."""
    matching = [p for p in gpu_profiles() if any(name in device_name for name in p.device_names)]
    return matching[-1] if matching else None


def serve_arguments(
    checkpoint: Checkpoint, profile: GpuProfile | None = None, *, drafts: int = DRAFTS, chat: bool = True
) -> list[str]:
    """Return arguments of ``vllm serve``, the checkpoint first.

    A checkpoint without a vision tower is served for text alone.

    Args:
        checkpoint: what to serve.
        profile: the GPU, whose flags are added.
        drafts: tokens to draft with MTP, if the checkpoint has a head; 0 for none.
        chat: whether to add the parsers of thinking blocks and tool calls that the chat template needs.
    """
    arguments = _model(checkpoint)
    layout = layout_for(checkpoint.config)
    if drafts and layout.mtp and any(name.startswith("mtp.") for name in checkpoint.loaded):
        arguments += ["--speculative-config", json.dumps({"method": "mtp", "num_speculative_tokens": drafts})]
    template = readable_template(checkpoint) if chat else None
    if reasoning := reasoning_parser(template):
        arguments += ["--reasoning-parser", reasoning]
    if tools := tool_call_parser(template):
        arguments += ["--enable-auto-tool-choice", "--tool-call-parser", tools]
    flags = list(profile.serve_flags if profile else ())
    if layout.vision and not any(spec.name in checkpoint.loaded for spec in layout.vision):
        if _NO_IMAGES[0] in flags:
            at = flags.index(_NO_IMAGES[0])
            del flags[at : at + 2]
        flags += _NO_IMAGES
    return arguments + flags


def must_be_downloaded(checkpoint: Checkpoint) -> bool:
    """Whether vLLM cannot serve a checkpoint from where it is: it takes folders and hub ids, but no address."""
    return checkpoint.files.far and _hub_id(checkpoint) is None


def _hub_id(checkpoint: Checkpoint) -> str | None:
    """OWNER/NAME[@REVISION]; None for any address but one of the files of a model on the hub."""
    location = checkpoint.location
    if is_hub_id(location):
        return location
    parts = urlsplit(location)
    path = parts.path.strip("/").split("/")
    if parts.hostname in HUB_HOSTS and len(path) == 4 and path[2] == "resolve":
        found = f"{path[0]}/{path[1]}" + ("" if path[3] == "main" else f"@{path[3]}")
        return found if is_hub_id(found) else None
    return None


def _model(checkpoint: Checkpoint) -> list[str]:
    """What names the model to vLLM; for an address, the folder of that name that a download makes."""
    location = checkpoint.location
    hub_id = _hub_id(checkpoint)
    if checkpoint.files.far and hub_id is None:
        return [f"./{PurePosixPath(urlsplit(location).path).name or 'checkpoint'}"]
    if not checkpoint.files.far:
        return [f"./{location}" if location.startswith("-") else location]
    name, _, revision = (hub_id or location).partition("@")
    return [name, "--revision", revision] if revision else [name]


def serve_line(
    checkpoint: Path | Checkpoint, profile: GpuProfile | None = None, *, drafts: int = DRAFTS
) -> str:
    """Return the ``vllm serve`` line of a checkpoint, to paste into a shell; see :func:`serve_arguments`."""
    opened = checkpoint if isinstance(checkpoint, Checkpoint) else Checkpoint.open(checkpoint)
    return shlex.join(["vllm", "serve", *serve_arguments(opened, profile, drafts=drafts)])
