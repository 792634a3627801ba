"""Where Triton keeps what it compiled and tuned: a folder that outlives the process, if the user named none.

vLLM tunes Gated-DeltaNet's kernels at the first start, for minutes. It lets Triton keep the result, but in a folder
whose name depends on the whole configuration (``initialize_inductor_cache`` in 0.33.0), so that another
``--max-model-len`` tunes again; where nothing is compiled PyTorch puts it under the system's temporary folder.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from vllm_qwen36_plugin.log import logger

VARIABLE = "TRITON_CACHE_DIR"


def check_before_start(vllm_config: Any) -> None:
    """Name a folder under vLLM's cache to this process and those it starts; leave one that is named already.

    Args:
        vllm_config: not used; the folder is one for every configuration of this kind of card.
    """
    if os.environ.get(VARIABLE):
        return
    from vllm import envs
    from vllm.platforms import current_platform

    # One a kind of card: Triton keys what it tuned by architecture, which an RTX 4090 and an L40S share.
    card = re.sub(r"\W+", "-", current_platform.get_device_name()).strip("-") or "gpu"
    folder = Path(envs.VLLM_CACHE_ROOT) / "qwen36-triton" / card
    try:
        folder.mkdir(parents=True, exist_ok=True)
        fresh = not any(folder.iterdir())
        writable = os.access(folder, os.W_OK | os.X_OK)
    except OSError:
        writable = fresh = False
    if not writable:
        logger.warning(
            "vllm-qwen36-plugin: %s cannot be written, so every start may tune Triton's kernels again, for "
            "minutes; set %s to a folder that stays",
            folder,
            VARIABLE,
        )
        return
    os.environ[VARIABLE] = str(folder)
    logger.info(
        "vllm-qwen36-plugin: Triton keeps its kernels in %s%s",
        folder,
        "; this first start tunes them, for minutes" if fresh else "",
    )
