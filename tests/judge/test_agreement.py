"""The checker against vLLM itself: the same checkpoints, loaded by vLLM's own classes (`judge.py`).

``QWEN36_JUDGE_EXAMPLES=2000`` draws more checkpoints, other ones each time.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from gptq_hybrid.demo.builder import DemoCheckpoint
from gptq_hybrid.doctor import check, installed_vllm
from tests.corpus import BASES, CASES, Bases, CorpusCase, Workshop

from .judge import Judge, unavailable
from .kinds import AGREED, TO_MEND, Kind
from .later_kinds import LATER
from .made import GROUPS, Made, build
from .opinion import UNSEEN, Opinion
from .rounded import rounded_checkpoint

# What is to be mended was seen with this one; the case of another release is not for this judge.
RELEASE = "0.32.0"
VERSION = str(installed_vllm()).partition("+")[0]
pytestmark = [
    # No engine, but vLLM's imports: 10 to 20 s on two cores.
    pytest.mark.engine,
    pytest.mark.skipif(unavailable() is not None, reason=str(unavailable())),
    pytest.mark.skipif(
        unavailable() is None and VERSION != RELEASE,
        reason=f"vLLM {VERSION} is installed; the kinds are of {RELEASE}",
    ),
]

EXAMPLES = int(os.environ.get("QWEN36_JUDGE_EXAMPLES", "0"))
BY_DEFAULT = 60

# Cases of the corpus in which checker and vLLM differ, and why that stays.
EXPLAINED = {
    "link-out": "the checker follows no link out of the folder unless told to; vLLM follows any",
}
# Cases of the corpus that are of a kind in TO_MEND.
OF_A_KIND = {}


@pytest.fixture(scope="module")
def judge() -> Iterator[Judge]:
    judge = Judge()
    judge.start()
    yield judge
    judge.close()


@pytest.fixture(scope="module")
def ask(judge: Judge) -> Callable[..., Opinion]:
    def ask(folder: Path, *, mtp: bool = True) -> Opinion:
        report = check(folder, vllm=VERSION, plugin=False, mtp=mtp)
        # As the line that `qwen36 check` prints: a checkpoint without its vision tower is served for text alone.
        tower = report.checkpoint is not None and any(".visual." in name for name in report.checkpoint.loaded)
        return Opinion(report, judge(folder, mtp=mtp, images=tower))

    return ask


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Bases:
    folder = tmp_path_factory.mktemp("bases")
    return Bases(folder, lambda recipe: rounded_checkpoint(folder / f"gptq-{recipe}", recipe))


@pytest.fixture
def companions(original: DemoCheckpoint) -> Path:
    return original.path


@pytest.mark.parametrize("name", [name for name in BASES if name != "gptq-act-order"])
def test_a_good_checkpoint_loads(ask: Callable[..., Opinion], bases: Bases, name: str) -> None:
    opinion = ask(bases[name])
    assert opinion.report.verdict == "serves"
    assert opinion.judgement.fine, opinion.judgement.said
    assert opinion.judgement.mtp_front is None
    assert opinion.judgement.act_order_front is None


def test_act_order_is_refused_while_the_config_is_read(ask: Callable[..., Opinion], bases: Bases) -> None:
    opinion = ask(bases["gptq-act-order"])
    assert opinion.judgement.stage == "config"
    assert "desc_act" in str(opinion.judgement.error)
    assert opinion.difference is None


def _judged(case: CorpusCase) -> bool:
    return case.vllm == VERSION and not case.plugin


@pytest.mark.parametrize("case", [case for case in CASES if _judged(case)], ids=lambda case: case.id)
def test_the_corpus(ask: Callable[..., Opinion], bases: Bases, case: CorpusCase, tmp_path: Path) -> None:
    shop = Workshop(bases[case.base], tmp_path / "case")
    case.apply(shop)
    opinion = ask(shop.folder, mtp=case.mtp)
    if case.id in EXPLAINED or case.id in OF_A_KIND:
        assert opinion.difference, f"{case.id} no longer differs: take it out of its list"
    else:
        assert opinion.difference is None


def test_explanations_are_of_cases_and_rules_that_there_are() -> None:
    """And of every rule that is not comparable there is a case that only it explains."""
    cases = {case.id: case for case in CASES if _judged(case)}
    assert {*EXPLAINED, *OF_A_KIND} <= set(cases)
    assert set(OF_A_KIND.values()) <= {kind.id for kind in TO_MEND}
    assert set(UNSEEN) <= {rule for case in cases.values() if case.verdict == "faulty" for rule in case.rules}


@pytest.mark.parametrize("kind", TO_MEND, ids=lambda kind: kind.id)
def test_what_is_to_be_mended_still_is(
    ask: Callable[..., Opinion], companions: Path, kind: Kind, tmp_path: Path
) -> None:
    opinion = ask(kind.build(tmp_path, companions), mtp=kind.mtp)
    assert opinion.difference, f"{kind.id} is mended: take it out of TO_MEND, or move it to AGREED"
    assert opinion.report.verdict == kind.says
    assert opinion.judgement.fine is (kind.says == "faulty"), opinion.judgement.said


@pytest.mark.parametrize("kind", [*AGREED, *LATER], ids=lambda kind: kind.id)
def test_what_was_suspected_and_is_right(
    ask: Callable[..., Opinion], companions: Path, kind: Kind, tmp_path: Path
) -> None:
    opinion = ask(kind.build(tmp_path, companions), mtp=kind.mtp)
    assert opinion.difference is None
    assert opinion.report.verdict == kind.says
    assert opinion.judgement.fine is (kind.says == "serves"), opinion.judgement.said


def test_names_of_kinds_are_unique() -> None:
    names = [kind.id for kind in (*TO_MEND, *AGREED, *LATER)]
    assert len(set(names)) == len(names)


_GROUPS = st.frozensets(st.sampled_from(GROUPS), max_size=2)
CHECKPOINTS = st.builds(
    Made,
    nested=st.booleans(),
    architecture=st.sampled_from([None] * 12 + ["Qwen3_5ForConditionalGeneration", "Qwen3_5ForCausalLM"]),
    format=st.sampled_from(["bf16", "gptq", "awq", "auto-round", "packed", "fp8"]),
    packed=st.one_of(
        st.just(frozenset()), st.sampled_from([frozenset({"mtp"}), frozenset({"mtp", "fc"})]), _GROUPS
    ),
    declared=st.one_of(st.none(), st.none(), st.none(), _GROUPS),
    style=st.sampled_from(["shard", "shard", "regex", "regex", "fused"]),
    zero=st.sampled_from([(False, False)] * 6 + [(True, True), (True, False), (False, True)]),
    count=st.sampled_from(["text-1"] * 16 + ["text-0", "root-1", "absent", "nextn-1"]),
    tied=st.one_of(*[st.just((False, False))] * 3, st.tuples(*[st.sampled_from([None, False, True])] * 2)),
    own_head=st.sampled_from([True] * 6 + [False]),
    absent=st.one_of(
        st.just(frozenset()),
        st.just(frozenset()),
        st.just(frozenset()),
        st.frozensets(st.sampled_from(["head_dim", "layer_types", "full_attention_interval"]), max_size=2),
    ),
    head=st.sampled_from(
        ["separate"] * 4 + ["inline", "unindexed", "absent", "model.mtp", "language_model.mtp", "subfolder"]
    ),
)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A place for a checkpoint of each example."""
    return tmp_path_factory.mktemp("drawn")


@settings(
    max_examples=EXAMPLES or BY_DEFAULT,
    derandomize=not EXAMPLES,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    # Shrinking judges hundreds more: minutes, in which a hunt can look for the next kind.
    phases=[Phase.explicit, Phase.generate],
    print_blob=True,
)
@given(made=CHECKPOINTS, mtp=st.sampled_from([True, True, True, False]))
def test_checkpoints_drawn_at_random(
    ask: Callable[..., Opinion], original: DemoCheckpoint, drawn: Path, made: Made, mtp: bool
) -> None:
    folder = build(made, drawn / str(len(list(drawn.iterdir()))), original.path)
    opinion = ask(folder, mtp=mtp)
    excused = [kind.id for kind in TO_MEND if kind.says == opinion.report.verdict and kind.may_be(made)]
    if opinion.difference and not excused:
        # Reports hold whole checkpoints: what pytest shows of a failed assert would fill the screen.
        pytest.fail(f"{made}, MTP {'on' if mtp else 'off'}: {opinion.difference}", pytrace=False)
