"""No touch of vLLM, gptqmodel, torch or transformers is unlisted, and the table is up to date."""

from __future__ import annotations

import builtins
import re
import subprocess
import sys
import types
from collections.abc import Iterable
from concurrent.futures import Future
from contextlib import ExitStack
from hashlib import sha256
from logging import Logger
from pathlib import Path

import pytest
import torch

from vllm_qwen36_plugin.upstream.contract.listed import ledgers, touches
from vllm_qwen36_plugin.upstream.contract.packages import installed

from .pages import PACKAGES, ROOT
from .source_tree import SourceTree
from .touches import Touches

LISTED = {touch.name for touch in touches()}
# The last part of each listed name: what an attribute of any object may be called.
# `_asdict` is of Python's named tuples.
MEMBERS = {re.split(r"[:.]", name)[-1] for name in LISTED} | {"_asdict"}
# Rooms whose objects may be upstream's. Pictures, tables and the contract itself handle others.
ROOMS = (
    "vllm_qwen36_plugin.act_order",
    "vllm_qwen36_plugin.cpu",
    "vllm_qwen36_plugin.draft_head",
    "vllm_qwen36_plugin.features",
    "vllm_qwen36_plugin.models",
    "vllm_qwen36_plugin.mtp_guard",
    "vllm_qwen36_plugin.prefill",
    "vllm_qwen36_plugin.start",
    "vllm_qwen36_plugin.upstream",
    "gptq_hybrid.definition",
    "gptq_hybrid.quantize.run",
    "gptq_hybrid.upstream",
)
# The contract itself; and patches for others, whose tests and programs touch what they change.
NOT_HERE = (
    "vllm_qwen36_plugin.upstream.contract",
    "vllm_qwen36_plugin.upstream.proposals",
    "gptq_hybrid.upstream.proposals",
)
# Names of Python, of torch and of Triton's compiled kernels; and what stands in a checkpoint's config.
KNOWN_TYPES: tuple[object, ...] = (
    *(value for value in vars(builtins).values() if isinstance(value, type)),
    *(value for value in vars(types).values() if isinstance(value, type)),
    torch.Tensor, torch.nn.Parameter, torch.nn.Module, torch.dtype, torch.device,
    torch.cuda.Event, torch.cuda.Stream, Future,
    torch.library, torch, Path, Path.stat(ROOT), re.compile(""), re.match("", ""), ExitStack, Logger, sha256(),
)  # fmt: skip
OTHERS = {
    "element_ty": "of a pointer in Triton",
    "function": "of a compiled kernel of Triton",
    "packed_metadata": "of a compiled kernel of Triton",
    "is_mutable": "of an operator's schema",
    "multi_processor_count": "of torch's properties of a GPU",
    "result": "of a future",
    "submit": "of a pool of threads",
    "submodule_search_locations": "of an import spec",
    "total_memory": "of torch's properties of a GPU",
    "to_dict": "of a config of transformers",
    "qweight": "a parameter that vLLM's linear method makes, by its name in GPTQ checkpoints",
    "scale": "of the quantizer",
    "weight_scale": "a parameter of our own FP8 method",
    "order": "our own parameter",
    "qwen36_allowed": "our own mark",
    "qwen36_checks": "our own mark",
    "qwen36_class": "our own mark",
}


@pytest.fixture(scope="module")
def found() -> Touches:
    return Touches(SourceTree(ROOT, PACKAGES), installed())


# What no line of ours calls, and we rely on.
UNCALLED = {
    "vllm.config:VllmConfig.compute_hash": "takes in `additional_config`, which carries the key of compiled graphs",
    "vllm.plugins:load_general_plugins": "calls `register` in every process",
    "vllm.model_executor.model_loader.default_loader:DefaultModelLoader.track_weights_loading": "called by the key",
    "vllm.model_executor.model_loader.utils:get_draft_load_config": "takes the draft's own load config first",
    # Dispatchers are found by what they hold, not by name.
    "vllm.v1.spec_decode.utils:_eagle_step_slot_mapping_metadata": "launches a step of drafts",
    "vllm.v1.sample.rejection_sampler:_rejection_greedy_sample": "launches the sampler",
    "vllm.v1.sample.rejection_sampler:_rejection_random_sample": "launches the sampler",
    "vllm.v1.sample.rejection_sampler:_sample_recovered_tokens": "launches the sampler",
}


def is_private_of_torch(name: str) -> bool:
    return any(part.startswith("_") and not part.startswith("__") for part in re.split(r"[:.]", name))


ADVICE = (
    "list these in contract.toml, then run python -m vllm_qwen36_plugin.upstream.contract VLLM_WHEEL …:\n"
)


def unlisted(names: Iterable[tuple[str, int, str]]) -> list[str]:
    """Those that are not in the lists; of torch only private ones have to be."""
    return sorted(
        {
            f"{where}:{line}: {name}"
            for where, line, name in names
            if name not in LISTED and (not name.startswith("torch") or is_private_of_torch(name))
        }
    )


def test_every_name_that_is_imported_or_taken_from_an_import_is_listed(found: Touches) -> None:
    sources = [source for source in found.tree if not source.name.startswith(NOT_HERE)]
    names = [(source.name, line, name) for source in sources for line, name in found.of(source)]
    assert len({name for _, _, name in names}) > 80
    # A package or class on the way to a name says nothing by itself.
    on_the_way = {n for _, _, n in names if any(other.startswith((f"{n}.", f"{n}:")) for other in LISTED)}
    strangers = unlisted(entry for entry in names if entry[2] not in on_the_way)
    assert not strangers, ADVICE + "\n".join(strangers)


def test_every_member_of_an_upstream_class_that_a_subclass_overrides_or_uses_is_listed(
    found: Touches,
) -> None:
    names = [(source.name, line, name) for source in found.tree for line, name in found.overridden(source)]
    assert len({name for _, _, name in names}) > 30
    assert not unlisted(names), ADVICE + "\n".join(unlisted(names))


def test_every_attribute_of_an_object_whose_class_the_text_does_not_show_is_listed(found: Touches) -> None:
    known = found.own_names() | MEMBERS | OTHERS.keys() | {n for kind in KNOWN_TYPES for n in dir(kind)}
    strangers = sorted(
        f"{source.name}:{line}: {name}"
        for source in found.tree
        for line, name in found.attributes(source)
        if name not in known and source.name.startswith(ROOMS) and not source.name.startswith(NOT_HERE)
    )
    assert not strangers, ADVICE + "\n".join(strangers)


def test_every_private_attribute_anywhere_is_ours_or_listed(found: Touches) -> None:
    own = found.own_names() | MEMBERS
    strangers = sorted(
        f"{source.name}:{line}: {name}"
        for source in found.tree
        for line, name in found.attributes(source)
        if name.startswith("_") and not name.startswith("__") and name not in own
    )
    assert not strangers, ADVICE + "\n".join(strangers)


@pytest.mark.parametrize(
    "line",
    [
        "from vllm.model_executor.models.qwen3_5 import Qwen3_5Model",
        "def later():\n    from vllm.v1.worker import gpu_model_runner",
        "from vllm.model_executor.kernels import linear\nlinear._POSSIBLE_FP8_KERNELS",
        'from vllm.model_executor.kernels import linear\n_NAME = "_hidden"\ngetattr(linear, _NAME)',
        'from importlib import import_module\nimport_module("vllm.v1.worker.gpu_model_runner")',
        "import torch\ntorch._int_mm",
        "import torch\ntorch.ops._C.gptq_marlin_gemm(1)",
        "import gptqmodel.looper.loop_processor as p\np._LOGGER = 1",
    ],
)
def test_a_touch_that_is_not_listed_is_seen(tmp_path: Path, line: str) -> None:
    (tmp_path / "house").mkdir()
    (tmp_path / "house" / "a.py").write_text(line)
    found = Touches(SourceTree(tmp_path, ("house",)), installed())
    (source,) = found.tree
    assert unlisted(("house.a", at, name) for at, name in found.of(source)) != []


def test_an_override_that_is_not_listed_is_seen(tmp_path: Path) -> None:
    (tmp_path / "house").mkdir()
    (tmp_path / "house" / "a.py").write_text(
        "from vllm.model_executor.models.qwen3_5_mtp import Qwen3_5MTP\n"
        "class Mine(Qwen3_5MTP):\n    def load_weights(self): ...\n    def embed_input_ids(self): ...\n"
        "class Below(Mine):\n    def forward(self):\n        return super().forward()\n"
    )
    found = Touches(SourceTree(tmp_path, ("house",)), installed())
    (source,) = found.tree
    seen = unlisted(("house.a", at, name) for at, name in found.overridden(source))
    assert [name.rpartition(".")[2] for name in seen] == ["embed_input_ids", "forward", "forward"]


def test_a_name_that_no_line_has_any_more_leaves_the_list(found: Touches) -> None:
    texts = [source.path.read_text("utf-8") for source in found.tree if ".proposals." not in source.name]
    words = set(re.findall(r"\w+", "\n".join(texts)))
    gone = {name for name in LISTED if ":" in name and re.split(r"[:.]", name)[-1] not in words}
    assert gone == UNCALLED.keys()


def test_the_table_and_the_record_are_up_to_date() -> None:
    command = [sys.executable, "-m", "vllm_qwen36_plugin.upstream.contract", "--check"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_both_ledgers_have_names() -> None:
    assert {touch.entry.ledger for touch in touches()} == set(ledgers()) == set(PACKAGES)
