"""KV tokens as `qwen36 plan` computes them against those that vLLM logs, and the largest batch that runs.

    python -m tests.plan.compare OUT.json --inside /tmp/vllm-0.26.0/bin/python ...   # any release, on a CPU
    python -m tests.plan.compare OUT.json --engine FOLDER [--gpu] [--jobs 4]         # engines of this vLLM

`--inside`: no engine and no weights. In a process of that Python vLLM's own config, model classes of the 27B (on
`meta`), ``Platform.update_block_size_for_backend`` and ``EngineCore._initialize_kv_caches`` divide a pretended
amount of memory. Stand-ins: FlashAttention or Triton as attention's backend, and the worker that says what is free.

`--engine`: real engines; each logs its tokens, then runs as many requests as planned, and one more. With `--gpu`
FOLDER is written: 64 layers with the caches of the 27B, and weights that are made up and narrow. The cache has 8 or
20 GiB. Without, FOLDER is a checkpoint, and the cache has 48 MiB.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock, patch

from bench.arguments import command_line
from bench.dummy import TINY
from bench.dummy import config as config_27b
from bench.results import Json, load, save
from gptq_hybrid.checkpoint import Checkpoint
from gptq_hybrid.memory import CPU_ALIGNMENT, TRITON_KV_DTYPES, cache_layout
from gptq_hybrid.plan import parse_log

# Sizes of the 27B that no cache depends on, made small: a start takes 20 s.
_NARROW = {"hidden_size": 512, "intermediate_size": 1024, "vocab_size": 2048}
_REPLY, _MOST = 16, 1024
_SIZES = ((True, 200_000, int(21.79 * 2**30)), (True, 32_768, 4 << 30), (False, 100_000, 8 << 30))


def settings() -> list[Json]:
    """Drafts × KV type × cache, length and prefix caching; then other dtypes of states and of KV."""
    names = ("drafts", "kv", "prefix", "length", "bytes", "state")
    grid = [(d, kv, *size, "auto") for d, kv, size in itertools.product(range(5), ("auto", "fp8"), _SIZES)]
    grid += [(d, kv, *_SIZES[0], "float16") for d, kv in itertools.product((0, 2), ("auto", "fp8"))]
    grid += [
        (d, kv, *size, "auto") for d, kv, size in itertools.product((0, 2), TRITON_KV_DTYPES, _SIZES[:2])
    ]
    return [dict(zip(names, row, strict=True)) for row in grid]


def arguments(setting: Json) -> Json:
    """The arguments of vLLM that a setting stands for."""
    drafts = setting["drafts"]
    return {
        "load_format": "dummy",
        "max_model_len": setting["length"],
        "kv_cache_dtype": setting["kv"],
        "enable_prefix_caching": setting["prefix"],
        "mamba_ssm_cache_dtype": setting["state"],
        # No less than a block, which prefix caching wants.
        "max_num_batched_tokens": 4096,
        "limit_mm_per_prompt": {"image": 0, "video": 0},
        "speculative_config": {"method": "mtp", "num_speculative_tokens": drafts} if drafts else None,
    }


def planned(checkpoint: Checkpoint, setting: Json, size: int, alignment: int = 16) -> Any:
    """The layout that `qwen36 plan` derives."""
    return cache_layout(
        checkpoint,
        drafts=setting["drafts"],
        kv_dtype=setting["kv"],
        prefix_caching=setting["prefix"],
        state_dtype=setting["state"],
        alignment=alignment,
    )


class _Lines(logging.Handler):
    text = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.text += record.getMessage() + "\n"


def inside(folder: Path, setting: Json) -> Json:
    """What this vLLM makes of ``setting["bytes"]``, and logs."""
    import vllm.logger
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1 import kv_cache_interface
    from vllm.v1.engine.core import EngineCore

    config = EngineArgs(str(folder), skip_tokenizer_init=True, **arguments(setting)).create_engine_config()
    worker, lines = MagicMock(), _Lines()
    worker.get_kv_cache_specs.return_value = [_specs(config, setting["kv"])]
    worker.determine_available_memory.return_value = [setting["bytes"]]
    names = [layout.name for layout in getattr(kv_cache_interface, "KVCacheLayout", ())]
    worker.get_supported_kv_cache_layouts.return_value = [names]
    vllm.logger._print_info_once.cache_clear()
    logging.getLogger("vllm").addHandler(lines)
    core = SimpleNamespace(model_executor=worker, collective_rpc=worker)
    found = EngineCore._initialize_kv_caches(core, config)
    logging.getLogger("vllm").removeHandler(lines)
    log = parse_log(lines.text)
    return {"blocks": found.num_blocks, "tokens": log.tokens, "requests": log.concurrency}


def _specs(config: Any, kv: str) -> Any:
    """The caches that the layers of target and draft ask for."""
    import torch
    from vllm.config import set_current_vllm_config
    from vllm.distributed import init_distributed_environment, initialize_model_parallel, parallel_state
    from vllm.model_executor.model_loader.utils import initialize_model
    from vllm.platforms.interface import Platform
    from vllm.v1.attention.backends import cpu_attn, flash_attn, triton_attn
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    backend: Any = (
        triton_attn.TritonAttentionBackend if kv in TRITON_KV_DTYPES else flash_attn.FlashAttentionBackend
    )
    stand_in: Any = cpu_attn.CPUAttentionBackend
    stand_in.supports_kv_cache_dtype = classmethod(lambda cls, dtype: True)
    if hasattr(backend, "customize_spec"):
        stand_in.customize_spec = classmethod(lambda cls, spec: backend.customize_spec(spec))
    platform: Any = Platform
    platform._find_non_ssm_backends = classmethod(lambda cls, config: [backend])
    platform._find_non_ssm_backend = classmethod(lambda cls, config: backend)
    drafting = config.speculative_config
    with set_current_vllm_config(config):
        if not parallel_state.model_parallel_is_initialized():
            store = f"file://{tempfile.mkdtemp()}/store"
            init_distributed_environment(1, 0, store, 0, "gloo")
            initialize_model_parallel(1)
        torch.set_default_dtype(torch.bfloat16)
        with torch.device("meta"):
            for model in (config.model_config, drafting and drafting.draft_model_config):
                if model:
                    initialize_model(vllm_config=config, model_config=model)
        torch.set_default_dtype(torch.float32)
        platform.update_block_size_for_backend(config)
        runner = SimpleNamespace(
            vllm_config=config, shared_kv_cache_layers={}, cache_config=config.cache_config
        )
        return GPUModelRunner.get_kv_cache_spec(runner)


def checkpoint_27b(folder: Path) -> Path:
    """A folder with the 27B's ``config.json`` alone, unquantized: its caches are those of any quantization."""
    content = config_27b(64, desc_act=False)
    del content["quantization_config"]
    content["text_config"]["max_position_embeddings"] = 262144
    (folder / "config.json").write_text(json.dumps(content))
    return folder


def engine(path: str, setting: Json, *, gpu: bool) -> Json:
    """Tokens that a real engine has, and what happens with as many requests as planned, and one more."""
    import vllm

    more: Json = {"gdn_prefill_backend": "triton", "gpu_memory_utilization": 0.15} if gpu else {}
    llm = vllm.LLM(
        path,
        enforce_eager=True,
        skip_tokenizer_init=True,
        max_num_seqs=64,
        kv_cache_memory_bytes=setting["bytes"],
        **arguments(setting) | more,
    )
    core = llm.llm_engine.engine_core.engine_core
    config = llm.llm_engine.vllm_config.cache_config
    size = int(setting["bytes"])
    layout = planned(Checkpoint.open(path), setting, size, 16 if gpu else CPU_ALIGNMENT)
    each = setting["request"]
    number = layout.at_once(size, each)
    return {
        "bytes": size,
        "blocks": config.num_gpu_blocks,
        "tokens": config.kv_cache_size_tokens,
        "planned_blocks": size // layout.block_bytes,
        "planned": layout.reported_tokens(size, setting["length"]),
        "batch": number,
        "as_planned": run(llm, core, number, each),
        "one_more": run(llm, core, number + 1, each),
    }


def run(llm: Any, core: Any, number: int, each: int) -> Json:
    """How many of ``number`` requests of ``each`` tokens ran at once, and how many were put off.

    Prompts are read before, one after another, where vLLM keeps them: so the last starts while the first has hardly
    grown. It ends once all decode, or all that were let in.
    """
    from vllm import SamplingParams

    engine, scheduler = llm.llm_engine, core.scheduler
    prompts = {f"{number}-{index}": prompt(index, each - _REPLY) for index in range(number)}

    def add(name: str, tokens: int) -> None:
        options = SamplingParams(max_tokens=tokens, ignore_eos=True, detokenize=False, temperature=0)
        engine.add_request(name, {"prompt_token_ids": prompts[name]}, options)

    if llm.llm_engine.vllm_config.cache_config.enable_prefix_caching:
        for name in prompts:
            add(name, 1)
            while engine.has_unfinished_requests():
                engine.step()
    for name in prompts:
        add(name, _MOST)
    decoding: set[str] = set()
    alike = 0
    # A step may have had no tokens left for one more: three are needed.
    while alike < 3:
        decoding |= {output.request_id for output in engine.step() if output.outputs[0].token_ids}
        put_off = sum(request.num_preemptions for request in scheduler.requests.values())
        alike = 3 if put_off else alike + 1 if len(scheduler.running) <= len(decoding) else 0
    found = {"running": len(scheduler.running) + put_off, "put_off": put_off}
    engine.abort_request(list(prompts))
    while engine.has_unfinished_requests():
        engine.step()
    return found


def prompt(index: int, length: int) -> list[int]:
    """Tokens of a request, those of no other."""
    return [(index * 31 + at) % 500 + 1 for at in range(length)]


def engine_settings(gpu: bool) -> list[Json]:
    """Twenty: each start takes 20 s."""
    kinds, sizes = (("auto", "fp8"), (8 << 30, 20 << 30)) if gpu else (("auto",), (48 << 20, 80 << 20))
    lengths = (32768,) if gpu else (2048, 4096)
    usual = {"state": "auto", "prefix": gpu, "request": 30_000 if gpu else 700}
    grid = itertools.product(range(5), kinds, sizes, lengths)
    return [{"drafts": d, "kv": kv, "bytes": size, "length": length, **usual} for d, kv, size, length in grid]


def narrow_27b(folder: Path) -> None:
    """A folder with the ``config.json`` of a W4 model whose caches are the 27B's."""
    with patch.dict(TINY, _NARROW, clear=True):
        content = config_27b(64, desc_act=False, tiny=True)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(content))


def collect(out: Path, commands: list[list[str]], jobs: int) -> None:
    """Run ``[python, *flags]`` so many at a time, each with a file of its own; add what they found to ``out``."""
    result = load(out) or {"inside": {}, "engines": {}}
    found: dict[str, dict[int, list[Json]]] = {}

    def run(number: int) -> int:
        python, *flags = commands[number]
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "part.json")
            command = [python, "-m", "tests.plan.compare", str(file), *flags]
            code = subprocess.run(command, check=False).returncode
            part = load(file) or {"inside": {}, "engines": {}}
        with lock:
            result["inside"] |= part["inside"]
            for name, rows in part["engines"].items():
                found.setdefault(name, {})[number] = rows
                result["engines"][name] = [row for _, rows in sorted(found[name].items()) for row in rows]
            save(out, result)
        return code

    lock = Lock()
    with ThreadPoolExecutor(jobs) as pool:
        failed = [n for n, code in enumerate(pool.map(run, range(len(commands)))) if code]
    if failed:
        sys.exit(f"{len(failed)} of {len(commands)} failed: {failed}")


def main() -> None:
    """Command line."""
    parser = command_line(__doc__, "out")
    parser.add_argument(
        "--inside", nargs="*", default=[], metavar="PYTHON", help="of environments with a vLLM"
    )
    parser.add_argument("--engine", metavar="FOLDER", type=Path)
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument("--jobs", type=int, default=1, help="engines at a time")
    parser.add_argument("--only", type=int, help="the setting of this number, in this process")
    args = parser.parse_args()
    if args.only is None:
        commands = [[python, "--only", "-1"] for python in args.inside]
        if args.engine:
            if args.gpu:
                narrow_27b(args.engine)
            flags = ["--engine", str(args.engine), *(["--gpu"] if args.gpu else [])]
            numbers = range(len(engine_settings(args.gpu)))
            commands += [[sys.executable, *flags, "--only", str(n)] for n in numbers]
        collect(args.out, commands, args.jobs)
        return
    result: Json = {"inside": {}, "engines": {}}
    os.environ |= {"VLLM_PLUGINS": "", "HF_HUB_OFFLINE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    import torch
    import vllm

    if args.engine:
        setting = engine_settings(args.gpu)[args.only]
        place = f"GPU {torch.cuda.get_device_name()}" if args.gpu else "CPU"
        name = f"vLLM {vllm.__version__}, {place}, {args.engine.name}"
        result["engines"][name] = [setting | engine(str(args.engine), setting, gpu=args.gpu)]
    else:
        folder = checkpoint_27b(Path(tempfile.mkdtemp()))
        rows = result["inside"][vllm.__version__] = []
        for setting in settings():
            layout = planned(Checkpoint.open(folder), setting, 0)
            blocks, groups = setting["bytes"] // layout.block_bytes, 3 + -(-layout.attention_layers // 17)
            row = {
                "planned_blocks": blocks,
                "planned": layout.reported_tokens(setting["bytes"], setting["length"]),
            }
            row["planned_one_group"] = blocks // groups * layout.block_tokens
            try:
                row |= inside(folder, setting)
            except Exception as error:  # noqa: BLE001 - a release without this type says so
                row["refused"] = str(error).splitlines()[-1][:80]
            rows.append(setting | row)
    save(args.out, result)


if __name__ == "__main__":
    main()
