"""What vLLM's registry names for the draft model: that with cheaper drafts, or else the checked one."""

from __future__ import annotations

from vllm_qwen36_plugin.log import logger

try:
    from .model import Qwen3_5MTP
except Exception as error:  # noqa: BLE001 - drafts as vLLM makes them are right too
    from vllm_qwen36_plugin.mtp_guard.worker import Qwen3_5MTP

    logger.warning("vllm-qwen36-plugin: drafts stay as vLLM makes them because %s", error or repr(error))

__all__ = ["Qwen3_5MTP"]
