"""The command to serve a checkpoint has what the place needs, and works where it is printed."""

from __future__ import annotations

import json
import shlex
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gptq_hybrid.checkpoint import Checkpoint
from gptq_hybrid.common.errors import HybridError
from gptq_hybrid.demo.builder import DemoCheckpoint
from gptq_hybrid.doctor import place
from gptq_hybrid.doctor.serve_line import serve_arguments, serve_command
from gptq_hybrid.hooks import GpuProfile
from gptq_hybrid.memory import CPU_ALIGNMENT, cache_layout
from tests.memory.full_size import write_27b


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str | None], Path]:
    folder = tmp_path_factory.mktemp("27b")

    def write(recipe: str | None) -> Path:
        path = folder / (recipe or "original")
        return path if path.exists() else write_27b(path, recipe)

    return write


def flags(words: tuple[str, ...] | list[str]) -> dict[str, str]:
    """Options with their values; an option without one has ``""``."""
    found = {}
    for at, word in enumerate(words):
        if word.startswith("--"):
            value = words[at + 1] if at + 1 < len(words) else ""
            assert word not in found, f"{word} is given twice"
            found[word] = "" if value.startswith("--") else value
    return found


@pytest.mark.parametrize("recipe", ["static-mse", "compact"])
def test_a_24_gb_card_is_served_text_alone_with_a_context_that_fits(
    full: Callable[[str | None], Path], recipe: str
) -> None:
    command = serve_command(full(recipe), place.place_named("RTX 4090"))
    given = flags(command.arguments)
    assert given["--kv-cache-dtype"] == "fp8"
    assert json.loads(given["--limit-mm-per-prompt"]) == {"image": 0, "video": 0}
    assert command.fit is not None
    assert int(given["--max-model-len"]) == command.fit.context > 16384
    assert int(given["--max-num-seqs"]) == command.fit.sequences
    assert json.loads(given["--speculative-config"])["num_speculative_tokens"] == 2


def test_a_larger_card_gets_images_and_the_whole_context(full: Callable[[str | None], Path]) -> None:
    given = flags(serve_command(full("static-mse"), place.place_named("h100")).arguments)
    assert given["--max-model-len"] == "262144"
    assert json.loads(given["--limit-mm-per-prompt"])["image"] > 0


def test_ampere_keeps_16_bits_in_its_cache(full: Callable[[str | None], Path]) -> None:
    card = place.place_named("RTX 3090")
    assert "--kv-cache-dtype" not in flags(serve_command(full("compact"), card).arguments)


def test_what_does_not_fit_gets_no_flags_of_memory_and_is_told(full: Callable[[str | None], Path]) -> None:
    command = serve_command(full(None), place.place_named("24GiB"))
    assert command.fit is not None
    assert not command.fit.fits
    assert "--max-model-len" not in command.line
    assert command.as_json()["memory"]["fits"] is False


def test_flags_that_a_profile_has_go_before_computed_ones(full: Callable[[str | None], Path]) -> None:
    own = ("--max-model-len", "1000", "--limit-mm-per-prompt", '{"image": 9}')
    profile = GpuProfile("mine", ("mine",), (8, 9), 24.0, own, "measured: here")
    given = flags(serve_arguments(Checkpoint.open(full("static-mse")), profile))
    assert given["--max-model-len"] == "1000"
    assert given["--limit-mm-per-prompt"] == '{"image": 9}'
    assert given["--max-num-seqs"] == "2"
    # Without a tower there is nothing to send images to, whatever a profile says.
    assert json.loads(
        flags(serve_arguments(Checkpoint.open(full("compact")), profile))["--limit-mm-per-prompt"]
    ) == {
        "image": 0,
        "video": 0,
    }


def test_memory_can_be_kept_for_drafts_that_are_added_later(full: Callable[[str | None], Path]) -> None:
    checkpoint, card = Checkpoint.open(full("compact")), place.place_named("RTX 4090")
    assert isinstance(card, GpuProfile)
    none, four = (flags(serve_arguments(checkpoint, card, drafts=0, most_drafts=n)) for n in (None, 4))
    assert int(four["--max-model-len"]) * int(four["--max-num-seqs"]) < int(none["--max-model-len"]) * int(
        none["--max-num-seqs"]
    )
    assert "--speculative-config" not in four


def test_the_cpu_build_gets_what_it_needs(original: DemoCheckpoint) -> None:
    checkpoint = Checkpoint.open(original.path)
    command = serve_command(checkpoint, "cpu")
    given = flags(command.arguments)
    assert {"--enforce-eager", "--no-enable-prefix-caching", "--limit-mm-per-prompt"} <= set(given)
    words = shlex.split(command.line)
    assert words[1:3] == ["vllm", "serve"]
    name, _, gib = words[0].partition("=")
    assert name == "VLLM_CPU_KVCACHE_SPACE"
    layout = cache_layout(checkpoint, drafts=2, prefix_caching=False, alignment=CPU_ALIGNMENT)
    needed = layout.bytes_for(int(given["--max-model-len"]), int(given["--max-num-seqs"]))
    assert needed <= int(gib) << 30 < needed + (1 << 30)


def test_the_first_request_is_of_the_kind_that_the_checkpoint_takes(
    original: DemoCheckpoint, tmp_path: Path
) -> None:
    words = shlex.split(serve_command(original.path).curl)
    body = json.loads(words[words.index("-d") + 1])
    assert words[1].endswith("/v1/chat/completions")
    assert body["model"] == str(original.path)
    import shutil

    bare = tmp_path / "it's bare"
    shutil.copytree(original.path, bare, ignore=shutil.ignore_patterns("chat_template*"))
    settings = bare / "tokenizer_config.json"
    content = json.loads(settings.read_text())
    content.pop("chat_template", None)
    settings.write_text(json.dumps(content))
    command = serve_command(bare)
    words = shlex.split(command.curl)
    assert words[1].endswith("/v1/completions")
    assert json.loads(words[words.index("-d") + 1])["model"] == str(bare)
    assert shlex.split(command.line)[2] == str(bare)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("RTX 4090", "RTX 4090"),
        ("4090", "RTX 4090"),
        ("rtx4090", "RTX 4090"),
        ("l40s", "L40S"),
        ("L40", "L40"),
    ],
)
def test_cards_are_found_by_what_people_call_them(text: str, name: str) -> None:
    found = place.place_named(text)
    assert isinstance(found, GpuProfile)
    assert found.name == name


@pytest.mark.parametrize(
    ("text", "words"),
    [("A100", "A100 40GB, A100 80GB"), ("Voodoo", "no card known here: A10"), ("", "no card")],
)
def test_a_card_that_is_none_or_several_is_refused_with_the_names(text: str, words: str) -> None:
    with pytest.raises(HybridError, match=words):
        place.place_named(text)


@pytest.mark.parametrize(
    ("driver", "name"),
    [
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA L40", "L40"),
        ("NVIDIA L4", "L4"),
        ("NVIDIA A10", "A10"),
        ("NVIDIA A100-SXM4-80GB", "A100 80GB"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA RTX 6000 Ada Generation", "RTX 6000 Ada"),
        ("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", "RTX PRO 6000"),
        ("NVIDIA GeForce GTX 1080", None),
    ],
)
def test_a_driver_s_name_finds_the_card(driver: str, name: str | None) -> None:
    found = place.profile_for(driver)
    assert (None if found is None else found.name) == name


def fake_smi(folder: Path, text: str, code: int = 0) -> None:
    script = folder / "nvidia-smi"
    script.write_text(f"#!/bin/sh\ncat <<'END'\n{text}\nEND\nexit {code}\n")
    script.chmod(script.stat().st_mode | stat.S_IXUSR)


@pytest.mark.parametrize(
    ("said", "code", "expected"),
    [
        ("NVIDIA GeForce RTX 4090, 24564, 8.9, 580.1", 0, ("RTX 4090", 24.0)),
        ("Some, New Card, 65536, 13.0, 600.1", 0, ("Some, New Card", 64.0)),
        ("No devices were found", 6, None),
        ("NVIDIA GeForce RTX 4090, [N/A], 8.9, 1", 0, None),
    ],
)
def test_this_machine_s_gpu_is_asked_of_its_driver(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, said: str, code: int, expected: Any
) -> None:
    fake_smi(tmp_path, said, code)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(place, "cpu_build", lambda: False)
    found = place.this_place()
    assert (None if found is None else (found.name, found.memory_gib)) == expected  # type: ignore[union-attr]


def test_the_cpu_build_is_served_on_the_cpu_whatever_gpu_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(place, "find_version", {"vllm": "0.32.0+cpu"}.get)
    assert place.this_place() == "cpu"
