"""Make hostile checkpoints, and run `qwen36 check` on them."""

from __future__ import annotations

import json
import math
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from gptq_hybrid.checkpoint import INDEX_NAME, MTP_FILE
from gptq_hybrid.cli import build_app
from tests.corpus import Workshop

SECONDS, MEMORY = 60, 1536 << 20
NORM = "mtp.norm.weight"
# Matching it takes 2 to the power of the name's length.
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
    """The outcome of one run of the command; ``peak`` is resident memory in bytes, if measured."""

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
    """``qwen36 check`` in this process, for cheap cases; an exception that escapes fails the test."""
    result = CliRunner().invoke(build_app(), arguments_for(folder, *more), env={"COLUMNS": "120"})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Ended(result.exit_code, result.stdout, result.stderr)


def refused(folder: Path, *more: str, run: Callable[..., Ended] = run_here) -> list[dict[str, str]]:
    """Return the findings of a checkpoint that must be called bad, without a traceback."""
    ended = run(folder, "--json", *more)
    assert "Traceback" not in ended.err, ended.err[-600:]
    [content] = json.loads(ended.out)["result"]["checkpoints"]
    assert ended.code == {"faulty": 1, "unreadable": 2}[content["verdict"]]
    findings: list[dict[str, str]] = content["findings"]
    assert any(finding["severity"] == "error" for finding in findings)
    assert "rule-failed" not in {finding["rule"] for finding in findings}, findings
    return findings


def raw_header(change: Callable[[bytes], bytes]) -> Attack:
    """Rewrite the bytes of the head's header, with its true length."""

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
    """Make the index send one tensor elsewhere."""
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
    """A header of the declared length that is valid JSON: names of tensors without data."""

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


def many_files(weight_map: dict[str, str], count: int) -> None:
    weight_map.update({f"t{i}": f"{i}.safetensors" for i in range(count)})


def in_folder(shop: Workshop, count: int) -> None:
    """Files without an index to choose among them."""
    shop.delete(INDEX_NAME)
    for number in range(count):
        (shop.folder / f"x{number}.safetensors").touch()


def nested_list(depth: int) -> list[Any]:
    out: list[Any] = ["lm_head"]
    for _ in range(depth):
        out = [out]
    return out


def claim(folder: Path, name: str, tensors: dict[str, tuple[str, list[int]]]) -> None:
    """A file of holes that claims tensors, by name: dtype and shape."""
    sizes, at, header = {"BF16": 2, "I32": 4, "F16": 2}, 0, {}
    for tensor, (dtype, shape) in tensors.items():
        size = sizes[dtype] * math.prod(shape)
        header[tensor] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    raw = json.dumps(header).encode()
    with (folder / name).open("wb") as file:
        file.write(struct.pack("<Q", len(raw)) + raw)
        file.truncate(8 + len(raw) + at)


def head_of_holes(shop: Workshop) -> None:
    """A head of 64 GiB, as the config has it, of which nothing is on the disk."""
    size = 1 << 17
    shop.config(lambda c: c["text_config"].update(hidden_size=size, mtp_num_hidden_layers=1))
    shop.delete(MTP_FILE)
    claim(shop.folder, MTP_FILE, {"mtp.fc.weight": ("BF16", [size, 2 * size])})


def g_idx_of(rows: int, layers: int = 4) -> Attack:
    """A ``g_idx`` of so many rows in each layer, as the config has it."""

    def apply(shop: Workshop) -> None:
        text = {"intermediate_size": rows, "num_hidden_layers": layers, "layer_types": None}
        shop.config(lambda c: (c["text_config"].update(text), c.update(quantization_config=GPTQ)))
        names = (f"model.language_model.layers.{i}.mlp.down_proj.g_idx" for i in range(layers))
        claim(shop.folder, "g.safetensors", {name: ("I32", [rows]) for name in names})
        shop.index(lambda m: m.update({f"g{i}": "g.safetensors" for i in range(1)}))

    return apply


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
