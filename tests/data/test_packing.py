"""Packing puts whole rows end to end: none lost, none cut, none changed, few sequences."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import CHATML, byte_tokenizer
from properties import examples
from traced import Traced, chat
from truetune.data.examples import IGNORED, Packed, Tokenized
from truetune.data.packing import pack
from truetune.errors import DataError

CHAT = byte_tokenizer(chat_template=CHATML)
C1, C2 = Traced(chat("u:hi", "a:yo"), CHAT).tokens, Traced(chat("u:q", "a:ok!"), CHAT).tokens


def unpacked(packs: list[Packed]) -> list[Tokenized]:
    rows = []
    for packed in packs:
        end = 0
        for length in packed.seq_lengths:
            start, end = end, end + length
            rows.append(Tokenized(packed.input_ids[start:end], packed.labels[start:end]))
        assert end == len(packed.input_ids) == len(packed.labels)
    return rows


def counted(rows: list[Tokenized]) -> Counter[tuple[tuple[int, ...], tuple[int, ...]]]:
    return Counter((tuple(row.input_ids), tuple(row.labels)) for row in rows)


ROWS = st.lists(
    st.lists(st.tuples(st.integers(0, 260), st.booleans()), min_size=2, max_size=64).map(
        lambda tokens: Tokenized(
            [token for token, _ in tokens],
            [IGNORED, *(token if learned else IGNORED for token, learned in tokens[1:])],
        )
    ),
    min_size=1,
    max_size=30,
)


@given(ROWS, st.integers(64, 200))
@examples(30)
def test_every_token_and_every_label_comes_out_once_in_its_own_row(rows: list[Tokenized], max_length: int) -> None:
    packs = pack(rows, max_length=max_length)
    assert counted(unpacked(packs)) == counted(rows)
    assert all(len(packed.input_ids) <= max_length for packed in packs)
    tokens = sum(len(row.input_ids) for row in rows)
    assert -(-tokens // max_length) <= len(packs) <= len(rows)


def test_no_two_sequences_are_left_that_would_fit_into_one() -> None:
    rows = [Tokenized([1] * length, [1] * length) for length in (60, 50, 40, 30, 20, 10, 10, 5)]
    packs = pack(rows, max_length=64)
    lengths = sorted(len(packed.input_ids) for packed in packs)
    assert sum(lengths) == 225
    assert lengths[0] + lengths[1] > 64


def test_g17_the_mask_goes_with_its_tokens() -> None:
    (packed,) = pack([C1, C2], max_length=64)
    assert packed.seq_lengths == [25, 25]
    assert len(packed.labels) - packed.labels.count(IGNORED) == 7
    assert counted(unpacked([packed])) == counted([C1, C2])


def test_g18_ten_rows_of_25_tokens_are_five_sequences() -> None:
    packs = pack([C1] * 10, max_length=64)
    assert [packed.seq_lengths for packed in packs] == [[25, 25]] * 5


@pytest.mark.parametrize(("max_length", "count"), [(25, 10), (49, 10), (50, 5), (75, 4), (250, 1)])
def test_a_sequence_is_filled_up_to_the_limit_and_not_beyond(max_length: int, count: int) -> None:
    assert len(pack([C1] * 10, max_length=max_length)) == count


def test_a_row_longer_than_a_sequence_is_refused() -> None:
    with pytest.raises(DataError, match="2 rows are longer than the 24 tokens"):
        pack([C1, C2], max_length=24)


def test_the_longest_comes_first_and_each_goes_where_the_least_room_is_left() -> None:
    def places(*lengths: int) -> list[list[int]]:
        return [list(each) for each in pack([Tokenized([1] * n, [1] * n) for n in lengths], max_length=64).packs]

    assert places(25, 25, 30) == [[2, 0], [1]]
    assert places(40, 50, 14, 24) == [[1, 2], [0, 3]]
    assert places(40, 50, 10, 20) == [[1, 2], [0, 3]]
    assert places(40, 40, 20, 20, 4, 4) == [[0, 3, 4], [1, 2, 5]] or places(40, 40, 20, 20, 4, 4) == [
        [0, 3, 5],
        [1, 2, 4],
    ]
    assert places(64, 1) == [[0], [1]]


def test_some_of_the_sequences_are_sequences_and_weights_go_with_their_rows() -> None:
    rows = [Tokenized([n] * 30, [n] * 30, weight=float(n)) for n in range(1, 6)]
    packs = pack(rows, max_length=64)
    assert [packed.weights for packed in packs] == [
        [packed.input_ids[0], packed.input_ids[-1]][: len(packed.weights)] for packed in packs
    ]
    assert sorted(weight for packed in packs for weight in packed.weights) == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert list(packs[1:]) == list(packs)[1:]
    assert len(packs[1:]) == 2
