"""vLLM's own config, model classes and loader over one checkpoint, with notes taken of what is written.

Everything that decides is vLLM's: ``EngineArgs(...).create_engine_config`` with ``method: mtp``, the registry's
classes for target and draft, ``get_model``, and in it ``DefaultModelLoader``'s search for files, iterator and
``load_weights``. What is not vLLM's is listed in :func:`install`; it stands in for kernels alone.

This module changes vLLM for the rest of its process. `judge.py` therefore runs it in a process of its own.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from tests.judge.stand_ins import install_stand_in_kernels

# Bits that no checkpoint holds: NaNs with a payload of their own, and a pattern for integers. A byte has no room
# for that, so of byte-sized types some values may come up by chance.
_MARKS = {
    torch.bfloat16: (torch.int16, 0x7FA5),
    torch.float16: (torch.int16, 0x7DA5),
    torch.float32: (torch.int32, 0x7FA5A5A5),
    torch.int32: (torch.int32, 0x5AA55AA5),
    torch.int64: (torch.int64, 0x5AA55AA55AA55AA5),
    torch.float8_e4m3fn: (torch.int8, 0x7F),
    torch.int8: (torch.int8, 0x5A),
    torch.uint8: (torch.int8, 0x5A),
}
_BYTES_BY_CHANCE = 1 / 20
# What may stay unwritten: the shape that packers write down, which no kernel reads, and the scales and zero points
# of a KV cache in FP8, which have defaults. So may the zero points of symmetric GPTQ, whose kernels are told
# `zero_points=False`.
_MAY_BE_ABSENT = frozenset(
    {
        "weight_shape",
        "prob_scale",
        *(f"{which}_{part}" for which in "qkv" for part in ("scale", "zero_point")),
    }
)


@dataclass
class Judgement:
    """What vLLM made of a checkpoint.

    Attributes:
        stage: where it ended: ``"config"``, ``"target"``, ``"draft"``; ``"loaded"`` if it did not.
        error: type and first line of what was raised, or None.
        where: file and line of vLLM (or of a library under it) that raised.
        unwritten_target, unwritten_draft: parameters that the loader left as uninitialised memory, with the
            share that was left: ``{"lm_head.weight": 1.0}``. Those of the draft that vLLM replaces with the
            target's (``embed_tokens``, ``lm_head``) are not among them.
        dropped: tensors that were read and thrown away though the checkpoint has them say something.
        misread: tensors that were written but not as stored: integers or FP8 codes taken for numbers, or a tensor
            of another size cut to fit or filled up.
        read: how many tensors the target's loader got to see.
        target, draft: names of the model classes.
        mtp_layers: layers that the draft was built with.
        quantization: vLLM's name of the method.
        mtp_front, act_order_front: what the plugin's checks before start say of the same config.
        seconds: what it took.
    """

    stage: str = "loaded"
    error: str | None = None
    where: str | None = None
    unwritten_target: dict[str, float] = field(default_factory=dict)
    unwritten_draft: dict[str, float] = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)
    misread: dict[str, str] = field(default_factory=dict)
    read: int = 0
    target: str | None = None
    draft: str | None = None
    mtp_layers: int | None = None
    quantization: str | None = None
    mtp_front: str | None = None
    act_order_front: str | None = None
    seconds: float = 0.0
    mtp: bool = True

    @property
    def loads(self) -> bool:
        """Whether an engine would have got past loading."""
        return self.error is None

    @property
    def target_live(self) -> bool:
        """Whether the target loads, and every parameter of it came from the checkpoint."""
        return self.stage in {"draft", "loaded"} and not self.unwritten_target and not self.dropped

    @property
    def head_live(self) -> bool:
        """Whether the draft loads, and every parameter of it came from the checkpoint."""
        return self.draft is not None and self.loads and bool(self.mtp_layers) and not self.unwritten_draft

    @property
    def fine(self) -> bool:
        """Whether this serves as asked."""
        return self.loads and self.target_live and not self.misread and (self.head_live or not self.mtp)

    @property
    def said(self) -> str:
        """What is wrong, in a line."""
        lost = {
            **self.unwritten_target,
            **{f"draft {name}": share for name, share in self.unwritten_draft.items()},
        }
        told = {
            "unwritten": sorted(lost)[:3],
            "thrown away": self.dropped,
            "misread": dict([*self.misread.items()][:2]),
        }
        wrong = f"{self.stage}: {self.error} ({self.where})" if self.error else self.stage
        return "; ".join([wrong, *(f"{what} {names}" for what, names in told.items() if names)])


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    # pydantic says first how many errors there are, then whose, then what.
    text = next((line for line in lines[1:] if " [type=" in line), lines[0])
    return f"{type(error).__name__}: {text.partition(' [type=')[0][:300]}"


def _place(error: BaseException) -> str | None:
    """The innermost frame in vLLM, and the innermost of all where that is elsewhere."""
    frame, found, last = error.__traceback__, None, None
    while frame is not None:
        path = frame.tb_frame.f_code.co_filename
        last = f"{'/'.join(path.split('/')[-2:])}:{frame.tb_lineno}"
        if "/vllm/" in path:
            found = f"{path.rpartition('/vllm/')[2]}:{frame.tb_lineno}"
        frame = frame.tb_next
    return found or last


def _mark(model: nn.Module) -> None:
    """Fill every parameter with bits that only a loader can replace."""
    for parameter in model.parameters():
        known = _MARKS.get(parameter.dtype)
        if known and not parameter.is_meta:
            parameter.data.view(known[0]).fill_(known[1])


def _marked(model: nn.Module) -> dict[str, float]:
    """The parameters that still hold the mark, and what share of each."""
    found: dict[str, float] = {}
    for name, parameter in model.named_parameters():
        known = _MARKS.get(parameter.dtype)
        if not known or parameter.is_meta or not parameter.numel():
            continue
        share = (parameter.data.view(known[0]) == known[1]).float().mean().item()
        if share > (_BYTES_BY_CHANCE if parameter.element_size() == 1 else 0):
            found[name] = round(share, 3)
    return found


def _is_read(name: str, model: nn.Module) -> bool:
    last = name.rpartition(".")[2]
    if last in _MAY_BE_ABSENT:
        return False
    if last == "g_idx":  # up to 0.29; without act order it is dropped unread
        owner = model.get_submodule(name.rpartition(".")[0])
        config = getattr(getattr(owner, "quant_method", None), "quant_config", None)
        return bool(getattr(config, "desc_act", False))
    if last == "qzeros":
        owner = model.get_submodule(name.rpartition(".")[0])
        kernel = getattr(getattr(owner, "quant_method", None), "kernel", None)
        return bool(kernel is None or kernel.config.zero_points)
    return True


class _Notes:
    """What was seen of the model that is loading."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.heads: list[torch.Tensor] = []
        self.unwritten: dict[str, float] = {}
        self.dropped: list[str] = []
        self.given: dict[int, dict[Any, int]] = {}
        self.misread: dict[str, str] = {}

    def arrives(self, name: str, parameter: torch.Tensor, tensor: torch.Tensor) -> None:
        """A tensor of the checkpoint is about to be written into a parameter, or into a part of it."""
        if tensor.numel() > 1:  # one number is repeated for each part it stands for
            self.given.setdefault(id(parameter), {})[getattr(tensor, "shard_id", None)] = tensor.numel()
        codes = not tensor.is_floating_point() or tensor.element_size() == 1
        if codes and parameter.is_floating_point() and parameter.element_size() > 1:
            self.misread[name] = f"{tensor.dtype} into {parameter.dtype}"

    def compare(self, model: nn.Module) -> None:
        """Do as many elements arrive as there are?"""
        for name, parameter in model.named_parameters():
            given, last = sum(self.given.get(id(parameter), {}).values()), name.rpartition(".")[2]
            if not given or last in _MAY_BE_ABSENT or name in self.unwritten:
                continue
            # Up to 0.29 each part of a fused module brings its whole g_idx.
            if given != parameter.numel() and last != "g_idx":
                self.misread.setdefault(name, f"{given} elements into {parameter.numel()}")


_notes = _Notes()


def _note_taking_loader() -> type[Any]:
    """vLLM's default loader, which marks what was built, and looks for the marks after loading."""
    from vllm.model_executor.model_loader.default_loader import DefaultModelLoader

    class NoteTaking(DefaultModelLoader):  # type: ignore[misc]
        def create_model(self, *args: Any, **kwargs: Any) -> nn.Module:
            model = super().create_model(*args, **kwargs)
            _mark(model)
            return model

        def get_all_weights(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, torch.Tensor]]:
            for name, tensor in super().get_all_weights(*args, **kwargs):
                _notes.names.append(name)
                if name.endswith("lm_head.weight"):
                    _notes.heads.append(tensor)
                yield name, tensor

        def load_weights(self, model: nn.Module, model_config: Any) -> None:
            if not hasattr(DefaultModelLoader, "create_model"):  # up to 0.29
                _mark(model)
            super().load_weights(model, model_config)
            _notes.unwritten = {n: s for n, s in _marked(model).items() if _is_read(n, model)}
            _notes.dropped = _thrown_away(model)
            _notes.compare(model)

    return NoteTaking


def _note_arrivals() -> None:
    """Have vLLM's loaders of a parameter, and of a part of a fused one, say what they are about to load."""
    from vllm.model_executor.layers.linear import MergedColumnParallelLinear, QKVParallelLinear
    from vllm.model_executor.models.utils import AutoWeightsLoader

    stock = AutoWeightsLoader._load_param

    def load(self: Any, base_prefix: str, parameter: torch.Tensor, weights: Any) -> Iterator[str]:
        def noted() -> Iterator[tuple[str, torch.Tensor]]:
            for name, tensor in weights:
                full = self._get_qualname(base_prefix, name)
                if not self._can_skip(full):
                    _notes.arrives(full, parameter, tensor)
                yield name, tensor

        yield from stock(self, base_prefix, parameter, noted())

    AutoWeightsLoader._load_param = load

    def noting(stock: Any) -> Any:
        def load_weights(self: Any, weights: Any) -> Iterator[str]:
            def noted() -> Iterator[tuple[str, torch.Tensor]]:
                for name, tensor in weights:
                    parameter = getattr(self, name, None)
                    if isinstance(parameter, torch.Tensor):
                        _notes.arrives(f"{self.prefix}.{name}", parameter, tensor)
                    yield name, tensor

            yield from stock(self, noted())

        return load_weights

    for fused in (MergedColumnParallelLinear, QKVParallelLinear):
        fused.load_weights = noting(fused.load_weights)


def _thrown_away(model: nn.Module) -> list[str]:
    """An output head that was in the checkpoint and differs from the one the model has."""
    owner = getattr(model, "language_model", model)
    weight = getattr(getattr(owner, "lm_head", None), "weight", None)
    if weight is None:
        return []
    for head in _notes.heads:
        if head.ndim == 2 and not torch.equal(head.to(weight.dtype), weight.data[: head.shape[0]]):
            return ["lm_head.weight"]
    return []


_installed = False


def install() -> None:
    """Import vLLM and put into it what the judge needs; once a process.

    * a loader that takes notes, in place of the class it inherits everything from, and notes of each tensor that
      is written into a parameter;
    * linear kernels that run nothing (:func:`.install_stand_in_kernels`);
    * the registry inspects a class here, not in a process of its own that would import vLLM again;
    * no garbage collection after each model, and no pause before a config is read a second time.
    """
    global _installed
    if _installed:
        return
    os.environ |= {"VLLM_PLUGINS": "", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    import vllm.model_executor.model_loader as loaders
    import vllm.model_executor.models.qwen3_5_mtp  # noqa: F401 - imports what the stand-ins replace
    from vllm import _custom_ops
    from vllm.model_executor.layers.quantization import get_quantization_config
    from vllm.model_executor.model_loader import base_loader
    from vllm.model_executor.models import registry
    from vllm.transformers_utils import repo_utils

    for method in ("auto_gptq", "auto_awq", "compressed-tensors", "fp8", "inc", "modelopt", "modelopt_fp4"):
        get_quantization_config(method)
    logging.getLogger("vllm").setLevel(logging.CRITICAL)
    install_stand_in_kernels()
    _note_arrivals()
    loaders._LOAD_FORMAT_TO_MODEL_LOADER["auto"] = _note_taking_loader()
    registry._run_in_subprocess = lambda inspect: inspect()
    _custom_ops._supports_onednn = False
    repo_utils.time = SimpleNamespace(sleep=lambda seconds: None)
    base_loader.gc = SimpleNamespace(collect=lambda: None)
    gc.collect()
    gc.freeze()
    _installed = True


def _forget() -> None:
    """Empty the caches in which vLLM keeps what it has read under a folder's name."""
    import vllm.transformers_utils.config as configs
    import vllm.transformers_utils.repo_utils as repos
    from vllm.tokenizers import registry

    for module in (configs, repos, registry):
        for value in list(vars(module).values()):
            if callable(getattr(value, "cache_clear", None)):
                value.cache_clear()
    os.environ.pop("QWEN36_MTP_PASSED", None)
    os.environ.pop("QWEN36_ACT_ORDER_PASSED", None)


def _configure(folder: str, *, mtp: bool, images: bool) -> Any:
    """What `vllm serve` does with its arguments before it starts an engine."""
    from vllm.engine.arg_utils import EngineArgs

    return EngineArgs(
        model=folder,
        enforce_eager=True,
        enable_prefix_caching=False,
        max_model_len=256,
        skip_tokenizer_init=True,
        limit_mm_per_prompt={"image": int(images), "video": 0},
        speculative_config={"method": "mtp", "num_speculative_tokens": 2} if mtp else None,
    ).create_engine_config()


def _groups(vllm_config: Any) -> None:
    """The process groups that parallel layers ask for, of one process; once."""
    from vllm.config import set_current_vllm_config
    from vllm.distributed import init_distributed_environment, initialize_model_parallel, parallel_state

    if not parallel_state.model_parallel_is_initialized():
        with set_current_vllm_config(vllm_config):
            store = tempfile.mkdtemp(prefix="judge-")
            init_distributed_environment(1, 0, f"file://{store}/rendezvous", 0, "gloo")
            initialize_model_parallel(1)


def _load(vllm_config: Any, model_config: Any, load_config: Any) -> nn.Module:
    global _notes
    from vllm.config import set_current_vllm_config
    from vllm.model_executor.model_loader import get_model

    _notes = _Notes()
    with set_current_vllm_config(vllm_config):
        return get_model(vllm_config=vllm_config, model_config=model_config, load_config=load_config)


def _fronts(result: Judgement, vllm_config: Any) -> None:
    """What the plugin's checks before start say."""
    from vllm_qwen36_plugin.act_order import front as act_order
    from vllm_qwen36_plugin.mtp_guard import front as mtp_guard

    for name, front in (("mtp_front", mtp_guard), ("act_order_front", act_order)):
        try:
            front.check_before_start(vllm_config)
        except Exception as error:  # noqa: BLE001 - a refusal, or whatever else it would end with
            setattr(result, name, f"{type(error).__name__}: {error}")


def judge_here(folder: str, *, mtp: bool = True, images: bool = True) -> Judgement:
    """Have vLLM configure, build and load target and draft of ``folder``, in this process."""
    install()
    _forget()
    result = Judgement(mtp=mtp)
    begun = time.perf_counter()
    try:
        result.stage = "config"
        vllm_config = _configure(folder, mtp=mtp, images=images)
        result.quantization = vllm_config.model_config.quantization
        _fronts(result, vllm_config)
        _groups(vllm_config)
        result.stage = "target"
        model = _load(vllm_config, vllm_config.model_config, vllm_config.load_config)
        result.target = type(model).__name__
        result.read, result.dropped = len(_notes.names), _notes.dropped
        result.unwritten_target, result.misread = _notes.unwritten, _notes.misread
        if mtp:
            result.stage = "draft"
            _judge_draft(result, vllm_config, model)
        result.stage = "loaded"
    except Exception as error:  # noqa: BLE001 - which errors there are is the question
        result.error, result.where = _first_line(error), _place(error)
    result.seconds = time.perf_counter() - begun
    return result


def _judge_draft(result: Judgement, vllm_config: Any, target: nn.Module) -> None:
    """The proposer's way to its model, with the target's embedding and head put in as it does."""
    from vllm.model_executor.model_loader import utils
    from vllm.v1.spec_decode.llm_base_proposer import SpecDecodeBaseProposer

    speculative = vllm_config.speculative_config
    proposer = SimpleNamespace(
        speculative_config=speculative, vllm_config=vllm_config, use_local_argmax_reduction=False
    )
    config = SpecDecodeBaseProposer._create_draft_vllm_config(proposer)
    if hasattr(utils, "get_draft_load_config"):
        load_config = utils.get_draft_load_config(config)
    else:  # up to 0.30
        load_config = speculative.draft_load_config or config.load_config
    draft = _load(config, speculative.draft_model_config, load_config)
    result.draft = type(draft).__name__
    shared = ("model.embed_tokens.", "lm_head.")
    result.unwritten_draft = {n: s for n, s in _notes.unwritten.items() if not n.startswith(shared)}
    result.misread |= {
        f"draft {name}": said for name, said in _notes.misread.items() if not name.startswith(shared)
    }
    result.mtp_layers = len(draft.model.layers)
    proposer.model = draft
    owner = target.get_language_model() if hasattr(target, "get_language_model") else target
    SpecDecodeBaseProposer._maybe_share_embeddings(proposer, owner)
    SpecDecodeBaseProposer._maybe_share_lm_head(proposer, owner)


def main() -> None:
    """Answer requests, one JSON object a line, until there are no more."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    torch.set_num_threads(1)
    install()
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(asdict(judge_here(**json.loads(line)))), file=answers, flush=True)


if __name__ == "__main__":
    main()
