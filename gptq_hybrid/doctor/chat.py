"""Read a chat template, and choose vLLM's parsers by it."""

from __future__ import annotations

from gptq_hybrid.checkpoint import Checkpoint
from gptq_hybrid.checkpoint.files import Range
from gptq_hybrid.checkpoint.json_files import fetch_json_object
from gptq_hybrid.common.errors import CheckpointError, TransferError

TEMPLATE_FILE = "chat_template.jinja"
_MOST_BYTES = 1 << 20
# vLLM's parser for each way of writing a tool call, by what the template tells the model to write. The order
# matters: the XML templates mention <tool_call> too.
_TOOL_MARKS = (("<function=", "qwen3_coder"), ('{"name":', "hermes"), ("<tool_call>", "hermes"))


def chat_template(checkpoint: Checkpoint) -> str | None:
    """Read the chat template from where transformers would take it; None if there is none.

    Raises:
        CheckpointError: a file that should hold it cannot be read.
    """
    if checkpoint.has(TEMPLATE_FILE):
        return checkpoint.files.read(Range(TEMPLATE_FILE, 0, _MOST_BYTES)).decode("utf-8", errors="replace")
    for name in ("chat_template.json", "tokenizer_config.json"):
        if checkpoint.has(name):
            template = fetch_json_object(checkpoint.files, name).get("chat_template")
            if isinstance(template, list):
                template = next((t.get("template") for t in template if isinstance(t, dict)), None)
            elif isinstance(template, dict):
                template = next(iter(template.values()), None)
            if isinstance(template, str):
                return template
    return None


def readable_template(checkpoint: Checkpoint) -> str | None:
    """:func:`chat_template`, or None for one that cannot be read."""
    try:
        return chat_template(checkpoint)
    except TransferError:
        raise
    except CheckpointError:
        return None


def tool_call_parser(template: str | None) -> str | None:
    """Choose vLLM's ``--tool-call-parser`` for a template; None for one without tools."""
    if template is None or "tools" not in template:
        return None
    return next((parser for mark, parser in _TOOL_MARKS if mark in template), None)


def reasoning_parser(template: str | None) -> str | None:
    """Choose vLLM's ``--reasoning-parser`` for a template; None for one without thinking blocks."""
    return "qwen3" if template is not None and "<think>" in template else None
