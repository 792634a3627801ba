"""What the ranks of tensor parallelism tell each other, most of it while a model is loaded.

Changes: nothing; calls ``get_tp_group`` of ``vllm.distributed``, and PyTorch's collectives over its two groups.
Why: vLLM's own ``all_gather`` takes floating point alone on a CPU, and none of its calls carries Python objects.
Versions: the group and its four attributes are the same in 0.19.1 to 0.33.0.
Checks: without a group, as in a test or a tool, there is one rank.
May go: when vLLM's collectives take integers everywhere.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch


class Rank(NamedTuple):
    """This process's place among ``size`` ranks of one model."""

    number: int
    size: int


def rank() -> Rank:
    """Return this process's place; the only one if no model parallelism was set up."""
    from vllm.distributed import get_tp_group

    try:
        group = get_tp_group()
    except AssertionError:
        return Rank(0, 1)
    return Rank(int(group.rank_in_group), int(group.world_size))


def gathered(part: torch.Tensor, dim: int) -> torch.Tensor:
    """Concatenate the parts of all ranks along ``dim``. Every rank has to call it, with parts of one shape."""
    size = rank().size
    if size == 1:
        return part
    from vllm.distributed import get_tp_group

    group = get_tp_group()
    part = part.contiguous()
    parts = part.new_empty(size, *part.shape)
    torch.distributed.all_gather_into_tensor(
        parts.view(-1),
        part.view(-1),
        group=group.cpu_group if part.device.type == "cpu" else group.device_group,
    )
    return torch.cat(list(parts), dim=dim)


def gathered_logits(part: torch.Tensor) -> torch.Tensor:
    """Concatenate floating-point parts along the last dimension while the model runs, as vLLM does with logits."""
    from vllm.distributed import tensor_model_parallel_all_gather

    return tensor_model_parallel_all_gather(part, -1)


def told(mine: Any) -> list[Any]:
    """Give ``mine``, which pickles, to all ranks; return what each gave, by rank. Every rank has to call it."""
    size = rank().size
    if size == 1:
        return [mine]
    from vllm.distributed import get_tp_group

    everyone: list[Any] = [None] * size
    torch.distributed.all_gather_object(everyone, mine, group=get_tp_group().cpu_group)
    return everyone
