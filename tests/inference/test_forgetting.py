"""The general instructions: each can be followed, and following is told from not following."""

import pytest

from conftest import byte_tokenizer
from truetune.data.examples import IGNORED
from truetune.inference.forgetting import CHECKS, Task, general_rows, tasks

FOLLOWED = [
    "12",
    "30 minus 12 is 18.",
    "7",
    "He has 3 + 4 = 7 apples.",
    "Paris",
    "The capital of Italy is Rome.",
    "People live on Earth.",
    "Yes.",
    "No, it is cold.",
    "lantern",
    "The boat left at noon.",
    "GREEN",
    "THE SEA IS DEEP AND BLUE.",
    "the moon is bright tonight.",
    "apple\npear\nplum",
    "- red\n- blue",
    "A dog is a loyal animal with four legs.",
    "Rain falls from clouds.",
    "Trees are tall. They give shade.",
    '{"name": "Ada", "age": 36}',
    '```json\n{"ok": true}\n```',
    "A stone lies in the river.",
    "Hi there, good to see you!",
    "Certainly: a robin.",
    "A cat. Done.",
    "Buenos días",
    "4",
    "7",
    "Hot",
    "1, 2, 3, 4, 5",
    "Thank you!",
    "Blue.",
]


@pytest.mark.parametrize(
    ("task", "answer"), list(zip(tasks(), FOLLOWED, strict=True)), ids=lambda each: str(each)[:40]
)
def test_every_instruction_can_be_followed_and_not_followed(task: Task, answer: str) -> None:
    assert task.passes(answer, has_stopped=True)
    for other in ("", "   ", "word, word\n" * 60):
        assert not task.passes(other, has_stopped=False)


def test_every_check_is_of_a_kind_that_is_known() -> None:
    kinds = {name for task in tasks() for check in task.checks for name in check} - {"any", "stops"}
    assert kinds <= CHECKS.keys()
    assert len({task.prompt for task in tasks()}) == len(tasks()) >= 30


def test_an_answer_that_never_ends_fails_where_it_has_to_stop() -> None:
    task = next(task for task in tasks() if {"stops": True} in task.checks)
    assert not task.passes("Thank you! The sky is blue.", has_stopped=False)


@pytest.mark.parametrize(
    ("kind", "asked", "right", "wrong"),
    [
        ("number", 4, "2 + 2 is 4", "2 + 2 is 5"),
        ("words", [1, 3], "one two three", "one two three four"),
        ("sentences", [2, 2], "It rains. We stay!", "It rains."),
        ("lines", [2, 2], "a\n\nb", "a\nb\nc"),
        ("bullets", [1, 2], "- a\nb", "a\nb"),
        ("contains", ["a", "b"], "A and B", "a only"),
        ("contains_exactly", ["GREEN"], "It is GREEN", "green"),
        ("avoids", ["no"], "yes", "No"),
        ("is", ["lantern"], "Lantern.", "a red lantern"),
        ("starts", ["yes"], "Yes, it is", "It is, yes"),
        ("ends", ["done"], "I am done.", "done it is"),
        ("case", "upper", "ALL OF IT 1", "Not all"),
        ("case", "lower", "all of it", "Not all"),
        ("json", ["a"], '{"a": 1}', '{"b": 1}'),
        ("json", ["a"], 'So:\n```json\n{"a": 1}\n```', '["a"]'),
    ],
)
def test_a_check_tells_right_from_wrong(kind: str, asked: object, right: str, wrong: str) -> None:
    assert CHECKS[kind](right, asked)
    assert not CHECKS[kind](wrong, asked)


def test_of_general_texts_all_tokens_but_the_first_are_learned() -> None:
    rows = general_rows(byte_tokenizer(), bos="<s>")
    assert len(rows) == 5
    for row in rows:
        assert row.input_ids[0] == 256
        assert row.labels == [IGNORED, *row.input_ids[1:]]
