"""The validation rows: pinned, stable, leak-free, and never all or nothing where there is a choice."""

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from properties import examples
from truetune.data.near import NO_PAIRS, Pairs
from truetune.data.split import linked, near_linked, place, repeated, row_key, split_rows, validation_fraction
from truetune.data.store import Keys

TEXTS = [f"row {number}" for number in range(2_000)]
PINNED = [3, 5, 12, 17, 26, 34, 36, 45, 47, 52, 58, 62, 76, 79, 85, 96]


def keys(texts: list[str]) -> Keys:
    return np.array([row_key(text) for text in texts], np.uint64)


def split_examples(texts: list[str], **options: Any) -> list[bool]:
    taken: list[bool] = split_rows(keys(texts), **options).tolist()
    return taken


def places(taken: list[bool]) -> list[int]:
    return [index for index, is_taken in enumerate(taken) if is_taken]


def test_a_seed_s_split_is_pinned_so_that_no_release_moves_rows() -> None:
    assert places(split_examples(TEXTS[:100], test_size=0.1, seed=42)) == PINNED


def test_another_process_splits_alike_whatever_its_hash_seed() -> None:
    code = (
        "import numpy as np; from truetune.data.split import row_key, split_rows as s;"
        "k=np.array([row_key(f'row {n}') for n in range(100)], np.uint64);"
        "print(np.flatnonzero(s(k,test_size=0.1,seed=42)).tolist())"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, check=True, capture_output=True, text=True
        ).stdout
        for seed in ("1", "2")
    }
    assert outputs == {f"{PINNED}\n"}


@given(st.lists(st.sampled_from(TEXTS[:40]), min_size=1, max_size=60), st.integers(0, 9), st.floats(0.01, 0.99))
@examples(100)
def test_equal_rows_share_a_side_and_order_does_not_matter(texts: list[str], seed: int, size: float) -> None:
    taken = split_examples(texts, test_size=size, seed=seed)
    sides: dict[str, bool] = {}
    for text, side in zip(texts, taken, strict=True):
        assert sides.setdefault(text, side) is side
    assert split_examples(texts[::-1], test_size=size, seed=seed) == taken[::-1]
    assert any(taken) == (len(set(texts)) > 1)
    assert not all(taken)


def test_appending_moves_no_row_and_removing_moves_no_other() -> None:
    whole = split_examples(TEXTS, test_size=0.1, seed=42)
    assert split_examples(TEXTS[:1_000], test_size=0.1, seed=42) == whole[:1_000]
    assert split_examples(TEXTS[1_000:], test_size=0.1, seed=42) == whole[1_000:]


def test_another_seed_takes_others() -> None:
    first, second = (set(places(split_examples(TEXTS, test_size=0.1, seed=seed))) for seed in (1, 2))
    assert len(first & second) < 0.3 * min(len(first), len(second))


@pytest.mark.parametrize(
    ("rows", "test_size", "fraction"),
    [
        (99, None, 0.0),
        (100, None, 0.1),
        (10_000, None, 0.1),
        (20_000, None, 0.05),
        (1_000_000, None, 0.001),
        (50, 0.2, 0.2),
        (1_000, 25, 0.025),
        (10, 8, 0.5),
        (10, 1, 0.1),
        (10, 0, 0.0),
        (1, 0.5, 0.0),
    ],
)
def test_the_share_is_a_tenth_at_most_a_thousand_rows_and_none_of_few(
    rows: int, test_size: float | None, fraction: float
) -> None:
    assert validation_fraction(rows, test_size) == pytest.approx(fraction)


def test_the_default_takes_none_of_99_rows_and_about_a_thousand_of_many() -> None:
    assert places(split_examples(TEXTS[:99], test_size=None, seed=42)) == []
    assert 1 <= sum(split_examples(TEXTS[:100], test_size=None, seed=42)) <= 25
    many = [f"row {number}" for number in range(20_000)]
    assert 900 <= sum(split_examples(many, test_size=None, seed=42)) <= 1_100


@pytest.mark.parametrize("test_size", [0.0001, 0.9999, 1, 2])
@pytest.mark.parametrize("count", [2, 3, 10])
def test_one_row_at_least_stays_on_each_side(count: int, test_size: float) -> None:
    for seed in range(20):
        assert 0 < sum(split_examples(TEXTS[:count], test_size=test_size, seed=seed)) < count


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), min_size=1, max_size=40))
@examples(200)
def test_a_group_and_every_group_that_holds_an_equal_row_share_a_key_and_no_other_does(
    rows: list[tuple[int, int]],
) -> None:
    texts, groups = keys([f"text {text}" for text, _ in rows]), keys([f"group {group}" for _, group in rows])
    found = linked(texts, groups).tolist()
    parts = [{("text", text), ("group", group)} for text, group in rows]
    for part in parts:
        for other in parts:
            if part is not other and part & other:
                part |= other
                other |= part
    for _ in rows:  # Until nothing joins any more.
        parts = [set().union(*(other for other in parts if part & other)) for part in parts]
    expected = [[parts[i] == parts[j] for j in range(len(rows))] for i in range(len(rows))]
    assert [[found[i] == found[j] for j in range(len(rows))] for i in range(len(rows))] == expected


def test_a_group_s_key_does_not_change_when_rows_of_other_groups_are_appended() -> None:
    texts, groups = keys(TEXTS[:20]), keys([f"group {number % 5}" for number in range(20)])
    assert linked(texts[:10], groups[:10]).tolist() == linked(texts, groups).tolist()[:10]


def test_rows_that_equal_an_earlier_one_are_counted_and_the_first_is_named() -> None:
    assert repeated(keys(["a", "b", "c"])) == (0, None)
    assert repeated(keys(["a", "b", "b", "a", "b"])) == (3, 2)


# --- near duplicates --------------------------------------------------------------------------------------


def pairs(*linked_rows: tuple[int, int]) -> Pairs:
    first, second = (np.array(column, np.int64) for column in zip(*linked_rows, strict=True))
    return Pairs(first, second, np.full(len(first), 0.9))


def test_near_rows_share_a_group_with_all_that_their_groups_hold() -> None:
    groups = np.array([7, 8, 9, 9, 10, 11], np.uint64)
    found, too_many = near_linked(groups, pairs((0, 2), (3, 4)), test_size=None)
    assert found.tolist() == [7, 8, 7, 7, 7, 11]
    assert too_many.tolist() == []


def test_without_near_rows_groups_stay_as_they_are() -> None:
    groups = np.array([7, 8, 7], np.uint64)
    found, too_many = near_linked(groups, NO_PAIRS, test_size=None)
    assert found.tolist() == [7, 8, 7]
    assert too_many.tolist() == []


@pytest.mark.parametrize(("size", "is_joined"), [(2, True), (5, True), (6, False)])
def test_a_form_of_more_rows_than_half_of_the_share_is_not_kept_on_one_side(size: int, is_joined: bool) -> None:
    groups = np.arange(100, dtype=np.uint64)
    found, too_many = near_linked(groups, pairs(*((0, row) for row in range(1, size))), test_size=0.1)
    assert too_many.tolist() == ([] if is_joined else list(range(size)))
    assert len(set(found.tolist())) == (101 - size if is_joined else 100)


def test_two_rows_of_one_form_are_always_kept_together() -> None:
    found, too_many = near_linked(np.arange(4, dtype=np.uint64), pairs((1, 3)), test_size=0.1)
    assert found.tolist() == [0, 1, 2, 1]
    assert too_many.tolist() == []


def test_places_are_even_and_those_of_another_purpose_are_others() -> None:
    found = place(keys(TEXTS), 42)
    assert ((found >= 0) & (found < 1)).all()
    assert abs(np.histogram(found, bins=10, range=(0, 1))[0] - 200).max() < 50
    other = place(keys(TEXTS), 42, purpose="order")
    assert abs(float(np.corrcoef(found, other)[0, 1])) < 0.1
    assert abs(float(np.corrcoef(found, place(keys(TEXTS), 43))[0, 1])) < 0.1


def test_three_rows_of_one_form_are_too_many_where_the_share_is_one_row() -> None:
    found, too_many = near_linked(np.arange(20, dtype=np.uint64), pairs((0, 1), (1, 2)), test_size=0.1)
    assert (found.tolist(), too_many.tolist()) == (list(range(20)), [0, 1, 2])


def test_a_group_has_one_name_in_whatever_order_its_rows_come() -> None:
    texts, groups = keys(["a", "b", "a", "c", "b"]), np.array([9, 7, 8, 3, 9], np.uint64)
    assert linked(texts, groups).tolist() == [7, 7, 7, 3, 7]
    assert linked(texts[::-1], groups[::-1]).tolist() == [7, 3, 7, 7, 7]


def test_places_are_pinned_to_the_bit() -> None:
    assert place(keys(TEXTS[:2]), 42).tolist() == [0.8283615215114865, 0.5525545485691193]
