"""Before start: options for drafts checked, the list read, compiled graphs keyed."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gptq_hybrid.checkpoint import DraftVocab, write_draft_vocab
from gptq_hybrid.checkpoint.files import LocalFiles
from gptq_hybrid.checkpoint.vocabulary import read_vocabulary
from gptq_hybrid.demo.builder import DemoCheckpoint
from tests.log_lines import lines_from
from vllm_qwen36_plugin.draft_head import front
from vllm_qwen36_plugin.draft_head.front import check_before_start
from vllm_qwen36_plugin.errors import OptionsError
from vllm_qwen36_plugin.start import SALT


@pytest.fixture(autouse=True)
def on_ada(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(front, "current_device", lambda: ("cuda", (8, 9)))


def config(
    model: Path | str, section: Any, *, method: str | None = "mtp", gpus: int = 1, tokens: int = 2
) -> Any:
    draft = SimpleNamespace(
        model=str(model), revision=None, hf_config=SimpleNamespace(architectures=["Qwen3_5MTP"])
    )
    load = SimpleNamespace(load_format="auto", download_dir=None)
    return SimpleNamespace(
        additional_config={} if section is None else {"qwen36": section},
        model_config=SimpleNamespace(model=str(model), revision=None),
        load_config=load,
        parallel_config=SimpleNamespace(tensor_parallel_size=gpus),
        speculative_config=None
        if method is None
        else SimpleNamespace(method=method, draft_model_config=draft, num_speculative_tokens=tokens),
    )


def salt(model: Path | str, section: Any, **server: Any) -> Any:
    """What the check enters into the key of compiled graphs."""
    vllm_config = config(model, section, **server)
    check_before_start(vllm_config)
    return vllm_config.additional_config.get(SALT)


def add_list(folder: Path, *, tokenizer: str | None = None, size: int | None = None) -> Path:
    sha = read_vocabulary(LocalFiles(folder)).sha256 if tokenizer is None else tokenizer
    config = json.loads((folder / "config.json").read_text())
    size = config.get("text_config", config)["vocab_size"] if size is None else size
    write_draft_vocab(folder / "draft_vocab.json", DraftVocab(sha, size, tuple(range(100)), {}, {}))
    return folder


def sleeping(original: DemoCheckpoint, precision: str, **model_config: Any) -> Any:
    vllm_config = config(original.path, {"draft": precision})
    vars(vllm_config.model_config).update(model_config)
    check_before_start(vllm_config)
    return getattr(vllm_config.model_config, "sleep_preserve_parameter_names", None)


@pytest.mark.parametrize(
    ("precision", "asleep", "kept", "then"),
    [
        ("w8", True, [], ["draft.*"]),
        ("w8", True, ["engram.*"], ["engram.*", "draft.*"]),
        ("w8", True, ["draft.model.*"], ["draft.model.*"]),
        ("w8", False, [], []),
        # vLLM's own can be loaded again.
        ("bf16", True, [], []),
    ],
)
def test_sleep_keeps_drafts_that_no_checkpoint_holds(
    original: DemoCheckpoint, precision: str, asleep: bool, kept: list[str], then: list[str]
) -> None:
    found = sleeping(original, precision, enable_sleep_mode=asleep, sleep_preserve_parameter_names=list(kept))
    assert found == then


def test_a_vllm_that_loses_them_in_sleep_is_warned_of(original: DemoCheckpoint) -> None:
    with lines_from(logging.WARNING) as said:
        sleeping(original, "bf16", enable_sleep_mode=True)
        assert said() == ""
        sleeping(original, "w8", enable_sleep_mode=True)
    assert "loses quantized drafts in sleep level 2" in said()


def test_the_length_of_drafts_tells_compiled_graphs_apart(original: DemoCheckpoint) -> None:
    assert [salt(original.path, None, tokens=n)["tokens a draft"] for n in (1, 3)] == ["1", "3"]
    by_batch = config(original.path, None)
    by_batch.speculative_config.num_speculative_tokens_per_batch_size = [(1, 4, 3), (5, 64, 1)]
    check_before_start(by_batch)
    assert by_batch.additional_config[SALT]["tokens a draft"] == "2, [(1, 4, 3), (5, 64, 1)]"


def test_weights_of_drafts_tell_compiled_graphs_apart(original: DemoCheckpoint) -> None:
    salts = [salt(original.path, {"draft": choice})["drafts"] for choice in ("auto", "bf16", "w4", "fp8")]
    assert salts == ["w8", "bf16", "w4", "fp8"]


def test_the_vocabulary_is_no_part_of_a_compiled_graph(separate: Path) -> None:
    add_list(separate)
    assert salt(separate, {"draft": "w4", "draft_vocab": 64}) == salt(separate, {"draft": "w4"})


def test_without_mtp_nothing_is_read_or_entered() -> None:
    assert salt("nowhere", {"draft": "w4", "draft_vocab": 64}, method=None) is None
    assert salt("nowhere", {"draft": "w4", "draft_vocab": 64}, method="eagle") is None


def test_a_number_without_a_list_is_refused_with_what_makes_one(original: DemoCheckpoint) -> None:
    with pytest.raises(OptionsError, match=r"has no draft_vocab\.json .* qwen36 draft-vocab "):
        salt(original.path, {"draft_vocab": 128})
    assert salt(original.path, {"draft": "w4"})["drafts"] == "w4"


def test_a_list_that_is_too_short_a_number_is_refused(separate: Path) -> None:
    add_list(separate)
    with pytest.raises(OptionsError, match="at least 64, not 63"):
        salt(separate, {"draft_vocab": 63})


def test_the_list_of_another_tokenizer_is_refused(separate: Path) -> None:
    add_list(separate, tokenizer="0" * 64)
    with pytest.raises(OptionsError, match="another tokenizer"):
        salt(separate, {"draft": "w4"})
    # Unless it is not asked for.
    assert salt(separate, {"draft": "w4", "draft_vocab": 0})["drafts"] == "w4"
    assert salt(separate, None)["drafts"] == "w8"


def test_the_users_own_list_goes_before_the_checkpoints(separate: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.json"
    add_list(separate).joinpath("draft_vocab.json").rename(mine)
    assert salt(separate, {"draft": "w4", "draft_vocab_file": str(mine)})["drafts"] == "w4"
    mine.write_text("{}")
    with pytest.raises(OptionsError, match="draft_vocab_file"):
        salt(separate, {"draft": "w4", "draft_vocab_file": str(mine)})
    with pytest.raises(OptionsError, match="draft_vocab_file"):
        salt(separate, {"draft": "w4", "draft_vocab_file": str(tmp_path / "absent.json")})


def test_several_gpus_share_a_list_in_equal_parts(separate: Path) -> None:
    add_list(separate)
    assert salt(separate, {"draft": "w4", "draft_vocab": 128}, gpus=2)["drafts"] == "w4"
    assert salt(separate, None, gpus=2)["drafts"] == salt(separate, None)["drafts"]
    with pytest.raises(OptionsError, match="at least 128 over 2 GPUs, not 64"):
        salt(separate, {"draft": "w4", "draft_vocab": 64}, gpus=2)


def test_a_checkpoint_that_is_not_here_yet_is_left_to_the_worker() -> None:
    assert salt("somebody/something", {"draft": "w4", "draft_vocab": 64})["drafts"] == "w4"
