"""Make the exact ``vllm serve`` command for a checkpoint and a place to serve it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from gptq_hybrid.checkpoint import Checkpoint, layout_for
from gptq_hybrid.checkpoint.files import HUB_HOSTS, is_hub_id
from gptq_hybrid.common.errors import CheckpointError
from gptq_hybrid.common.vllm_server import cpu_arguments
from gptq_hybrid.hooks import GpuProfile
from gptq_hybrid.memory import CPU_ALIGNMENT, Fit, cache_layout, fit

from .chat import readable_template, reasoning_parser, tool_call_parser
from .place import Place

DRAFTS = 2
# First and last batch size, and drafts a step from the one to the other.
Schedule = Sequence[tuple[int, int, int]]
_NO_IMAGES = ("--limit-mm-per-prompt", '{"image": 0, "video": 0}')
_IMAGES = ("--limit-mm-per-prompt", '{"image": 4, "video": 0}')
# The oldest GPUs with 8-bit floats: Ada.
FP8_SINCE = (8, 9)
# On CPUs, where memory is cheap and time is not.
_CPU_SEQUENCES, _CPU_TOKENS = 2, 32768
_GIB = 1 << 30
_PORT = 8000


@dataclass(frozen=True, slots=True)
class ServeCommand:
    """A command to paste into a shell.

    Attributes:
        environment: variables that go before it.
        arguments: of ``vllm serve``, the checkpoint first.
        fit: how the card's memory is divided; None without a card.
        chat: whether the checkpoint has a chat template.
    """

    environment: tuple[tuple[str, str], ...]
    arguments: tuple[str, ...]
    fit: Fit | None = None
    chat: bool = True

    @property
    def line(self) -> str:
        """The command in one line."""
        variables = [f"{name}={shlex.quote(value)}" for name, value in self.environment]
        return " ".join([*variables, shlex.join(["vllm", "serve", *self.arguments])])

    @property
    def curl(self) -> str:
        """A first request to that server, in one line."""
        body: dict[str, Any] = {"model": self.arguments[0]}
        if self.chat:
            body["messages"] = [{"role": "user", "content": "Say hello."}]
        else:
            body["prompt"] = "Hello"
        body["max_tokens"] = 64
        if "--reasoning-parser" in self.arguments:
            # Else the first tokens are all thoughts, and the reply is empty.
            body["chat_template_kwargs"] = {"enable_thinking": False}
        path = "chat/completions" if self.chat else "completions"
        words = ["curl", f"http://localhost:{_PORT}/v1/{path}", "-H", "Content-Type: application/json"]
        return shlex.join([*words, "-d", json.dumps(body)])

    def as_json(self) -> dict[str, Any]:
        """For programs: the line, its parts, the request, and what the memory goes to."""
        memory = None
        if self.fit is not None:
            memory = {
                "source": "derived",
                "fits": self.fit.fits,
                "usable_bytes": self.fit.usable,
                "weight_bytes": self.fit.loaded,
                "cache_bytes": self.fit.cache,
                "state_bytes_per_sequence": self.fit.layout.sequence_bytes,
                "kv_bytes_per_token": self.fit.layout.token_bytes * self.fit.layout.attention_layers,
                "sequences": self.fit.sequences,
                "tokens": self.fit.tokens,
                "context": self.fit.context,
            }
        return {
            "line": self.line,
            "environment": dict(self.environment),
            "arguments": list(self.arguments),
            "curl": self.curl,
            "memory": memory,
        }


def speculative_config(drafts: int, schedule: Schedule = ()) -> str:
    """Return the value of ``--speculative-config`` for drafts of the MTP head.

    Args:
        drafts: most drafts a step, above 0.
        schedule: fewer by batch size, ranges that begin at 1, for releases that get it right.
    """
    config: dict[str, Any] = {"method": "mtp", "num_speculative_tokens": drafts}
    if schedule:
        config["num_speculative_tokens_per_batch_size"] = [list(entry) for entry in schedule]
    return json.dumps(config)


def serve_command(
    checkpoint: str | Path | Checkpoint,
    place: Place | None = None,
    *,
    drafts: int = DRAFTS,
    schedule: Schedule = (),
    fitted: Fit | None = None,
) -> ServeCommand:
    """Return the command that serves a checkpoint at a place, with every flag that it needs there.

    Args:
        checkpoint: an open one, or its folder.
        place: a GPU, whose memory decides the flags; ``"cpu"`` for vLLM's CPU build; None for no such flags.
        drafts: tokens to draft with MTP, if the checkpoint has a head; 0 for none.
        schedule: as in :func:`speculative_config`.
        fitted: how the memory of ``place`` is divided, if that was decided before.
    """
    opened = checkpoint if isinstance(checkpoint, Checkpoint) else Checkpoint.open(checkpoint)
    profile = None if place == "cpu" else place
    drafts = drafts if has_mtp(opened) else 0
    arguments = serve_arguments(opened, profile, drafts=drafts, schedule=schedule, fitted=fitted)
    chat = readable_template(opened) is not None
    if place == "cpu":
        environment, flags = _cpu_flags(opened, drafts)
        # Both say that there are no images.
        arguments = _without(arguments, _NO_IMAGES[0])
        return ServeCommand(environment, (*arguments, *flags), chat=chat)
    return ServeCommand((), tuple(arguments), fitted or _fit(opened, profile, drafts), chat)


def serve_arguments(
    checkpoint: Checkpoint,
    profile: GpuProfile | None = None,
    *,
    drafts: int = DRAFTS,
    schedule: Schedule = (),
    chat: bool = True,
    most_drafts: int | None = None,
    fitted: Fit | None = None,
) -> list[str]:
    """Return arguments of ``vllm serve``, the checkpoint first.

    A checkpoint without a vision tower is served for text alone.

    Args:
        checkpoint: what to serve.
        profile: the GPU; its memory decides the lengths, and the flags of its own go before these.
        drafts: tokens to draft with MTP, if the checkpoint has a head; 0 for none.
        schedule: as in :func:`speculative_config`.
        chat: whether to add the parsers of thinking blocks and tool calls that the chat template needs.
        most_drafts: drafts that memory must suffice for; ``drafts`` by default.
        fitted: how the memory is divided, if that was decided before.
    """
    arguments = _model(checkpoint)
    if drafts and has_mtp(checkpoint):
        arguments += ["--speculative-config", speculative_config(drafts, schedule)]
    template = readable_template(checkpoint) if chat else None
    if reasoning := reasoning_parser(template):
        arguments += ["--reasoning-parser", reasoning]
    if tools := tool_call_parser(template):
        arguments += ["--enable-auto-tool-choice", "--tool-call-parser", tools]
    flags = list(profile.serve_flags if profile else ())
    room_for = drafts if most_drafts is None else most_drafts
    found = fitted or _fit(checkpoint, profile, room_for if has_mtp(checkpoint) else 0)
    if found is not None and found.fits:
        flags += [word for pair in _memory_flags(found) if pair[0] not in flags for word in pair]
    vision = layout_for(checkpoint.config).vision
    if vision and not any(spec.name in checkpoint.loaded for spec in vision):
        flags = [*_without(flags, _NO_IMAGES[0]), *_NO_IMAGES]
    elif vision and found is not None and found.fits and _NO_IMAGES[0] not in flags:
        flags += _IMAGES if found.images else _NO_IMAGES
    return arguments + flags


def _without(words: list[str], option: str) -> list[str]:
    """Return ``words`` less an option and its value."""
    if option not in words:
        return words
    at = words.index(option)
    return words[:at] + words[at + 2 :]


def has_mtp(checkpoint: Checkpoint) -> bool:
    """Whether the checkpoint has an MTP head that a loader finds."""
    return bool(layout_for(checkpoint.config).mtp) and any(
        name.startswith("mtp.") for name in checkpoint.loaded
    )


def _fit(checkpoint: Checkpoint, profile: GpuProfile | None, drafts: int) -> Fit | None:
    if profile is None:
        return None
    kv_dtype = "fp8" if profile.compute_capability >= FP8_SINCE else "auto"
    try:
        return fit(checkpoint, int(profile.memory_gib * _GIB), drafts=drafts, kv_dtype=kv_dtype)
    except CheckpointError:  # no layer of one kind: nothing that can be derived
        return None


def _memory_flags(found: Fit) -> list[tuple[str, str]]:
    return [
        *([("--kv-cache-dtype", found.kv_dtype)] if found.kv_dtype != "auto" else []),
        ("--gpu-memory-utilization", str(found.utilization)),
        ("--max-num-seqs", str(found.sequences)),
        ("--max-model-len", str(found.context)),
        *([("--max-num-batched-tokens", str(found.batched_tokens))] if found.batched_tokens else []),
        *([("--mamba-ssm-cache-dtype", found.state_dtype)] if found.state_dtype != "auto" else []),
        *([("--tensor-parallel-size", str(found.tensor_parallel))] if found.tensor_parallel > 1 else []),
    ]


def _cpu_flags(checkpoint: Checkpoint, drafts: int) -> tuple[tuple[tuple[str, str], ...], list[str]]:
    """What the CPU build needs: room for its cache in whole GiB, and no kernels that it lacks."""
    limit = checkpoint.text_config.get("max_position_embeddings")
    tokens = min(limit, _CPU_TOKENS) if isinstance(limit, int) and limit > 0 else _CPU_TOKENS
    try:
        # Without prefix caching no state is kept beside those in use.
        layout = cache_layout(checkpoint, drafts=drafts, prefix_caching=False, alignment=CPU_ALIGNMENT)
        space = -(-layout.bytes_for(tokens, _CPU_SEQUENCES) // _GIB)
    except CheckpointError:
        space = 4
    flags = ["--max-model-len", str(tokens), "--max-num-seqs", str(_CPU_SEQUENCES)]
    return (("VLLM_CPU_KVCACHE_SPACE", str(space)),), cpu_arguments() + flags


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
