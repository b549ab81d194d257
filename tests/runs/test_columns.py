"""What was logged as columns: the same ones whether a long run's lines are read all at once or one by one."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from properties import examples
from truetune.runs import columns
from truetune.runs.columns import Column, Logged, columns_of, logged_columns, number, read_columns

NAMES = ("loss", "eval_loss", "num_tokens")

plain = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**60), 2**60) | st.none()
steps = st.integers(0, 2**53 - 1)
ordinary = st.fixed_dictionaries(
    {"step": steps},
    optional={"loss": plain, "eval_loss": plain, "num_tokens": plain, "eval_exact_match": plain, "epoch": plain},
)
odd = st.fixed_dictionaries(
    {},
    optional={
        "step": steps | st.none() | st.floats() | st.booleans() | st.text(max_size=3) | st.integers(),
        "loss": st.floats() | st.booleans() | st.text(max_size=5) | st.lists(plain, max_size=2) | st.integers(),
        "eval_bleü": plain,
        "note": st.text(max_size=9) | st.just('", "eval_x": null'),
    },
)


def text_of(lines: list[Any]) -> bytes:
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def read(text: bytes, *, at_once: bool) -> Logged:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(columns, "_LONG", 0 if at_once else math.inf)
        return read_columns(text, names=NAMES)


def assert_same(found: Logged, expected: Logged) -> None:
    assert found.damaged == expected.damaged
    assert list(found.columns) == list(expected.columns)
    for name, column in expected.columns.items():
        np.testing.assert_array_equal(found.columns[name].steps, column.steps)
        np.testing.assert_array_equal(found.columns[name].values, column.values)


@examples(100)
@given(st.lists(ordinary, min_size=1, max_size=12))
def test_lines_as_a_training_writes_them_are_read_at_once_and_are_the_same(lines: list[dict[str, Any]]) -> None:
    assert columns._read_at_once(text_of(lines), NAMES) is not None
    assert_same(read(text_of(lines), at_once=True), read(text_of(lines), at_once=False))


@examples(100)
@given(st.lists(ordinary | odd, max_size=6))
def test_whatever_lines_hold_they_are_the_same(lines: list[dict[str, Any]]) -> None:
    assert_same(read(text_of(lines), at_once=True), read(text_of(lines), at_once=False))


@pytest.mark.parametrize(
    "line",
    [
        b'{"step": 2, "loss": 1',
        b'{"step": 2, "loss": 1} {"step": 3, "loss": 1}',
        b'{"step": 2,\n "loss": 1}',
        b'{"step": 2, "loss": 1, "loss": 5}',
        b'{"step": 2, "loss": 1e999}',
        b'{"step": 2, "loss": 01}',
        b'{"step":2,"loss":null,"eval_f1":0.5}',
        b'{"step": 2, "loss": {"deep": null}}',
        b'{"step": 2, "note": "\\"eval_fake\\": 1", "eval_true": 1}',
        b'{"step": 2, "eval_\\u0061": 1}',
        b'["step"]',
        b"",
        b"\xff\x00{",
        b"[" * 5_000,
    ],
)
def test_a_line_that_no_training_writes_is_taken_as_it_is_one_by_one(line: bytes) -> None:
    text = text_of([{"step": 1, "loss": 3.0}]) + line + b"\n" + text_of([{"step": 4, "loss": None}])
    assert_same(read(text, at_once=True), read(text, at_once=False))
    assert_same(read(text.rstrip(b"\n"), at_once=True), read(text.rstrip(b"\n"), at_once=False))


def test_a_value_that_is_null_is_a_gap_and_a_line_without_it_is_none() -> None:
    text = text_of([{"step": 1, "loss": 2.0}, {"step": 2, "loss": None}, {"step": 2, "eval_loss": 4.0}])
    for at_once in (True, False):
        found = read(text, at_once=at_once).columns
        assert found["loss"].steps.tolist() == [1, 2]
        np.testing.assert_array_equal(found["loss"].values, [2.0, np.nan])
        assert found["loss"].numbers.steps.tolist() == [1]
        assert found["eval_loss"].steps.tolist() == [2]


def test_of_many_names_in_a_hostile_file_few_become_columns() -> None:
    lines = [{"step": step, f"eval_{step}": 1.0, f"note_{step}": 2.0} for step in range(500)]
    for at_once in (True, False):
        assert len(read(text_of(lines), at_once=at_once).columns) < 100


def test_columns_come_in_the_order_of_steps_with_the_later_of_two() -> None:
    column = Column(np.array([1, 3, 2, 3]), np.array([1.0, 9.0, 2.0, 3.0])).in_order
    assert (column.steps.tolist(), column.values.tolist()) == ([1, 2, 3], [1.0, 2.0, 3.0])
    assert column.in_order is column


def test_a_file_is_read_with_what_is_wrong_with_it(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    assert logged_columns(tmp_path, file, names=NAMES).problem == "metrics.jsonl is missing"
    file.write_text('{"step": 1, "loss": 2.5}\n{"st')
    found = logged_columns(tmp_path, file, names=NAMES)
    assert found.value["loss"].values.tolist() == [2.5]
    assert found.problem == "1 lines of metrics.jsonl are damaged"


def test_what_is_no_number_is_no_value() -> None:
    found = columns_of([{"step": 1, "loss": value} for value in ("1", True, None, [], 10**400, 1e300)], names=NAMES)
    assert np.isnan(found["loss"].values).all()
    assert number(7) == 7.0
