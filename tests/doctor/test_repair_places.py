"""Repair of what lies elsewhere: a head under other names or in a folder, settings in a file of their own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from gptq_hybrid.common.errors import HybridError
from gptq_hybrid.doctor import check
from gptq_hybrid.doctor.repair import repair
from tests.corpus import Bases, Workshop

MTP_FILE = "mtp.safetensors"
NORM = "model.language_model.norm.weight"


def renamed(shop: Workshop, file: str, prefix: str) -> None:
    shop.shard(file, lambda t: t.update({prefix + n: t.pop(n) for n in list(t) if n.startswith("mtp.")}))


def inline(shop: Workshop, prefix: str) -> None:
    """Move the head into a main shard, under another prefix."""
    head = {prefix + name: tensor.clone() for name, tensor in load_file(shop.folder / MTP_FILE).items()}
    shop.delete(MTP_FILE)
    shop.index(lambda m: [m.pop(name) for name in list(m) if name.startswith("mtp.")])
    shop.shard(shop.file_of(NORM), lambda t: t.update(head))


def errors(folder: Path) -> list[str]:
    return [finding.rule for finding in check(folder, vllm="0.32.0").errors]


@pytest.mark.parametrize("prefix", ["model.", "language_model.", "model.language_model."])
@pytest.mark.parametrize("base", ["bf16", "gptq"])
def test_a_head_in_a_file_of_its_own_is_renamed_in_place(
    bases: Bases, base: str, prefix: str, tmp_path: Path
) -> None:
    shop = Workshop(bases[base], tmp_path / "case")
    renamed(shop, MTP_FILE, prefix)
    report = check(shop.folder, vllm="0.32.0")
    assert [finding.rule for finding in report.errors] == ["mtp-elsewhere"]
    assert f"{prefix}mtp." in report.errors[0].message
    assert MTP_FILE in report.errors[0].message
    repair(shop.folder)
    assert errors(shop.folder) == []


def test_a_head_that_vllm_drops_may_stay_in_its_shard(bases: Bases, tmp_path: Path) -> None:
    shop = Workshop(bases["gptq"], tmp_path / "case")
    inline(shop, "language_model.")
    assert errors(shop.folder) == ["mtp-elsewhere"]
    assert check(shop.folder, vllm="0.32.0", mtp=False).errors == ()
    repair(shop.folder)
    assert errors(shop.folder) == []


def test_a_head_whose_names_end_the_load_takes_a_copy(bases: Bases, tmp_path: Path) -> None:
    shop = Workshop(bases["gptq"], tmp_path / "case")
    inline(shop, "model.")
    (finding,) = check(shop.folder, vllm="0.32.0").errors
    assert finding.rule == "mtp-elsewhere"
    assert "--out DIR" in finding.remedy
    assert check(shop.folder, vllm="0.32.0", mtp=False).verdict == "faulty"
    with pytest.raises(HybridError, match="not rewritten in place"):
        repair(shop.folder)
    repair(shop.folder, out=tmp_path / "copy")
    assert errors(tmp_path / "copy") == []


def test_a_head_in_a_subfolder_is_brought_up(bases: Bases, tmp_path: Path) -> None:
    shop = Workshop(bases["gptq"], tmp_path / "case")
    (shop.folder / "mtp").mkdir()
    (shop.folder / MTP_FILE).rename(shop.folder / "mtp" / "weights.safetensors")
    shop.index(lambda m: m.update({n: "mtp/weights.safetensors" for n, f in m.items() if f == MTP_FILE}))
    (finding,) = check(shop.folder, vllm="0.32.0").errors
    assert "mtp/weights.safetensors" in finding.message
    repair(shop.folder)
    assert errors(shop.folder) == []


@pytest.mark.parametrize("named", ["not named", "named where it is not", "beside the whole original"])
def test_a_head_in_a_subfolder_that_the_index_does_not_name_is_found_and_brought_up(
    bases: Bases, tmp_path: Path, named: str
) -> None:
    shop = Workshop(bases["gptq"], tmp_path / "case")
    (shop.folder / "mtp").mkdir()
    below = shop.folder / "mtp" / "weights.safetensors"
    (shop.folder / MTP_FILE).rename(below)
    if named == "beside the whole original":
        tensors = load_file(below) | {"lm_head.weight": torch.ones(2, 2)}
        below.unlink()
        save_file(tensors, below)
    if named != "named where it is not":
        shop.index(lambda m: [m.pop(name) for name, file in list(m.items()) if file == MTP_FILE])
    report = check(shop.folder, vllm="0.32.0")
    (finding,) = [finding for finding in report.errors if finding.rule == "mtp-elsewhere"]
    assert "mtp/weights.safetensors" in finding.message
    assert finding.remedy == f"Move it: qwen36 repair {shop.folder}"
    assert "mtp-missing" not in {finding.rule for finding in report.findings}
    before = below.read_bytes()
    repair(shop.folder)
    assert errors(shop.folder) == []
    assert below.read_bytes() == before


@pytest.mark.parametrize("method", ["gptq", None])
def test_settings_are_taken_from_the_file_that_gptqmodel_reads(
    bases: Bases, method: str | None, tmp_path: Path
) -> None:
    shop = Workshop(bases["gptq"], tmp_path / "case")
    taken = json.loads((shop.folder / "config.json").read_text())["quantization_config"]
    shop.config(lambda c: c.pop("quantization_config"))
    if method is None:
        taken.pop("quant_method")
    shop.path("quantize_config.json").write_text(json.dumps(taken))
    assert "quantization-undeclared" in errors(shop.folder)
    assert "take quantization_config from quantize_config.json" in repair(shop.folder).done
    assert errors(shop.folder) == []


def test_the_report_has_the_share_that_is_packed(bases: Bases) -> None:
    assert check(bases["bf16"]).packed == 0
    assert 0.5 < check(bases["gptq"]).packed < 1
