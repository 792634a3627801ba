"""What the start-up log of vLLM says about memory; releases 0.19.1 to 0.33.0 were read."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from gptq_hybrid.common.errors import HybridError

# More than any start logs; of a longer file the beginning is read.
MOST_BYTES = 64 << 20
_GIB = 1 << 30
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True, slots=True)
class StartupLog:
    """What one start told; None for what it did not.

    Attributes:
        version: of vLLM.
        model: as it was named to vLLM.
        length: ``--max-model-len``.
        kv: KV dtype.
        drafts: tokens drafted a step; 0 without speculation.
        prefix_caching: whether prefixes are cached.
        tensor_parallel: GPUs.
        state: ``--mamba-ssm-cache-dtype``, where it was given.
        sequences: ``--max-num-seqs``, where it was given.
        utilization: ``--gpu-memory-utilization``, where it was given.
        device: "GPU", "CPU" or what else the line of the KV cache begins with.
        cache_bytes: available for the cache.
        tokens: "KV cache size".
        concurrency: "Maximum concurrency" for requests of ``length``.
        block_tokens: of attention, as set for a hybrid.
        weight_bytes: that loading took.
        graph_bytes: that CUDA graphs took.
        text_only: whether images and videos were switched off.
        compiled: whether the start compiled (``True``) or loaded what an earlier one had (``False``).
        needed_bytes: cache that one request would take, of a start that failed for it.
    """

    version: str | None = None
    model: str | None = None
    length: int | None = None
    kv: str = "auto"
    drafts: int = 0
    prefix_caching: bool | None = None
    tensor_parallel: int = 1
    state: str = "auto"
    sequences: int | None = None
    utilization: float | None = None
    device: str = "GPU"
    cache_bytes: int | None = None
    tokens: int | None = None
    concurrency: float | None = None
    block_tokens: int | None = None
    weight_bytes: int | None = None
    graph_bytes: int | None = None
    text_only: bool = False
    compiled: bool | None = None
    needed_bytes: int | None = None


def read_log(path: str | Path) -> StartupLog:
    """Read a log of `vllm serve`.

    Raises:
        HybridError: there is no such file, or it holds no line about a KV cache.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            text = file.read(MOST_BYTES).decode("utf-8", errors="replace")
    except OSError as error:
        raise HybridError(
            f"{path} cannot be read: {error.strerror or error}",
            remedy="Save what vllm serve prints: vllm serve ... 2>&1 | tee start.log",
        ) from error
    return parse_log(text, str(path))


def parse_log(text: str, name: str = "the log") -> StartupLog:
    """Find what matters in the text of a log; of several starts the last counts.

    Raises:
        HybridError: it holds no line about a KV cache.
    """
    text = _COLOURS.sub("", text)
    begun = list(re.finditer(r"Initializing a V\d LLM engine", text))
    if begun:
        # The arguments and what configuring says come before that line.
        earlier = begun[-2].end() if len(begun) > 1 else 0
        text = text[earlier:]
    cache = _size(text, r"Available KV cache memory: ([\d.]+) GiB") or _size(
        text, r"(?:Explicitly|Auto) set \(([\d.]+)/"
    )
    needed = _size(text, r"\(([\d.]+) GiB KV\s+cache is needed")
    if needed and not cache:
        cache = _size(text, r"available KV cache\s+memory \(([\d.]+) GiB\)")
    size = _last(text, r"(\w+(?: \+ host)?) KV cache size: ([\d,]+) tokens")
    if cache is None and size is None:
        raise HybridError(
            f"{name} has no line about a KV cache",
            remedy="Give the whole output of a start of vllm serve, with VLLM_LOGGING_LEVEL unset or INFO.",
        )
    concurrency = _last(text, r"Maximum concurrency for ([\d,]+) tokens per request: ([\d.]+)x")
    length = _last(text, r"max_seq_len=(\d+)") or concurrency
    drafts = _last(text, r"num_spec_tokens=(\d+)") or _last(text, r"'num_speculative_tokens': (\d+)")
    caching = _last(text, r"enable_prefix_caching=(True|False)")
    return StartupLog(
        version=_word(text, r"LLM engine \(v([^)]+)\)") or _word(text, r"version (\d+\.\d+\.\d+\S*)"),
        model=_word(text, r"with config: model='([^']+)'") or _word(text, r"'model(?:_tag)?': '([^']+)'"),
        length=_number(length),
        kv=_word(text, r"kv_cache_dtype=(\w+)") or "auto",
        drafts=_number(drafts) or 0,
        prefix_caching=None if caching is None else caching[1] == "True",
        tensor_parallel=_number(_last(text, r"tensor_parallel_size=(\d+)")) or 1,
        state=_word(text, r"'mamba_ssm_cache_dtype': '(\w+)'") or "auto",
        sequences=_number(_last(text, r"'max_num_seqs': (\d+)")),
        utilization=_share(text),
        device=size[1] if size else "GPU",
        cache_bytes=cache,
        tokens=int(size[2].replace(",", "")) if size else None,
        concurrency=float(concurrency[2]) if concurrency else None,
        block_tokens=_number(_last(text, r"Setting attention block size to (\d+) tokens")),
        weight_bytes=_size(text, r"Model loading took ([\d.]+) GiB"),
        graph_bytes=_size(text, r"Graph capturing finished in [\d.]+ secs?, took ([\d.]+) GiB"),
        text_only="running in text-only mode" in text,
        compiled=_compiled(text),
        needed_bytes=needed,
    )


def _last(text: str, pattern: str) -> re.Match[str] | None:
    found = None
    for found in re.finditer(pattern, text):  # noqa: B007 - the last one is wanted
        pass
    return found


def _word(text: str, pattern: str) -> str | None:
    found = _last(text, pattern)
    return found[1] if found else None


def _number(found: re.Match[str] | None) -> int | None:
    return int(found[1].replace(",", "")) if found else None


def _size(text: str, pattern: str) -> int | None:
    found = _last(text, pattern)
    return int(float(found[1]) * _GIB) if found else None


def _share(text: str) -> float | None:
    found = _word(text, r"'gpu_memory_utilization': ([\d.]+)")
    return float(found) if found else None


def _compiled(text: str) -> bool | None:
    if re.search(r"Compiling a graph for compile range", text):
        return True
    return False if re.search(r"Directly load (?:AOT compilation|the compiled graph)", text) else None
