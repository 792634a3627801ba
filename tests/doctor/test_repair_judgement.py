"""`repair` leaves alone what needs judgement, such as which of two files is right, and the finding stays."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from gptq_hybrid.checkpoint import INDEX_NAME, MTP_FILE, Checkpoint
from gptq_hybrid.common.errors import HybridError
from gptq_hybrid.demo.builder import DemoCheckpoint
from gptq_hybrid.doctor.repair import repair
from tests.corpus import Workshop

from .folders import content, nothing_lost, rules, weight_map, without_head

FIRST, LAST = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
FC = "mtp.fc.weight"


def other_copy(path: Path) -> Workshop:
    """A copy of a checkpoint with a second version of its first shard, whose last byte differs."""
    shop = Workshop(path, path.parent / "case")
    data = (shop.folder / FIRST).read_bytes()
    (shop.folder / "zz.safetensors").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    return shop


def test_of_two_files_that_differ_neither_leaves_the_index(separate: Path) -> None:
    shop = other_copy(separate)
    moved = next(n for n, file in weight_map(shop.folder).items() if file == FIRST)
    shop.index(lambda m: m.update({moved: "zz.safetensors"}))
    shop.json(INDEX_NAME, lambda i: i["metadata"].update(total_size=1))
    repair(shop.folder)
    assert {FIRST, "zz.safetensors"} <= set(weight_map(shop.folder).values())
    assert rules(shop.folder) == {"index-duplicate"}


def test_no_index_is_written_that_would_choose_between_files_that_differ(separate: Path) -> None:
    shop = other_copy(separate)
    shop.delete(INDEX_NAME)
    before = content(shop.folder)
    assert repair(shop.folder).done == ()
    assert content(shop.folder) == before


def test_no_index_is_written_that_would_hide_a_file_cut_short(separate: Path) -> None:
    shop = Workshop(separate, separate.parent / "case")
    shop.delete(INDEX_NAME)
    path = shop.path(MTP_FILE)
    path.write_bytes(path.read_bytes()[:-100])
    old = rules(shop.folder)
    assert "shard-unreadable" in old
    repair(shop.folder)
    assert rules(shop.folder) == old


def test_a_stray_file_does_not_bring_another_value_of_a_loaded_tensor(separate: Path) -> None:
    name = "model.language_model.norm.weight"
    shop = Workshop(separate, separate.parent / "case")
    shop.index(lambda m: [m.pop(n) for n in list(m) if n.startswith("mtp.")])
    shop.shard(
        MTP_FILE, lambda t: t.update({name: torch.full((256,), 3.0, dtype=torch.bfloat16)}), reindex=False
    )
    old = rules(shop.folder)
    repair(shop.folder)
    assert rules(shop.folder) <= old
    assert MTP_FILE not in weight_map(shop.folder).values()


def test_an_entry_of_a_tensor_that_is_nowhere_stays_if_the_model_needs_it(separate: Path) -> None:
    shop = Workshop(separate, separate.parent / "case")
    shop.shard(MTP_FILE, lambda t: t.pop(FC), reindex=False)
    shop.index(lambda m: m.update({FC: MTP_FILE, "model.of.nobody": MTP_FILE}))
    repair(shop.folder)
    assert weight_map(shop.folder)[FC] == MTP_FILE
    assert "model.of.nobody" not in weight_map(shop.folder)


def test_a_zero_head_that_the_index_does_not_name_is_replaced_in_one_run(
    separate: Path, original: DemoCheckpoint
) -> None:
    shop = Workshop(separate, separate.parent / "case")
    shop.shard(MTP_FILE, lambda t: [v.zero_() for v in t.values()])
    shop.index(lambda m: [m.pop(n) for n in list(m) if n.startswith("mtp.")])
    assert repair(shop.folder, mtp_from=original.path).left == ()
    assert (shop.folder / f"{MTP_FILE}.bak").exists()


@pytest.mark.parametrize("fault", ["null dynamic", "lacks a shard"])
def test_a_donor_need_only_have_a_good_head(
    separate: Path, original: DemoCheckpoint, tmp_path: Path, fault: str
) -> None:
    donor = Workshop(original.path, tmp_path / "donor")
    if fault == "lacks a shard":
        assert {f for n, f in weight_map(donor.folder).items() if n.startswith("mtp.")} == {LAST}
        donor.delete(FIRST)
    else:
        quantization = {
            "quant_method": "gptq",
            "bits": 4,
            "group_size": 128,
            "desc_act": False,
            "dynamic": None,
        }
        donor.config(lambda c: c.update(quantization_config=quantization))
    path = without_head(separate, tmp_path / "case")
    assert repair(path, mtp_from=donor.folder).left == ()


def test_a_donor_from_the_hub_cache_is_recorded_by_name_and_commit(
    separate: Path, original: DemoCheckpoint, tmp_path: Path
) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    folder = tmp_path / "secret" / "models--Qwen--Qwen3.6-27B" / "snapshots" / commit
    shutil.copytree(original.path, folder)
    path = without_head(separate, tmp_path / "case")
    repair(path, mtp_from=folder)
    receipt = json.loads((path / "mtp-graft.json").read_text())
    assert (receipt["donor"], receipt["revision"]) == ("Qwen/Qwen3.6-27B", commit)
    assert receipt["tensors"][FC]["file"] == LAST
    written = (path / "mtp-graft.json").read_bytes() + (path / MTP_FILE).read_bytes()
    assert b"secret" not in written
    metadata = Checkpoint.open(path)
    assert FC in metadata.loaded
    assert metadata.headers[MTP_FILE].metadata["mtp_revision"] == commit
    assert metadata.headers[MTP_FILE].metadata[f"sha256:{FC}"] == receipt["tensors"][FC]["sha256"]


def quantize_head(shop: Workshop, *, permuted: bool) -> None:
    """Store the head as GPTQ, its g_idx in natural order or back to front."""

    generator = torch.Generator().manual_seed(0)

    def pack(tensors: dict[str, Any]) -> None:
        for name in [n for n, t in tensors.items() if t.dim() == 2]:
            out, into = tensors.pop(name).shape
            module, groups = name.removesuffix(".weight"), into // 128
            g_idx = torch.arange(into, dtype=torch.int32) // 128
            # A head of equal values would be called dead.
            words = torch.randint(0, 1 << 31, (into // 8, out), generator=generator)
            tensors[f"{module}.qweight"] = words.to(torch.int32)
            tensors[f"{module}.scales"] = torch.full((groups, out), 0.01, dtype=torch.float16)
            tensors[f"{module}.qzeros"] = torch.ones(groups, out // 8, dtype=torch.int32)
            tensors[f"{module}.g_idx"] = g_idx.flip(0).contiguous() if permuted else g_idx

    shop.shard(MTP_FILE, pack)
    shop.json(INDEX_NAME, lambda i: i.pop("metadata"))


def test_the_rule_that_excludes_a_quantized_head_is_removed(
    quantized: Callable[..., Any], tmp_path: Path
) -> None:
    shop = Workshop(quantized("static").path, tmp_path / "case")
    quantize_head(shop, permuted=False)
    shop.quantization(dynamic={r"-:^mtp\.": {}, "+:.*nothing.*": {"bits": 8}})
    assert rules(shop.folder) == {"mtp-quantization"}
    assert repair(shop.folder).left == ()
    for name in ("config.json", "quantize_config.json"):
        config = json.loads((shop.folder / name).read_text())
        assert config.get("quantization_config", config)["dynamic"] == {"+:.*nothing.*": {"bits": 8}}


def test_a_rule_that_excludes_more_than_the_head_stays(quantized: Callable[..., Any], tmp_path: Path) -> None:
    shop = Workshop(quantized("static").path, tmp_path / "case")
    quantize_head(shop, permuted=False)
    shop.quantization(dynamic={"-:.*(mtp|visual).*": {}})
    before = content(shop.folder)
    repair(shop.folder)
    assert content(shop.folder) == before


def test_a_permuted_g_idx_of_the_head_alone_keeps_the_flag(
    quantized: Callable[..., Any], tmp_path: Path
) -> None:
    shop = Workshop(quantized("static").path, tmp_path / "case")
    quantize_head(shop, permuted=True)
    shop.quantization(desc_act=True, dynamic={})
    repair(shop.folder)
    assert json.loads((shop.folder / "config.json").read_text())["quantization_config"]["desc_act"] is True


def test_merging_keeps_what_is_recorded_of_a_grafted_head(
    separate: Path, original: DemoCheckpoint, tmp_path: Path
) -> None:
    path = without_head(separate, tmp_path / "case")
    repair(path, mtp_from=original.path)
    merged = repair(path, out=tmp_path / "merged", merge_mtp=True).path
    opened = Checkpoint.open(merged)
    file = opened.loaded[FC].file
    assert file != MTP_FILE
    assert opened.headers[file].metadata["mtp_origin"] == original.path.name


def test_a_graft_and_a_merge_are_two_steps(separate: Path, original: DemoCheckpoint, tmp_path: Path) -> None:
    path = without_head(separate, tmp_path / "case")
    with pytest.raises(HybridError, match="second step"):
        repair(path, mtp_from=original.path, merge_mtp=True, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_rewritten_shard_of_odd_sizes_is_read_by_safetensors_itself(
    original: DemoCheckpoint, tmp_path: Path
) -> None:
    shop = Workshop(original.path, tmp_path / "case")
    odd = {"a.odd": torch.ones(3, dtype=torch.bfloat16), "b.wide": torch.ones(2, dtype=torch.int64)}
    shop.shard(LAST, lambda t: t.update(odd))
    repair(shop.folder, out=tmp_path / "out", split_mtp=True)
    # Tensors are views of the file's pages, so a wide element must be aligned there.
    tensors = load_file(tmp_path / "out" / LAST)
    assert all(torch.equal(tensors[name], tensor) for name, tensor in odd.items())
    assert all(tensor.data_ptr() % tensor.element_size() == 0 for tensor in tensors.values())


CALLS = ("replace", "rename", "link", "fsync", "unlink")


@pytest.mark.parametrize("lasting", [False, True], ids=["once", "from-then-on"])
def test_a_call_that_fails_leaves_the_old_or_the_new(
    separate: Path, original: DemoCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lasting: bool
) -> None:
    for step in range(1, 60):
        shop = Workshop(separate, tmp_path / str(step))
        path = shop.path(MTP_FILE)
        path.write_bytes(path.read_bytes()[:-100])
        before, old, count = content(shop.folder), rules(shop.folder), 0

        def failing(call: Callable[..., Any], at: int = step) -> Callable[..., Any]:
            def wrapped(*args: Any, **kwargs: Any) -> Any:
                nonlocal count
                count += 1
                if count == at or (lasting and count > at):
                    raise OSError(28, "No space left on device")
                return call(*args, **kwargs)

            return wrapped

        with monkeypatch.context() as patch:
            for name in CALLS:
                patch.setattr(os, name, failing(getattr(os, name)))
            try:
                repair(shop.folder, mtp_from=original.path)
                failed = False
            except HybridError:
                failed = True
        assert rules(shop.folder) <= old
        after = content(shop.folder)
        assert nothing_lost(before, after)
        assert not [n for n in after if n.endswith(".safetensors") and n not in before]
        assert repair(shop.folder, mtp_from=original.path).left == ()
        if count < step:
            assert not failed
            break
    assert step > 5


KILLED = """
import sys
from gptq_hybrid.doctor.repair import repair
print("ready", flush=True)
repair(sys.argv[1], mtp_from=sys.argv[2])
"""


def test_killed_at_any_time_while_a_larger_head_is_copied(
    build: Callable[..., DemoCheckpoint], tmp_path: Path
) -> None:
    size = {"hidden_size": 1024, "intermediate_size": 2048}
    donor = build(**size).path
    template = without_head(build(**size, mtp="separate").path, tmp_path / "template")
    shop_rules = rules(template) | {"mtp-unindexed", "index-total-size"}
    before = content(template)
    killed = finished = 0
    for delay in [0.0, *(0.02 * 1.45**n for n in range(12))]:
        path = Workshop(template, tmp_path / f"{delay:.3f}").folder
        command = [sys.executable, "-c", KILLED, str(path), str(donor)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            time.sleep(delay)
            process.kill()
        killed += process.returncode == -signal.SIGKILL
        finished += MTP_FILE in weight_map(path).values()
        after = content(path)
        assert rules(path) <= shop_rules
        assert nothing_lost(before, after)
        assert repair(path, mtp_from=donor).left == ()
        shutil.rmtree(path)
    assert killed
    assert finished, "the last of them had time enough"
