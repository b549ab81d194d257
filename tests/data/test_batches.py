"""Splits are stable and leak-free; packs and batches lose nothing and mix nothing."""

from itertools import accumulate

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from truetune.data.collate import collate, collate_padded
from truetune.data.examples import IGNORED, Tokenized
from truetune.data.packing import pack
from truetune.data.split import split_examples
from truetune.errors import DataError

TEXTS = [f"row {number}" for number in range(1_000)]


def test_the_share_taken_is_near_what_was_asked() -> None:
    assert 70 <= sum(split_examples(TEXTS, test_size=0.1, seed=42)) <= 130
    assert 15 <= sum(split_examples(TEXTS, test_size=25, seed=42)) <= 40


def test_appending_rows_moves_no_other_row() -> None:
    before = split_examples(TEXTS, test_size=0.1, seed=42)
    after = split_examples([*TEXTS, *(f"new {number}" for number in range(500))], test_size=0.1, seed=42)
    assert after[:1_000] == before


def test_equal_rows_are_on_one_side() -> None:
    taken = split_examples(TEXTS * 2, test_size=0.1, seed=42)
    assert taken[:1_000] == taken[1_000:]


def test_the_split_hangs_on_the_seed_alone() -> None:
    assert split_examples(TEXTS, test_size=0.1, seed=1) == split_examples(TEXTS, test_size=0.1, seed=1)
    assert split_examples(TEXTS, test_size=0.1, seed=1) != split_examples(TEXTS, test_size=0.1, seed=2)


def test_by_default_few_rows_give_none_and_many_at_most_a_thousand() -> None:
    assert not any(split_examples(TEXTS[:99], test_size=None, seed=42))
    assert any(split_examples(TEXTS[:100], test_size=None, seed=42))
    many = [f"row {number}" for number in range(30_000)]
    assert 850 <= sum(split_examples(many, test_size=None, seed=42)) <= 1_150


@pytest.mark.parametrize("test_size", [0.001, 0.999, 1, 5])
def test_both_sides_keep_a_row(test_size: float) -> None:
    taken = split_examples(TEXTS[:5], test_size=test_size, seed=42)
    assert any(taken)
    assert not all(taken)


def test_a_single_text_is_never_held_out_and_zero_means_none() -> None:
    assert split_examples(["same"] * 5, test_size=0.5, seed=42) == [False] * 5
    assert split_examples(TEXTS, test_size=0, seed=42) == [False] * 1_000


def rows(*lengths: int) -> list[Tokenized]:
    """Rows of these lengths; each row's tokens carry its number."""
    return [
        Tokenized([number] * length, [IGNORED, *[number] * (length - 1)]) for number, length in enumerate(lengths)
    ]


def test_g18_ten_rows_of_25_tokens_fill_five_packs_of_64() -> None:
    packs = pack(rows(*[25] * 10), max_length=64)
    assert [packed.seq_lengths for packed in packs] == [[25, 25]] * 5


@given(st.lists(st.integers(2, 64), min_size=1, max_size=40))
@settings(max_examples=25, deadline=None)
def test_packing_loses_no_token_cuts_no_row_and_keeps_the_limit(lengths: list[int]) -> None:
    packs = pack(rows(*lengths), max_length=64)
    found = []
    for packed in packs:
        assert len(packed.input_ids) == len(packed.labels) == sum(packed.seq_lengths) <= 64
        for length, end in zip(packed.seq_lengths, accumulate(packed.seq_lengths), strict=True):
            ids, labels = packed.input_ids[end - length : end], packed.labels[end - length : end]
            assert len(set(ids)) == 1
            assert labels == [IGNORED, *ids[1:]]
            found.append((ids[0], length))
    assert sorted(found) == list(enumerate(lengths))


def test_a_row_longer_than_a_pack_is_refused_not_cut() -> None:
    with pytest.raises(DataError, match="1 rows are longer than the 16 tokens"):
        pack(rows(8, 20), max_length=16)


def test_a_batch_lays_rows_end_to_end_with_restarting_positions_and_no_mask() -> None:
    batch = collate(
        [
            {"input_ids": [1, 2, 3, 4, 5], "labels": [1, 2, 3, 4, 5], "seq_lengths": [3, 2]},
            {"input_ids": [6, 7], "labels": [6, 7], "seq_lengths": [2]},
        ]
    )
    assert set(batch) == {"input_ids", "labels", "position_ids"}
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4, 5, 6, 7]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1, 0, 1]]
    assert batch["labels"].tolist() == [[IGNORED, 2, 3, IGNORED, 5, IGNORED, 7]]


def test_g08_padding_is_masked_by_place_so_that_eos_stays_learned() -> None:
    batch = collate_padded(
        [
            {"input_ids": [1, 257], "labels": [IGNORED, 257], "seq_lengths": [2]},
            {"input_ids": [1, 2, 3, 257], "labels": [IGNORED, 2, 3, 257], "seq_lengths": [4]},
        ],
        pad_token_id=257,
    )
    assert batch["input_ids"].tolist() == [[1, 257, 257, 257], [1, 2, 3, 257]]
    assert batch["labels"].tolist() == [[IGNORED, 257, IGNORED, IGNORED], [IGNORED, 2, 3, 257]]
    assert batch["attention_mask"].tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]
