"""Whatever index, headers and config hold, `check` answers, and calls good only what can be loaded."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open

from gptq_hybrid.checkpoint import INDEX_NAME, MTP_FILE, layout_for
from gptq_hybrid.demo.builder import DemoCheckpoint
from gptq_hybrid.doctor import check
from tests.corpus import Workshop

RELAXED = settings(
    max_examples=120,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
NAMES = st.sampled_from(
    [
        "mtp.fc.weight",
        "mtp.norm.weight",
        "lm_head.weight",
        "model.language_model.norm.weight",
        "",
        "x",
        "\ud800",
    ]
)
FILES = st.sampled_from(
    [
        MTP_FILE,
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "../x",
        "/dev/zero",
        "",
        "a/b",
        ".",
    ]
)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=True)
    | st.text(max_size=5)
    | FILES
)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
QUANTIZATION_KEYS = st.sampled_from(
    ["quant_method", "bits", "group_size", "sym", "desc_act", "dynamic", "modules_in_block_to_quantize", "ignore",
     "config_groups", "extra_config", "block_name_to_quantize", "modules_to_not_convert", "weight_block_size",
     "packing_format", "format", "lm_head", "checkpoint_format"]
)  # fmt: skip
METHODS = st.sampled_from(["gptq", "awq", "compressed-tensors", "auto-round", "fp8", "torchao", "", None, 3])


@pytest.fixture(scope="module")
def template(build: Callable[..., DemoCheckpoint]) -> Path:
    return build(mtp="separate").path


class Fuzzed:
    """A fresh copy for every example, and the checks that hold for all."""

    def __init__(self, template: Path, folder: Path) -> None:
        self.template, self.folder, self.count = template, folder, 0

    def shop(self) -> Workshop:
        self.count += 1
        return Workshop(self.template, self.folder / str(self.count))

    def answer(self, shop: Workshop) -> str:
        begun = time.monotonic()
        report = check(shop.folder, vllm="0.32")
        assert time.monotonic() - begun < 10
        assert report.verdict in {"serves", "faulty", "unreadable"}
        assert report.exit_code() == {"serves": 0, "faulty": 1, "unreadable": 2}[report.verdict]
        json.loads(json.dumps(report.as_json()))
        assert all(finding.message and finding.remedy for finding in report.findings)
        assert "rule-failed" not in {finding.rule for finding in report.findings}, report.findings
        if report.verdict == "serves":
            assert loads(shop.folder)
        return report.verdict


def loads(folder: Path) -> bool:
    """Whether the safetensors library opens every named file, and they hold the whole model with its head."""
    config = json.loads((folder / "config.json").read_text())
    index = folder / INDEX_NAME
    if index.exists():
        names = set(json.loads(index.read_text())["weight_map"].values())
    else:
        names = {path.name for path in folder.glob("*.safetensors")}
    shapes: dict[str, tuple[int, ...]] = {}
    for name in names:
        try:
            with safe_open(folder / name, framework="pt") as file:
                shapes |= {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError):
            return False
    layout = layout_for(config)
    return bool(layout.mtp) and all(
        shapes.get(spec.name) == spec.shape for spec in (*layout.mtp, *layout.plain)
    )


@pytest.fixture
def fuzzed(template: Path, tmp_path: Path) -> Fuzzed:
    return Fuzzed(template, tmp_path)


def test_the_template_serves(fuzzed: Fuzzed) -> None:
    assert fuzzed.answer(fuzzed.shop()) == "serves"


@RELAXED
@given(changes=st.lists(st.tuples(NAMES, FILES | JSON), max_size=4), drop=st.integers(0, 400), metadata=JSON)
def test_any_index(fuzzed: Fuzzed, changes: list[tuple[str, Any]], drop: int, metadata: Any) -> None:
    shop = fuzzed.shop()
    path = shop.path(INDEX_NAME)
    index = json.loads(path.read_text())
    names = list(index["weight_map"])
    if drop < len(names):
        del index["weight_map"][names[drop]]
    index["weight_map"].update(changes)
    if metadata is not None:
        index["metadata"] = metadata
    path.write_text(json.dumps(index))
    fuzzed.answer(shop)


@RELAXED
@given(
    file=st.sampled_from([MTP_FILE, "model-00002-of-00002.safetensors"]),
    which=st.integers(0, 10_000),
    key=st.sampled_from(["dtype", "shape", "data_offsets", "extra"]),
    value=JSON
    | st.lists(st.integers(-2, 2**64), max_size=3)
    | st.sampled_from(["BF16", "F32", "F4", "I8", "Q4"]),
)
def test_any_header_entry(fuzzed: Fuzzed, file: str, which: int, key: str, value: Any) -> None:
    shop = fuzzed.shop()

    def change(header: dict[str, Any]) -> None:
        names = [name for name in header if name != "__metadata__"]
        header[names[which % len(names)]][key] = value

    shop.header(file, change)
    fuzzed.answer(shop)


@RELAXED
@given(at=st.integers(0, 3000), data=st.binary(min_size=1, max_size=12), cut=st.booleans())
def test_any_bytes_in_a_header(fuzzed: Fuzzed, at: int, data: bytes, cut: bool) -> None:
    shop = fuzzed.shop()
    path = shop.path(MTP_FILE)
    raw = path.read_bytes()
    path.write_bytes(raw[:at] + data + (b"" if cut else raw[at + len(data) :]))
    fuzzed.answer(shop)


@RELAXED
@given(where=st.sampled_from(["root", "text", "vision"]), which=st.integers(0, 100), value=JSON)
def test_any_config_value(fuzzed: Fuzzed, where: str, which: int, value: Any) -> None:
    shop = fuzzed.shop()

    def change(config: dict[str, Any]) -> None:
        owner = {"root": config, "text": config["text_config"], "vision": config["vision_config"]}[where]
        owner[list(owner)[which % len(owner)]] = value

    shop.config(change)
    fuzzed.answer(shop)


@RELAXED
@given(method=METHODS, keys=st.dictionaries(QUANTIZATION_KEYS, JSON, max_size=5))
def test_any_quantization_config(fuzzed: Fuzzed, method: Any, keys: dict[str, Any]) -> None:
    shop = fuzzed.shop()
    shop.config(lambda config: config.update(quantization_config={"quant_method": method, **keys}))
    fuzzed.answer(shop)


@RELAXED
@given(
    raw=st.binary(max_size=64),
    name=st.sampled_from(["config.json", INDEX_NAME, MTP_FILE, "tokenizer_config.json"]),
)
def test_any_file_of_noise(fuzzed: Fuzzed, raw: bytes, name: str) -> None:
    shop = fuzzed.shop()
    shop.path(name).write_bytes(raw)
    assert fuzzed.answer(shop) != "serves"


@RELAXED
@given(length=st.integers(0, 2**64 - 1))
def test_any_header_length(fuzzed: Fuzzed, length: int) -> None:
    shop = fuzzed.shop()
    path = shop.path(MTP_FILE)
    raw = path.read_bytes()
    path.write_bytes(struct.pack("<Q", length) + raw[8:])
    assert (fuzzed.answer(shop) == "serves") == (length == struct.unpack("<Q", raw[:8])[0])
