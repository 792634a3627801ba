"""`repair` mends what needs no judgement, keeps what it replaces, and says what is left."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from gptq_hybrid.checkpoint import INDEX_NAME, MTP_FILE, Checkpoint
from gptq_hybrid.common.errors import HybridError
from gptq_hybrid.demo.builder import DemoCheckpoint
from gptq_hybrid.doctor import check
from gptq_hybrid.doctor.repair import repair
from tests.checkpoint.range_server import serving
from tests.corpus import CASES, Bases, Workshop

from .folders import content, nothing_lost, snapshot, weight_map

FC = "mtp.fc.weight"
LAST = "model-00002-of-00002.safetensors"
# Cases of the corpus that `repair` mends on its own, and those that need a donor.
ALONE = (
    "index-not-json", "index-no-weight-map", "body-unindexed", "unnamed-tensor", "stale-entry", "total-size",
    "no-index", "head-unindexed", "dynamic-null", "head-short-module-list", "head-not-in-awq-list",
    "head-bf16-in-fp8", "config-copies-differ", "act-order-flag-only",
    "act-order-by-rule",
)  # fmt: skip
WITH_DONOR = (
    "head-absent", "head-file-absent", "head-no-fc", "head-wide-fc", "head-fp8", "head-int8", "head-zero",
    "head-nan", "head-trailing-bytes", "head-half-fused", "head-gptq-in-packed", "head-overlap",
)  # fmt: skip


def broken(bases: Bases, case_id: str, folder: Path) -> Path:
    case = next(case for case in CASES if case.id == case_id)
    shop = Workshop(bases[case.base], folder / "case")
    case.apply(shop)
    return shop.folder


@pytest.mark.parametrize("case_id", ALONE)
def test_what_takes_no_donor_is_mended_in_place(bases: Bases, case_id: str, tmp_path: Path) -> None:
    path = broken(bases, case_id, tmp_path)
    before = content(path)
    result = repair(path)
    assert result.done
    assert [finding for finding in result.left if finding.rule != "index-orphan-file"] == []
    assert check(path, vllm="0.32").verdict == "serves"
    assert nothing_lost(before, content(path))
    assert {n: d for n, d in before.items() if n.endswith(".safetensors")}.items() <= content(path).items()
    assert repair(path).done == ()


@pytest.mark.parametrize("case_id", WITH_DONOR)
def test_a_lost_head_is_taken_from_a_donor(bases: Bases, case_id: str, tmp_path: Path) -> None:
    path, donor = broken(bases, case_id, tmp_path), bases["bf16-inline"]
    before = content(path)
    assert repair(path, mtp_from=donor).left == ()
    assert nothing_lost(before, content(path))
    mended, source = Checkpoint.open(path), Checkpoint.open(donor)
    head = {name for name in source.loaded if name.startswith("mtp.")}
    assert {name for name in mended.loaded if name.startswith("mtp.")} == head
    for name in head:
        assert mended.loaded[name].file == MTP_FILE
        assert mended.read_bytes(mended.loaded[name]) == source.read_bytes(source.loaded[name])


def test_origin_and_digests_of_a_grafted_head_are_recorded(bases: Bases, tmp_path: Path) -> None:
    path = broken(bases, "head-absent", tmp_path)
    repair(path, mtp_from=bases["bf16-inline"])
    receipt = json.loads((path / "mtp-graft.json").read_text())
    assert receipt["donor"] == bases["bf16-inline"].name
    with safe_open(path / MTP_FILE, framework="pt") as file:
        metadata = file.metadata()
    assert metadata["format"] == "pt"
    assert metadata["mtp_origin"] == receipt["donor"]
    checkpoint = Checkpoint.open(path)
    for name, entry in receipt["tensors"].items():
        digest = hashlib.sha256(checkpoint.read_bytes(checkpoint.loaded[name])).hexdigest()
        assert entry["sha256"] == digest == metadata[f"sha256:{name}"]
        assert entry["file"].startswith("model-")
    assert len(receipt["tensors"]) == 15
    assert str(tmp_path) not in json.dumps(receipt) + json.dumps(metadata)


def test_a_donor_on_a_server_is_read_for_its_head_alone(bases: Bases, tmp_path: Path) -> None:
    path = broken(bases, "head-absent", tmp_path)
    donor = bases["bf16-inline"]
    head = sum(i.nbytes for n, i in Checkpoint.open(donor).loaded.items() if n.startswith("mtp."))
    reports: list[tuple[int, int]] = []
    with serving(donor) as server:
        result = repair(path, mtp_from=server.url, progress=lambda *report: reports.append(report))
        sent = server.sent
    assert result.left == ()
    assert head <= sent < head + 300_000
    assert reports[-1] == (head, head)


def test_several_faults_go_in_one_run(bases: Bases, tmp_path: Path) -> None:
    path = broken(bases, "head-unindexed", tmp_path)
    shop = Workshop(path, tmp_path / "both")
    shop.config(lambda c: c["quantization_config"].update(dynamic=None))
    shop.json(INDEX_NAME, lambda i: i["weight_map"].update({"model.language_model.norm.weight": LAST}))
    result = repair(shop.folder)
    assert len(result.done) >= 3
    assert result.left == ()


def test_what_the_index_says_beside_its_map_is_kept(bases: Bases, tmp_path: Path) -> None:
    shop = Workshop(bases["bf16"], tmp_path / "case")
    shop.json(INDEX_NAME, lambda i: i.update(note="mine") or i["metadata"].update(total_size=3, writer="me"))
    repair(shop.folder)
    index = json.loads((shop.folder / INDEX_NAME).read_text())
    assert (index["note"], index["metadata"]["writer"]) == ("mine", "me")
    total = sum(t.nbytes for f in shop.folder.glob("*.safetensors") for t in load_file(f).values())
    assert index["metadata"]["total_size"] == total


def test_an_entry_that_names_a_missing_file_is_not_dropped(bases: Bases, tmp_path: Path) -> None:
    path = broken(bases, "shard-absent", tmp_path)
    result = repair(path)
    assert "index-missing-file" in {finding.rule for finding in result.left}
    assert LAST in weight_map(path).values()


def test_tensors_of_a_missing_file_that_lie_elsewhere_are_found(bases: Bases, tmp_path: Path) -> None:
    shop = Workshop(bases["bf16"], tmp_path / "case")
    (shop.folder / MTP_FILE).rename(shop.folder / "head.safetensors")
    assert repair(shop.folder).left == ()
    assert weight_map(shop.folder)[FC] == "head.safetensors"
    assert MTP_FILE not in weight_map(shop.folder).values()


def test_a_file_that_only_repeats_others_leaves_the_index(bases: Bases, tmp_path: Path) -> None:
    shop = Workshop(bases["bf16"], tmp_path / "case")
    shop.copy(LAST, "model-00003-of-00002.safetensors")
    shop.index(
        lambda m: m.update({n: "model-00003-of-00002.safetensors" for n, f in list(m.items()) if f == LAST})
    )
    shop.index(lambda m: m.update({"lm_head.weight": LAST}))
    assert "index-duplicate" in {finding.rule for finding in check(shop.folder).findings}
    result = repair(shop.folder)
    assert [finding.rule for finding in result.left] == ["index-orphan-file"]
    assert (shop.folder / "model-00003-of-00002.safetensors").exists()


def test_a_permuted_g_idx_keeps_its_flag(bases: Bases, tmp_path: Path) -> None:
    shop = Workshop(bases["gptq-act-order"], tmp_path / "case")
    before = snapshot(shop.folder)
    assert repair(shop.folder).done == ()
    assert snapshot(shop.folder) == before


def test_one_permuted_g_idx_among_natural_ones_keeps_the_flag(bases: Bases, tmp_path: Path) -> None:
    shop = Workshop(bases["gptq"], tmp_path / "case")
    shop.quantization(desc_act=True)
    shop.tensor("model.language_model.layers.3.self_attn.o_proj.g_idx", lambda t: t.flip(0))
    repair(shop.folder)
    assert json.loads((shop.folder / "config.json").read_text())["quantization_config"]["desc_act"] is True


def test_a_flag_that_denies_an_order_that_every_module_has_is_set(bases: Bases, tmp_path: Path) -> None:
    path = broken(bases, "g-idx-denied-by-hand", tmp_path)
    assert repair(path).done[0] == "set desc_act to true, as every module is in act order"
    for name in ("config.json", "quantize_config.json"):
        config = json.loads((path / name).read_text())
        assert config.get("quantization_config", config)["desc_act"] is True
    assert [f.rule for f in check(path, vllm="0.29").findings] == ["act-order-version"]
    assert repair(path).done == ()


@pytest.mark.parametrize(
    "fault", ["one is natural", "a group is uneven", "a fused one differs", "one is gone"]
)
def test_a_flag_that_denies_an_order_in_doubt_is_left_alone(bases: Bases, tmp_path: Path, fault: str) -> None:
    shop = Workshop(bases["gptq-act-order"], tmp_path / "case")
    shop.quantization(desc_act=False)
    attention = "model.language_model.layers.3.self_attn"

    def change(g_idx: torch.Tensor) -> torch.Tensor | None:
        if fault == "one is gone":
            return None
        if fault == "one is natural":
            return torch.arange(len(g_idx), dtype=torch.int32) // 128
        if fault == "a group is uneven":
            g_idx[(g_idx == 0).nonzero()[0]] = g_idx.max()
            return g_idx
        return g_idx.flip(0)

    shop.tensor(f"{attention}.{'k_proj' if 'fused' in fault else 'o_proj'}.g_idx", change)
    before = content(shop.folder)
    repair(shop.folder)
    assert content(shop.folder)["config.json"] == before["config.json"]


def test_an_older_backup_is_never_overwritten(bases: Bases, tmp_path: Path) -> None:
    path = broken(bases, "total-size", tmp_path)
    (path / f"{INDEX_NAME}.bak").write_text("older")
    before = (path / INDEX_NAME).read_bytes()
    assert repair(path).backups == (f"{INDEX_NAME}.bak.1",)
    assert (path / f"{INDEX_NAME}.bak").read_text() == "older"
    assert (path / f"{INDEX_NAME}.bak.1").read_bytes() == before


def test_a_head_of_another_size_is_not_grafted(
    build: Callable[..., DemoCheckpoint], damaged: Callable[[Path], Path]
) -> None:
    path = damaged(build(mtp="none").path)
    before = snapshot(path)
    with pytest.raises(HybridError, match=r"\[384, 768\].*needs.*\[256, 512\]"):
        repair(path, mtp_from=build(hidden_size=384).path)
    assert snapshot(path) == before


def test_a_full_disk_is_found_before_anything_is_written(
    bases: Bases, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from types import SimpleNamespace

    path = broken(bases, "head-absent", tmp_path)
    before = snapshot(path)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(HybridError, match="are free"):
        repair(path, mtp_from=bases["bf16-inline"])
    with pytest.raises(HybridError, match="are free"):
        repair(path, mtp_from=bases["bf16-inline"], out=tmp_path / "out")
    assert snapshot(path) == before
    assert not (tmp_path / "out").exists()


def test_a_whole_checkpoint_is_left_alone(bases: Bases, tmp_path: Path) -> None:
    before = snapshot(bases["gptq"])
    assert repair(bases["gptq"], mtp_from=bases["bf16"]).done == ()
    assert repair(bases["gptq"], out=tmp_path / "out").done == ()
    assert snapshot(bases["gptq"]) == before
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("case_id", ["head-absent", "dynamic-null", "index-not-json"])
def test_a_dry_run_says_the_same_and_writes_nothing(bases: Bases, case_id: str, tmp_path: Path) -> None:
    path = broken(bases, case_id, tmp_path)
    before = snapshot(path)
    promised = repair(path, mtp_from=bases["bf16"], dry_run=True)
    assert snapshot(path) == before
    kept = repair(path, mtp_from=bases["bf16"])
    assert (promised.done, promised.left) == (kept.done, kept.left)


def test_a_dry_run_lists_what_stays_broken(bases: Bases, tmp_path: Path) -> None:
    path = broken(bases, "head-absent", tmp_path)
    (path / "tokenizer.json").unlink()
    promised = repair(path, mtp_from=bases["bf16"], dry_run=True)
    assert promised.done
    assert "tokenizer-missing" in {finding.rule for finding in promised.left}
    assert not any(finding.rule.startswith("mtp") for finding in promised.left)


class TestCopies:
    def same_tensors(self, one: Path, other: Path) -> bool:
        a, b = Checkpoint.open(one), Checkpoint.open(other)
        return a.loaded.keys() == b.loaded.keys() and all(
            a.read_bytes(info) == b.read_bytes(b.loaded[name]) for name, info in a.loaded.items()
        )

    def test_a_head_is_split_off_and_merged_again(self, bases: Bases, tmp_path: Path) -> None:
        inline = bases["bf16-inline"]
        before = snapshot(inline)
        apart = repair(inline, out=tmp_path / "apart", split_mtp=True)
        assert (apart.left, apart.path) == ((), tmp_path / "apart")
        loaded = Checkpoint.open(apart.path).loaded
        assert {i.file for n, i in loaded.items() if n.startswith("mtp.")} == {MTP_FILE}
        assert {n for n, i in loaded.items() if i.file == MTP_FILE} == {
            n for n in loaded if n.startswith("mtp.")
        }
        together = repair(apart.path, out=tmp_path / "together", merge_mtp=True)
        assert together.left == ()
        assert not (together.path / MTP_FILE).exists()
        assert self.same_tensors(inline, apart.path)
        assert self.same_tensors(inline, together.path)
        assert snapshot(inline) == before

    def test_everything_else_comes_along(self, bases: Bases, tmp_path: Path) -> None:
        shop = Workshop(bases["bf16-inline"], tmp_path / "case")
        (shop.folder / "notes").mkdir()
        (shop.folder / "notes" / "a.txt").write_text("mine")
        repair(shop.folder, out=tmp_path / "apart", split_mtp=True)
        source, copy = content(shop.folder), content(tmp_path / "apart")
        assert (tmp_path / "apart" / "notes" / "a.txt").read_text() == "mine"
        small = {n for n in source if not n.endswith(".safetensors") and n != INDEX_NAME}
        assert {n: copy[n] for n in small} == {n: source[n] for n in small}
        assert not (tmp_path / "apart" / "config.json").samefile(shop.folder / "config.json")

    def test_shards_that_stay_are_linked(self, bases: Bases, tmp_path: Path) -> None:
        path = broken(bases, "head-absent", tmp_path)
        repair(path, mtp_from=bases["bf16-inline"], out=tmp_path / "out")
        main = next(n for n in content(path) if n.startswith("model") and n.endswith(".safetensors"))
        assert (tmp_path / "out" / main).samefile(path / main)

    def test_a_damaged_head_inside_a_shard_needs_a_copy(self, bases: Bases, tmp_path: Path) -> None:
        shop = Workshop(bases["bf16-inline"], tmp_path / "case")
        shop.tensor(FC, lambda t: t.zero_())
        before = snapshot(shop.folder)
        with pytest.raises(HybridError, match="not rewritten in place") as refusal:
            repair(shop.folder, mtp_from=bases["bf16"])
        assert "--out" in (refusal.value.remedy or "")
        mended = repair(shop.folder, mtp_from=bases["bf16"], out=tmp_path / "out")
        assert mended.left == ()
        assert self.same_tensors(bases["bf16"], mended.path)
        assert snapshot(shop.folder) == before

    def test_a_folder_that_holds_files_is_not_written_to(self, bases: Bases, tmp_path: Path) -> None:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "mine").write_text("x")
        with pytest.raises(HybridError, match="exists already"):
            repair(bases["bf16-inline"], out=tmp_path / "out", split_mtp=True)
        assert content(tmp_path / "out") == {"mine": b"x"}

    @pytest.mark.parametrize("option", ["split_mtp", "merge_mtp"])
    def test_shards_are_never_rewritten_in_place(self, bases: Bases, option: str) -> None:
        before = snapshot(bases["bf16"])
        with pytest.raises(HybridError, match="never done in place"):
            repair(bases["bf16"], **{option: True})
        assert snapshot(bases["bf16"]) == before

    def test_there_must_be_something_to_split_or_merge(self, bases: Bases, tmp_path: Path) -> None:
        with pytest.raises(HybridError, match="nothing to split off"):
            repair(bases["bf16"], out=tmp_path / "out", split_mtp=True)
        with pytest.raises(HybridError, match="nothing to merge"):
            repair(bases["bf16-inline"], out=tmp_path / "out", merge_mtp=True)
        assert not (tmp_path / "out").exists()
