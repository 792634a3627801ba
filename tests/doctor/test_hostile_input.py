"""Hostile files: `qwen36 check` stays within time and memory, says what is wrong, and prints no raw bytes."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import pytest

from gptq_hybrid.checkpoint import INDEX_NAME, MTP_FILE
from tests.corpus import Workshop

from .hostile import (
    BACKTRACKING,
    GPTQ,
    Attack,
    Ended,
    entry,
    folder_in_place_of,
    g_idx_of,
    head_of_holes,
    header_length,
    in_folder,
    link_to,
    long_header,
    long_index,
    loop,
    many_files,
    many_headers,
    nested_list,
    number_in_config,
    pipe,
    quantization,
    raw_header,
    refused,
    run_apart,
    run_here,
    send,
    sparse,
    text_config,
    write,
)

NESTED = b"[" * 100_000
CASES: dict[str, tuple[Attack, str]] = {
    "header-of-2^63": (header_length(1 << 63), "shard-unreadable"),
    "header-of-2^64-1": (header_length((1 << 64) - 1), "shard-unreadable"),
    "header-that-ends-at-2^64": (header_length((1 << 64) - 8), "shard-unreadable"),
    "header-of-0": (header_length(0), "shard-unreadable"),
    "header-of-100-MB": (sparse(MTP_FILE, 120 << 20, struct.pack("<Q", 100 << 20)), "shard-unreadable"),
    "header-of-100-MB-of-names": (long_header(100_000_000), "shard-unreadable"),
    "header-of-8-MB-of-names": (long_header(8_000_000), "mtp-missing"),
    "header-of-8-MB-of-zeros": (sparse(MTP_FILE, 9 << 20, struct.pack("<Q", 8 << 20)), "shard-unreadable"),
    "header-nested-deeply": (raw_header(lambda raw: b'{"a":' + NESTED), "shard-unreadable"),
    "header-is-a-list": (raw_header(lambda raw: b"[" + raw + b"]"), "shard-unreadable"),
    "header-with-a-name-twice": (
        raw_header(lambda raw: raw.replace(b'"mtp.norm.weight"', b'"mtp.fc.weight"')),
        "shard-unreadable",
    ),
    "header-that-is-not-utf-8": (
        raw_header(lambda raw: raw.replace(b"mtp.fc", b"mtp\xff\xfe")),
        "mtp-missing",
    ),
    "metadata-of-numbers": (
        lambda s: s.header(MTP_FILE, lambda h: h.update(__metadata__={"a": 1})),
        "shard-unreadable",
    ),
    "offsets-overlap": (entry(data_offsets=[0, 512]), "shard-unreadable"),
    "offsets-negative": (entry(data_offsets=[-512, 0]), "shard-unreadable"),
    "offsets-swapped": (entry(data_offsets=[512, 0]), "shard-unreadable"),
    "offsets-of-2^64": (entry(data_offsets=[1 << 64, (1 << 64) + 512]), "shard-unreadable"),
    "offsets-that-are-floats": (entry(data_offsets=[0.0, 512.0]), "shard-unreadable"),
    "offsets-of-infinity": (entry(data_offsets=[0, float("inf")]), "shard-unreadable"),
    "shape-of-huge-numbers": (entry(shape=[1 << 62, 1 << 62, 1 << 62]), "shard-unreadable"),
    "shape-of-4000-digits": (entry(shape=[10**4000]), "shard-unreadable"),
    "shape-of-a-million-dimensions": (entry(shape=[2**40] * 1_000_000), "shard-unreadable"),
    "shape-negative": (entry(shape=[-256]), "shard-unreadable"),
    "shape-that-is-a-string": (entry(shape="256"), "shard-unreadable"),
    "dtype-that-is-a-list": (entry(dtype=["BF16"]), "shard-unreadable"),
    "index-nested-deeply": (write(INDEX_NAME, b'{"weight_map":' + NESTED), "index-unreadable"),
    "index-not-utf-8": (write(INDEX_NAME, b'{"weight_map": {"a": "\xff\xff"}}'), "index-unreadable"),
    "index-of-10-million-names": (long_index(10_000_000), "index-unreadable"),
    "index-of-half-a-million-names": (long_index(500_000), "index-unreadable"),
    "index-of-a-million-names": (long_index(1_000_000), "index-unreadable"),
    "index-of-200000-names": (long_index(200_000), "index-missing-file"),
    "index-of-4000-absent-files": (lambda s: s.index(lambda m: many_files(m, 4_000)), "index-missing-file"),
    "folder-of-100000-files": (lambda s: in_folder(s, 100_000), "unreadable"),
    "folder-of-4000-files": (lambda s: in_folder(s, 4_000), "shard-unreadable"),
    "head-of-64-GiB-of-holes": (head_of_holes, "mtp-values"),
    "g-idx-of-2^30-rows": (g_idx_of(1 << 30), "config-dimensions"),
    "g-idx-of-2^20-rows-in-each-layer": (g_idx_of(1 << 20, layers=128), "not-read"),
    "config-with-300000-rules": (
        quantization({**GPTQ, "dynamic": {f"+:.*layers.{i}.*a+b": {"bits": 4} for i in range(300_000)}}),
        "not-read",
    ),
    "config-with-9900-slow-rules": (
        quantization({**GPTQ, "dynamic": {f"+:.*.*.*x{i}$": {} for i in range(9_900)}}),
        # A fast machine is done with them before the time for matching is up.
        "not-read or quantized-mismatch",
    ),
    "config-with-300000-ignored": (
        quantization(
            {"quant_method": "compressed-tensors", "ignore": [f"re:.*{i}$" for i in range(300_000)]}
        ),
        "not-read",
    ),
    "config-with-300000-names": (
        quantization(
            {"quant_method": "awq", "modules_to_not_convert": [f"layers.{i}" for i in range(300_000)]}
        ),
        "not-read",
    ),
    "config-with-a-rule-of-2-MB": (
        quantization({**GPTQ, "dynamic": {"-:" + "(a|b)?" * 350_000: {}}}),
        "not-read",
    ),
    "config-with-lists-in-lists": (
        quantization({"quant_method": "fp8", "ignored_layers": nested_list(900)}),
        "quantized-mismatch",
    ),
    "index-of-100000-files": (lambda s: s.index(lambda m: many_files(m, 100_000)), "index-unreadable"),
    "index-sends-up": (send("../../../../etc/passwd"), "file-outside"),
    "index-sends-up-and-back": (send("../copy/mtp.safetensors"), "file-outside"),
    "index-sends-to-the-root": (send("/etc/passwd"), "file-outside"),
    "index-sends-to-a-windows-path": (send("C:\\model.safetensors"), "file-outside"),
    "index-sends-to-a-device": (send("/dev/zero"), "file-outside"),
    "index-sends-to-nul": (send("a\0b.safetensors"), "file-outside"),
    "index-sends-to-a-surrogate": (send("\ud800.safetensors"), "index-missing-file"),
    "index-sends-to-the-folder": (send("."), "file-outside"),
    "index-sends-to-a-long-name": (send("a" * 5000 + ".safetensors"), "index-missing-file"),
    "index-sends-very-deep": (send("a/" * 3000 + "b.safetensors"), "index-missing-file"),
    "config-is-a-list": (write("config.json", b"[]"), "unreadable"),
    "config-is-empty": (write("config.json", b""), "unreadable"),
    "config-of-100-MB": (sparse("config.json", 100 << 20, b"{}"), "unreadable"),
    "config-not-utf-8": (write("config.json", b'{"model_type": "\xff"}'), "unreadable"),
    "config-nested-deeply": (write("config.json", b'{"a":' + NESTED), "unreadable"),
    "config-with-10000-digits": (number_in_config(10_000), "unreadable"),
    "config-with-4000-digits": (number_in_config(4_000), "config-dimensions"),
    "config-is-a-pipe": (pipe("config.json"), "unreadable"),
    "config-of-a-billion-layers": (
        text_config(num_hidden_layers=10**9, layer_types=None),
        "config-dimensions",
    ),
    "config-of-a-billion-mtp-layers": (text_config(mtp_num_hidden_layers=10**9), "config-dimensions"),
    "config-of-a-billion-vision-blocks": (
        lambda s: s.config(lambda c: c["vision_config"].update(depth=10**9)),
        "config-dimensions",
    ),
    "config-with-layer-types-that-are-objects": (text_config(layer_types=[{}] * 4), "config-dimensions"),
    "config-with-layer-types-that-is-a-number": (text_config(layer_types=4), "config-dimensions"),
    "config-with-a-list-for-a-format": (
        quantization({**GPTQ, "checkpoint_format": ["gptq"]}),
        "quantization-settings",
    ),
    "config-with-a-backtracking-dynamic-rule": (
        quantization({**GPTQ, "dynamic": {f"-:{BACKTRACKING}": {}}}),
        "quantized-mismatch",
    ),
    "config-with-a-backtracking-ignore": (
        quantization(
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"0": {"targets": ["Linear"], "weights": {}}},
                "ignore": [f"re:{BACKTRACKING}"],
            }
        ),
        "quantized-mismatch",
    ),
    "config-with-a-backtracking-extra-config": (
        quantization({"quant_method": "auto-round", "extra_config": {BACKTRACKING: {"bits": 16}}}),
        "quantized-mismatch",
    ),
    "shard-is-a-pipe": (pipe(MTP_FILE), "index-missing-file"),
    "shard-is-a-folder": (folder_in_place_of(MTP_FILE), "index-missing-file"),
    "shard-is-a-loop-of-links": (loop(MTP_FILE), "mtp-missing"),
    "shard-is-a-link-to-a-device": (link_to("/dev/zero"), "file-outside"),
    "tokenizer-is-a-pipe": (pipe("tokenizer.json"), "tokenizer-missing"),
    "headers-of-2-GB-in-all": (many_headers(250, (8 << 20) - 64), "shard-unreadable"),
}
# These could cost time or memory, or block, so each runs in a process of its own.
COSTLY = {
    "header-of-100-MB-of-names",
    "header-of-100-MB",
    "header-of-8-MB-of-names",
    "header-of-8-MB-of-zeros",
    "header-nested-deeply",
    "shape-of-4000-digits",
    "shape-of-a-million-dimensions",
    "index-nested-deeply",
    "index-of-10-million-names",
    "index-of-half-a-million-names",
    "config-of-100-MB",
    "config-nested-deeply",
    "config-is-a-pipe",
    "config-of-a-billion-layers",
    "config-of-a-billion-mtp-layers",
    "config-of-a-billion-vision-blocks",
    "config-with-a-backtracking-dynamic-rule",
    "config-with-a-backtracking-ignore",
    "config-with-a-backtracking-extra-config",
    "shard-is-a-pipe",
    "shard-is-a-link-to-a-device",
    "tokenizer-is-a-pipe",
    "headers-of-2-GB-in-all",
    "index-of-100000-files",
    "index-of-a-million-names",
    "index-of-200000-names",
    "index-of-4000-absent-files",
    "folder-of-100000-files",
    "folder-of-4000-files",
    "head-of-64-GiB-of-holes",
    "g-idx-of-2^30-rows",
    "g-idx-of-2^20-rows-in-each-layer",
    "config-with-300000-rules",
    "config-with-9900-slow-rules",
    "config-with-300000-ignored",
    "config-with-300000-names",
    "config-with-a-rule-of-2-MB",
}
# A check starts with 50 MB, and holds a parsed header or index beside what it read.
MOST_MEMORY = 320 << 20


@pytest.mark.parametrize("name", CASES)
def test_an_attack_ends_in_a_finding(shop: Workshop, name: str) -> None:
    attack, rule = CASES[name]
    attack(shop)

    def apart(folder: Path, *more: str) -> Ended:
        ended = run_apart(folder, *more)
        assert ended.peak < MOST_MEMORY, f"{ended.peak >> 20} MiB"
        return ended

    findings = refused(shop.folder, run=apart if name in COSTLY else run_here)
    assert {finding["rule"] for finding in findings}.intersection(rule.split(" or "))


def test_memory_stays_far_below_the_size_of_a_huge_index(shop: Workshop) -> None:
    long_index(2_000_000)(shop)
    size = (shop.folder / INDEX_NAME).stat().st_size
    assert size > 64 << 20
    ended = run_apart(shop.folder, "--json")
    assert ended.code == 1
    assert 0 < ended.peak < 300 << 20


def test_the_last_of_an_entry_given_twice_counts_as_it_does_for_vllm(shop: Workshop) -> None:
    path = shop.path(INDEX_NAME)
    text = path.read_text().replace(
        '"weight_map": {', '"weight_map": {"mtp.norm.weight": "nowhere.safetensors",'
    )
    path.write_text(text)
    assert text.count('"mtp.norm.weight"') == 2
    assert run_here(shop.folder).code == 0


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
@pytest.mark.parametrize("name", ["config.json", INDEX_NAME, MTP_FILE])
def test_a_file_that_may_not_be_read(shop: Workshop, name: str) -> None:
    shop.path(name).chmod(0)
    assert name in json.dumps(refused(shop.folder))


@pytest.mark.parametrize(
    "name",
    [
        "tokenizer_config.json",
        "chat_template.jinja",
        "quantize_config.json",
        "video_preprocessor_config.json",
    ],
)
def test_a_pipe_beside_the_weights_is_taken_for_absent(shop: Workshop, name: str) -> None:
    pipe(name)(shop)
    assert run_apart(shop.folder).code == 0


@pytest.mark.parametrize("name", ["leftover.safetensors", "notes.json"])
def test_a_loop_of_links_beside_the_weights_does_no_harm(shop: Workshop, name: str) -> None:
    loop(name)(shop)
    ended = run_here(shop.folder)
    assert "Traceback" not in ended.err
    assert ended.code == 0
