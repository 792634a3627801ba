"""Which tokens count: those a model would have written, in whole documents."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gptq_hybrid.draft_vocab import Counts, ReplyMarks

TURN, END, BETWEEN, ASSISTANT, USER, BREAK = 90, 91, 92, 93, 94, 95
MARKS = ReplyMarks(TURN, (ASSISTANT,), END, BETWEEN)


def counted(*rows: list[int], marks: ReplyMarks | None = MARKS) -> tuple[dict[int, int], Counts]:
    counts = Counts(100)
    counts.add(rows, marks)
    by_id = {int(i): int(counts.total[i]) for i in np.flatnonzero(counts.total)}
    return by_id, counts


def turn(role: int, *content: int) -> list[int]:
    return [TURN, role, BREAK, *content, END, BREAK]


def test_of_a_conversation_only_replies_count_and_the_token_that_ends_them() -> None:
    row = turn(USER, 1, 2) + turn(ASSISTANT, 3, 4, 3) + turn(USER, 5) + turn(ASSISTANT, 6)
    by_id, counts = counted(row)
    assert by_id == {3: 2, 4: 1, 6: 1, END: 2}
    assert (counts.reply, counts.plain, counts.documents) == (6, 0, 1)


def test_a_text_without_turns_counts_whole() -> None:
    by_id, counts = counted([1, 2, 2])
    assert by_id == {1: 1, 2: 2}
    assert (counts.reply, counts.plain, counts.documents) == (0, 3, 1)


def test_a_reply_that_was_cut_counts_as_far_as_it_goes() -> None:
    assert counted([*turn(USER, 1), TURN, ASSISTANT, BREAK, 3, 4])[0] == {3: 1, 4: 1}
    assert counted([*turn(USER, 1), TURN, ASSISTANT])[0] == {}


def test_a_conversation_without_a_reply_counts_nothing_not_the_question() -> None:
    by_id, counts = counted(turn(USER, 1, 2))
    assert by_id == {}
    assert counts.documents == 0


def test_a_role_of_several_tokens_is_compared_whole() -> None:
    marks = ReplyMarks(TURN, (ASSISTANT, 7), END)
    row = [TURN, ASSISTANT, 7, BREAK, 1, END, TURN, ASSISTANT, 8, BREAK, 2, END]
    assert counted(row, marks=marks)[0] == {1: 1, END: 1}


def test_documents_packed_into_one_row_count_as_if_each_had_its_own() -> None:
    documents = [[1, 2, BETWEEN], [*turn(USER, 9), *turn(ASSISTANT, 3), BETWEEN], [4, 5]]
    packed = counted([i for document in documents for i in document])[1]
    apart = counted(*documents)[1]
    assert packed.documents == apart.documents == 3
    assert np.array_equal(packed.folds, apart.folds)


def test_a_document_lies_in_one_part_whatever_else_is_counted_and_in_what_order() -> None:
    rows = [[i, i + 1, i] for i in range(60)]
    forward, backward = counted(*rows)[1], counted(*reversed(rows))[1]
    assert np.array_equal(forward.folds, backward.folds)
    assert (forward.folds.sum(axis=1) > 0).all()
    for row in rows:
        alone = counted(row)[1].folds
        assert np.count_nonzero(alone.sum(axis=1)) == 1
        assert (alone <= forward.folds).all()


def test_without_marks_every_token_counts() -> None:
    assert counted([TURN, USER, 1, END], marks=None)[0] == {TURN: 1, USER: 1, 1: 1, END: 1}


def test_a_token_outside_the_vocabulary_is_refused() -> None:
    with pytest.raises(ValueError, match="100 is outside a vocabulary of 100"):
        counted([1, 100])


def test_a_mix_weighs_parts_by_weight_not_by_size() -> None:
    small, large = counted([1, 1])[1], counted([2] * 1000)[1]
    mixed = Counts.mixed([(small, 3.0), (large, 1.0)])
    assert mixed.total[1] == pytest.approx(3.0)
    assert mixed.total[2] == pytest.approx(1.0)
    assert (mixed.documents, mixed.tokens) == (2, 1002)


def test_the_chat_template_and_the_marks_agree_on_what_a_reply_is() -> None:
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(Path("bench/mini/checkpoint"))
    messages = [
        {"role": "user", "content": "a question that nobody answers in French"},
        {"role": "assistant", "content": "An answer."},
    ]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    counts = Counts(8192)
    counts.add([ids], ReplyMarks.of(tokenizer))
    expected = tokenizer("An answer.<|im_end|>", add_special_tokens=False)["input_ids"]
    assert counts.reply == len(expected)
    assert np.array_equal(counts.total, np.bincount(expected, minlength=8192))
