"""What is measured: a running server, or a checkpoint for which one is started; and what is known of it."""

from __future__ import annotations

import hashlib
import ipaddress
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from gptq_hybrid.checkpoint import Checkpoint
from gptq_hybrid.checkpoint.files import open_files
from gptq_hybrid.checkpoint.fingerprint import checkpoint_fingerprint
from gptq_hybrid.common.errors import HybridError
from gptq_hybrid.common.small_files import read_small_file
from gptq_hybrid.common.vllm_server import cpu_arguments, cpu_environment
from gptq_hybrid.doctor.place import this_place
from gptq_hybrid.doctor.serve_line import serve_command
from gptq_hybrid.live import Reading, base_url

# Flags that the command sets itself, or that would measure something else.
RESERVED = {
    "--host": "the server is for the measurement only",
    "--port": "the server is for the measurement only",
    "--uds": "the server is for the measurement only",
    "--api-key": "the server is for the measurement only",
    "--ssl-keyfile": "the server is for the measurement only",
    "--model": "the checkpoint is the first argument",
    "--served-model-name": "the checkpoint is the first argument",
    "--disable-log-stats": "acceptance is read from these counters",
}
# Variables that change what a server does, by name.
_VARIABLES = ("VLLM_PLUGINS", "VLLM_CPU_KVCACHE_SPACE", "VLLM_DISABLED_KERNELS", "VLLM_MARLIN_INPUT_DTYPE")
_SPECULATIVE = ("--speculative-config", "-sc")
_KV_TOKENS = re.compile(r"KV cache size: ([\d,]+) tokens")
_KV_GIB = re.compile(r"Available KV cache memory: ([\d.]+) GiB")
_ENV_SECONDS = 300
_ENV_PROGRAM = "from gptq_hybrid.cli import main; main()"


def is_url(target: str) -> bool:
    """Whether a target is the address of a server and no checkpoint: ``http://…``, or ``HOST:PORT``."""
    if Path(target).exists():
        return False
    host, colon, port = target.partition(":")
    return target.startswith(("http://", "https://")) or bool(host and colon and port.strip("/").isdigit())


def server_url(target: str) -> str:
    """Return the address of a server without its path.

    Raises:
        HybridError: it is no address.
    """
    return base_url(target)


@dataclass(frozen=True)
class Launch:
    """How a server is started.

    Attributes:
        checkpoint: what is served.
        arguments: of ``vllm serve``, the checkpoint first.
        environment: variables beside this process's own.
    """

    checkpoint: Checkpoint
    arguments: tuple[str, ...]
    environment: Mapping[str, str]

    @property
    def line(self) -> str:
        """The command as typed in a shell."""
        variables = [f"{name}={shlex.quote(value)}" for name, value in self.environment.items()]
        return " ".join([*variables, shlex.join(["vllm", "serve", *self.arguments])])

    @property
    def public(self) -> dict[str, Any]:
        """For a receipt, which is published: of the checkpoint's path only the last name; variables that matter."""
        first, *rest = self.arguments
        variables = {name: os.environ[name] for name in _VARIABLES if name in os.environ}
        variables |= {name: self.environment[name] for name in _VARIABLES if name in self.environment}
        return {"arguments": [Path(first).name or first, *rest], "environment": variables}


def open_target(target: str) -> Checkpoint:
    """Open the checkpoint that is to be served: a folder or a hub id.

    Raises:
        HybridError: there is none.
    """
    return Checkpoint.read(open_files(target))


def launch(
    checkpoint: Checkpoint,
    flags: Sequence[str],
    *,
    most_in_flight: int,
    environment: Mapping[str, str] | None = None,
) -> Launch:
    """Decide how to serve a checkpoint here: by the user's flags, or by those of ``qwen36 check``.

    Raises:
        HybridError: a flag is one that the measurement sets itself.
    """
    names = {flag.partition("=")[0].replace("_", "-") for flag in flags if flag.startswith("-")}
    for name in RESERVED.keys() & names:
        raise HybridError(f"{name} may not be given: {RESERVED[name]}", remedy="Leave it out.")
    place = this_place()
    command = serve_command(checkpoint, place)
    variables = dict(environment or {})
    if flags:
        arguments = [command.arguments[0], *flags]
        if place == "cpu":
            arguments += _missing(cpu_arguments(), names)
            variables = {**cpu_environment(), **variables}
    else:
        arguments = list(command.arguments)
        variables = {**dict(command.environment), **variables}
        if place == "cpu":
            arguments = at_least(arguments, "--max-num-seqs", most_in_flight)
    variables = {k: v for k, v in variables.items() if k in (environment or {}) or k not in os.environ}
    return Launch(checkpoint, tuple(arguments), variables)


def _missing(flags: list[str], names: set[str]) -> list[str]:
    """Return those of ``flags`` that are not among ``names``, with their values."""
    kept: list[str] = []
    keep = False
    for word in flags:
        if word.startswith("--"):
            keep = word not in names and word.replace("--no-", "--") not in names
        if keep:
            kept.append(word)
    return kept


def at_least(arguments: list[str], name: str, least: int) -> list[str]:
    """Return arguments in which the number of an option is no less than that; added where it is missing."""
    if name not in arguments:
        return [*arguments, name, str(least)]
    at = arguments.index(name) + 1
    return [*arguments[:at], str(max(least, int(arguments[at]))), *arguments[at + 1 :]]


def option(arguments: Sequence[str], *names: str) -> str | None:
    """Return the value of the last ``name VALUE`` or ``name=VALUE``."""
    value = None
    for at, word in enumerate(arguments):
        key, equals, rest = word.partition("=")
        if key.replace("_", "-") in names:
            value = rest if equals else arguments[at + 1] if at + 1 < len(arguments) else None
    return value


def speculative(arguments: Sequence[str]) -> dict[str, Any]:
    """Return the speculative configuration that is asked for; empty without one."""
    text = option(arguments, *_SPECULATIVE)
    try:
        parsed = json.loads(text) if text else {}
    except ValueError:
        return {}
    return parsed if isinstance(parsed, dict) else {}


def describe_subject(checkpoint: Checkpoint | None, name: str) -> dict[str, Any]:
    """Describe a checkpoint: digest and bytes of what a loader reads, and its shape; elsewhere, its name alone."""
    if checkpoint is None or checkpoint.files.far:
        return {"name": name, "digest": None}
    text = checkpoint.text_config
    tokenizer = checkpoint.path / "tokenizer.json"
    quantization = checkpoint.config.get("quantization_config") or {}
    return {
        "name": name,
        "digest": checkpoint_fingerprint(checkpoint),
        "disk_bytes": sum((checkpoint.path / file).stat().st_size for file in checkpoint.referenced),
        "tokenizer_sha256": hashlib.sha256(read_small_file(tokenizer)).hexdigest()
        if tokenizer.is_file()
        else None,
        "architecture": (checkpoint.config.get("architectures") or [None])[0],
        "layers": text.get("num_hidden_layers"),
        "hidden_size": text.get("hidden_size"),
        "quantization": {
            key: quantization[key]
            for key in ("quant_method", "bits", "group_size", "desc_act", "sym", "fmt")
            if key in quantization
        },
    }


def checkpoint_of(reading: Reading) -> Checkpoint | None:
    """Open the checkpoint of a server that runs on this machine; None if it or its folder is elsewhere."""
    if reading.root is None or not on_this_machine(reading.url) or not Path(reading.root).is_dir():
        return None
    try:
        return open_target(reading.root)
    except HybridError:
        return None


def on_this_machine(url: str) -> bool:
    """Whether an address is of this machine's loopback interface."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def describe_server(reading: Reading, started: Launch | None, log: Path | None) -> dict[str, Any]:
    """Describe a server: versions, flags, cache, and how it accepts drafts.

    Args:
        reading: its metrics.
        started: how it was started, if it was started here.
        log: its log, if there is one.
    """
    arguments = started.arguments if started else ()
    asked = speculative(arguments)
    drafts = asked.get("num_speculative_tokens") if started else (len(reading.counters.per_position) or None)
    method = asked.get("rejection_sample_method", "standard") if started else None
    text = log.read_text(encoding="utf-8", errors="replace") if log is not None else ""
    tokens = reading.number("kv_cache_size_tokens")
    if tokens is None and (found := _KV_TOKENS.search(text)):
        tokens = int(found[1].replace(",", ""))
    gib = _KV_GIB.search(text)
    sequences = option(arguments, "--max-num-seqs") or (reading.plugin or {}).get("max_num_seqs")
    return {
        "vllm": reading.vllm,
        "plugin": None if reading.plugin is None else reading.plugin.get("version"),
        "plugin_options": None if reading.plugin is None else reading.plugin.get("options"),
        "plugin_paths": {state.path: state.state for state in reading.paths},
        **(started.public if started else {"arguments": None, "environment": {}}),
        "max_model_len": reading.max_model_len,
        "max_num_seqs": int(sequences) if sequences and sequences.isdigit() else None,
        "prefix_caching": reading.prefix_caching,
        "speculates": reading.speculates,
        "drafts": drafts if reading.speculates else 0,
        "rejection": method if reading.speculates else None,
        "synthetic_rates": asked.get("synthetic_acceptance_rates"),
        "synthetic_length": asked.get("synthetic_acceptance_length"),
        "kv_cache_tokens": tokens,
        "kv_cache_gib": float(gib[1]) if gib else None,
        "kv_cache_dtype": reading.cache_config.get("cache_dtype"),
    }


def describe_machine() -> dict[str, Any]:
    """Describe this machine through ``qwen36 env``, in a process of its own, as that loads vLLM and the plugin."""
    command = [sys.executable, "-c", _ENV_PROGRAM, "env", "--json"]
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=_ENV_SECONDS, check=True)
        found = json.loads(run.stdout)["result"]
    except (OSError, subprocess.SubprocessError, ValueError, KeyError):
        return {}
    system = found["system"]
    return {
        "gpus": found["gpus"],
        "cpu": system.get("CPU"),
        "system": system.get("system"),
        # Without the path of the interpreter: a receipt is published.
        "python": str(system.get("Python", "")).partition(" ")[0],
        "versions": found["versions"],
        # Nor of a folder: that one is set is enough.
        "variables": {
            name: "set" if os.sep in value else value for name, value in found["variables"].items()
        },
        "features": found["plugin"]["features"],
    }
