"""Files made to hurt: `qwen36 check` stays within time and memory, says what is wrong, and shows no raw bytes."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from gptq_hybrid.checkpoint import INDEX_NAME, MTP_FILE
from gptq_hybrid.cli import build_app
from gptq_hybrid.demo.builder import DemoCheckpoint
from tests.corpus import Workshop

SECONDS, MEMORY = 60, 1536 << 20
NORM = "mtp.norm.weight"
# Grows as two to the length of the name it is matched against.
BACKTRACKING = r"^(([a-z_.0-9])+)+!$"
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True, "desc_act": False}
Attack = Callable[[Workshop], object]

_LIMITED = """
import atexit, resource, sys
note, limit, *arguments = sys.argv[1:]
resource.setrlimit(resource.RLIMIT_AS, (int(limit), int(limit)))
# Not getrusage: a child's ru_maxrss includes what its parent held when it forked.
peak = lambda: next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
atexit.register(lambda: open(note, "w").write(peak()))
sys.argv = ["qwen36", *arguments]
from gptq_hybrid.cli import main
main()
"""


@dataclass(frozen=True)
class Ended:
    """How one run of the command ended; ``peak`` is resident memory in bytes, where it was measured."""

    code: int
    out: str
    err: str
    peak: int = 0


def arguments_for(folder: Path, *more: str) -> list[str]:
    return ["check", str(folder), "--vllm", "0.32.0", *more]


def run_apart(folder: Path, *more: str) -> Ended:
    """``qwen36 check`` in a process of its own, under limits of time and memory."""
    note = folder.parent / "peak"
    ended = subprocess.run(
        [sys.executable, "-c", _LIMITED, str(note), str(MEMORY), *arguments_for(folder, *more)],
        capture_output=True,
        timeout=SECONDS,
        check=False,
    )
    # Strict decoding: bytes that are not UTF-8 would fail the test.
    return Ended(ended.returncode, ended.stdout.decode(), ended.stderr.decode(), int(note.read_text()) << 10)


def run_here(folder: Path, *more: str) -> Ended:
    """The same in this process, for what costs nothing; an exception that escapes fails the test."""
    result = CliRunner().invoke(build_app(), arguments_for(folder, *more), env={"COLUMNS": "120"})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Ended(result.exit_code, result.stdout, result.stderr)


def refused(folder: Path, *more: str, run: Callable[..., Ended] = run_here) -> list[dict[str, str]]:
    """Findings of a checkpoint that must be called bad, in an orderly way."""
    ended = run(folder, "--json", *more)
    assert "Traceback" not in ended.err, ended.err[-600:]
    content = json.loads(ended.out)
    assert ended.code == {"faulty": 1, "unreadable": 2}[content["verdict"]]
    found: list[dict[str, str]] = content["findings"]
    assert any(finding["severity"] == "error" for finding in found)
    assert "rule-failed" not in {finding["rule"] for finding in found}, found
    return found


@pytest.fixture
def shop(build: Callable[..., DemoCheckpoint], tmp_path: Path) -> Workshop:
    return Workshop(build(mtp="separate").path, tmp_path / "copy")


def raw_header(change: Callable[[bytes], bytes]) -> Attack:
    """Rewrite the bytes of the head's header, with a length that is true."""

    def apply(shop: Workshop) -> None:
        path = shop.path(MTP_FILE)
        raw = path.read_bytes()
        (length,) = struct.unpack("<Q", raw[:8])
        new = change(raw[8 : 8 + length])
        path.write_bytes(struct.pack("<Q", len(new)) + new + raw[8 + length :])

    return apply


def header_length(length: int) -> Attack:
    def apply(shop: Workshop) -> None:
        path = shop.path(MTP_FILE)
        path.write_bytes(struct.pack("<Q", length) + path.read_bytes()[8:])

    return apply


def entry(**values: Any) -> Attack:
    return lambda shop: shop.header(MTP_FILE, lambda header: header[NORM].update(values))


def write(name: str, raw: bytes) -> Attack:
    return lambda shop: shop.path(name).write_bytes(raw)


def text_config(**values: Any) -> Attack:
    return lambda shop: shop.config(lambda config: config["text_config"].update(values))


def quantization(config: dict[str, Any]) -> Attack:
    return lambda shop: shop.config(lambda root: root.update(quantization_config=config))


def send(file: str) -> Attack:
    """Have the index send one tensor elsewhere."""
    return lambda shop: shop.index(lambda weight_map: weight_map.update({NORM: file}))


def number_in_config(digits: int) -> Attack:
    def apply(shop: Workshop) -> None:
        path = shop.path("config.json")
        path.write_text(path.read_text().replace('"vocab_size": 1024', f'"vocab_size": {"9" * digits}'))

    return apply


def sparse(name: str, size: int, start: bytes = b"") -> Attack:
    def apply(shop: Workshop) -> None:
        with shop.path(name).open("wb") as file:
            file.write(start)
            file.truncate(size)

    return apply


def long_header(length: int) -> Attack:
    """A header of the length declared, all of it valid JSON: names of tensors without data."""

    def apply(shop: Workshop) -> None:
        empty = ',"%09d":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'
        one = len(empty % 0)
        body = "".join(empty % i for i in range((length - 2) // one))
        raw = ("{" + body[1:] + "}").ljust(length).encode()
        shop.path(MTP_FILE).write_bytes(struct.pack("<Q", len(raw)) + raw)

    return apply


def many_headers(count: int, length: int) -> Attack:
    """Sparse shards, each with a header just short of the limit: nothing on disk, gigabytes in memory."""

    def apply(shop: Workshop) -> None:
        names = [f"extra-{i}.safetensors" for i in range(count)]
        for name in names:
            sparse(name, 8 + length, struct.pack("<Q", length))(shop)
        shop.index(lambda weight_map: weight_map.update({f"extra.{name}": name for name in names}))

    return apply


def long_index(names: int) -> Attack:
    def apply(shop: Workshop) -> None:
        with shop.path(INDEX_NAME).open("w") as file:
            file.write('{"weight_map": {"lm_head.weight": "model-00001-of-00002.safetensors"')
            for start in range(0, names, 100_000):
                block = range(start, min(names, start + 100_000))
                file.write("".join(f',"layers.{i}.weight":"a.safetensors"' for i in block))
            file.write("}}")

    return apply


def many_files(weight_map: dict[str, str]) -> None:
    weight_map.update({f"t{i}": f"{i}.safetensors" for i in range(100_000)})


def pipe(name: str) -> Attack:
    def apply(shop: Workshop) -> None:
        (shop.folder / name).unlink(missing_ok=True)
        os.mkfifo(shop.folder / name)

    return apply


def folder_in_place_of(name: str) -> Attack:
    return lambda shop: (shop.delete(name), (shop.folder / name).mkdir())


def loop(name: str) -> Attack:
    """Two links that lead to each other."""

    def apply(shop: Workshop) -> None:
        (shop.folder / name).unlink(missing_ok=True)
        (shop.folder / name).symlink_to(f"{name}.again")
        (shop.folder / f"{name}.again").symlink_to(name)

    return apply


def link_to(target: str, name: str = MTP_FILE) -> Attack:
    return lambda shop: (shop.delete(name), (shop.folder / name).symlink_to(target))


NESTED = b"[" * 100_000
CASES: dict[str, tuple[Attack, str]] = {
    "header-of-2^63": (header_length(1 << 63), "shard-unreadable"),
    "header-of-2^64-1": (header_length((1 << 64) - 1), "shard-unreadable"),
    "header-that-ends-at-2^64": (header_length((1 << 64) - 8), "shard-unreadable"),
    "header-of-0": (header_length(0), "shard-unreadable"),
    "header-of-100-MB": (sparse(MTP_FILE, 120 << 20, struct.pack("<Q", 100 << 20)), "shard-unreadable"),
    "header-of-100-MB-of-names": (long_header(100_000_000), "shard-unreadable"),
    "header-of-16-MB-of-names": (long_header(16_000_000), "mtp-missing"),
    "header-of-16-MB-of-zeros": (sparse(MTP_FILE, 17 << 20, struct.pack("<Q", 16 << 20)), "shard-unreadable"),
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
    "index-of-half-a-million-names": (long_index(500_000), "index-missing-file"),
    "index-of-100000-files": (lambda s: s.index(many_files), "index-unreadable"),
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
    "config-with-4000-digits": (number_in_config(4_000), "plain-shape"),
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
    "headers-of-2-GB-in-all": (many_headers(150, (16 << 20) - 64), "shard-unreadable"),
}
# What could cost time or memory, or block: each of these runs in a process of its own.
COSTLY = {
    "header-of-100-MB-of-names",
    "header-of-100-MB",
    "header-of-16-MB-of-names",
    "header-of-16-MB-of-zeros",
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
}


@pytest.mark.parametrize("name", CASES)
def test_an_attack_ends_in_a_finding(shop: Workshop, name: str) -> None:
    attack, rule = CASES[name]
    attack(shop)
    found = refused(shop.folder, run=run_apart if name in COSTLY else run_here)
    assert rule in {finding["rule"] for finding in found}


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


SENTINEL = "sentinel8f14e45f"


@pytest.fixture
def outside(shop: Workshop) -> Path:
    """A folder beside the checkpoint, with files that must stay unread."""
    folder = shop.folder.parent / "outside"
    folder.mkdir()
    header = json.dumps({SENTINEL: {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}}).encode()
    (folder / MTP_FILE).write_bytes(struct.pack("<Q", len(header)) + header)
    (folder / "config.json").write_text(json.dumps({"model_type": SENTINEL}))
    (folder / INDEX_NAME).write_text(json.dumps({"weight_map": {SENTINEL: SENTINEL}}))
    (folder / "chat_template.jinja").write_text("{% " + SENTINEL + " %}{{")
    (folder / "tokenizer_config.json").write_text(SENTINEL)
    return folder


@pytest.mark.parametrize("name", [MTP_FILE, "config.json", INDEX_NAME])
def test_a_file_outside_is_not_read_through_a_link(shop: Workshop, outside: Path, name: str) -> None:
    link_to(str(outside / name), name)(shop)
    found = refused(shop.folder)
    assert SENTINEL not in json.dumps(found)
    assert any("symbolic link" in finding["message"] for finding in found)
    # The control: it would have been seen, had it been read.
    assert SENTINEL in run_here(shop.folder, "--json", "--follow-symlinks").out


def test_a_template_outside_is_not_read_through_a_link(shop: Workshop, outside: Path) -> None:
    link_to(str(outside / "chat_template.jinja"), "chat_template.jinja")(shop)
    ended = run_here(shop.folder, "--json")
    assert "symbolic link" in ended.out
    assert SENTINEL not in ended.out
    assert SENTINEL in run_here(shop.folder, "--json", "--follow-symlinks").out


def test_a_file_outside_is_not_read_through_a_linked_folder(shop: Workshop, outside: Path) -> None:
    (shop.folder / "sub").symlink_to(outside)
    send(f"sub/{MTP_FILE}")(shop)
    found = refused(shop.folder)
    assert SENTINEL not in json.dumps(found)
    assert "file-outside" in {finding["rule"] for finding in found}


def cache_of(shop: Workshop, root: Path) -> Path:
    """The checkpoint as a Hugging Face cache holds it: a snapshot of links into ``blobs``."""
    blobs, snapshot = root / "models--o--n" / "blobs", root / "models--o--n" / "snapshots" / "0123abcd"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, path in enumerate(sorted(shop.folder.iterdir())):
        path.rename(blobs / f"{number:064x}")
        (snapshot / path.name).symlink_to(f"../../blobs/{number:064x}")
    return snapshot


def test_a_snapshot_of_the_hub_cache_is_read_through_its_links(shop: Workshop, tmp_path: Path) -> None:
    snapshot = cache_of(shop, tmp_path / "hub")
    ended = run_here(snapshot, "--json")
    assert json.loads(ended.out) == {"path": str(snapshot), "findings": [], "verdict": "serves"}


def test_a_snapshot_may_not_link_past_its_blobs(shop: Workshop, tmp_path: Path, outside: Path) -> None:
    snapshot = cache_of(shop, tmp_path / "hub")
    (snapshot / MTP_FILE).unlink()
    (snapshot / MTP_FILE).symlink_to(outside / MTP_FILE)
    found = refused(snapshot)
    assert SENTINEL not in json.dumps(found)
    assert "file-outside" in {finding["rule"] for finding in found}


NAMES = {
    "escape": "a\x1b[31m\x1b]0;title\x07b",
    "nul": "a\0b",
    "c1": "a\x9b31mb",
    "right-to-left": "a\u202eb\u2067c",
    "lone-surrogate": "a\ud800b",
    "carriage-return": "a\r\x08\x08b",
    "markup": "[bold red]a[/] [link=file:///etc/passwd]b[/link]",
    "newline": "a\nFORGED: nothing found. Serve it:\nFORGED serve b",
    "line-separator": "a\u2028FORGED b",
    "zero-width": "a\u200b\ufeffb",
}


def rename_a_tensor(shop: Workshop, name: str) -> None:
    shop.header(MTP_FILE, lambda header: header.update({name: header.pop(NORM)}))
    shop.index(lambda weight_map: weight_map.update({name: weight_map.pop(NORM)}))


def name_a_file(shop: Workshop, name: str) -> None:
    send(f"{name}.safetensors")(shop)


def name_a_method(shop: Workshop, name: str) -> None:
    quantization({"quant_method": name})(shop)
    shop.config(lambda config: config.update(architectures=[name]))


def name_a_format(shop: Workshop, name: str) -> None:
    quantization({**GPTQ, "checkpoint_format": name})(shop)


def name_a_model(shop: Workshop, name: str) -> None:
    shop.config(lambda config: config.update(model_type=name))


PLACES = [rename_a_tensor, name_a_file, name_a_method, name_a_format, name_a_model]


@pytest.mark.parametrize("name", NAMES)
def test_nothing_that_moves_a_cursor_is_printed(
    build: Callable[..., DemoCheckpoint], tmp_path: Path, name: str
) -> None:
    for place in PLACES:
        shop = Workshop(build(mtp="separate").path, tmp_path / place.__name__ / "copy")
        place(shop, NAMES[name])
        ended = run_here(shop.folder)
        shown = ended.out + ended.err
        assert ended.code in (1, 2)
        assert "Traceback" not in shown
        assert [c for c in shown if not c.isprintable() and c != "\n"] == []
        assert not any(line.startswith("FORGED") for line in shown.splitlines())
        content = json.loads(run_here(shop.folder, "--json").out)
        assert set(content) == {"path", "findings", "verdict"}


def test_markup_in_a_name_is_shown_as_it_is(shop: Workshop) -> None:
    name_a_model(shop, "[bold red]a[/]")
    assert "[bold red]a[/]" in run_here(shop.folder).err
