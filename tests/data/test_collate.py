"""A batch concatenates: positions restart, no row is a neighbour's target, padding is masked by place."""

from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st

from conftest import CHATML, byte_tokenizer
from properties import examples
from traced import Traced, chat
from truetune.data.collate import collate, collate_padded
from truetune.data.examples import IGNORED, Tokenized
from truetune.data.packing import pack

CHAT = byte_tokenizer(chat_template=CHATML)
C1, C2 = Traced(chat("u:hi", "a:yo"), CHAT).tokens, Traced(chat("u:q", "a:ok!"), CHAT).tokens


def features(*rows: Tokenized) -> list[dict[str, Any]]:
    return [{"input_ids": r.input_ids, "labels": r.labels, "seq_lengths": [len(r.input_ids)]} for r in rows]


def test_g17_two_rows_in_one_batch_have_positions_of_their_own() -> None:
    batch = collate(features(C1, C2))
    assert {name: tensor.shape for name, tensor in batch.items()} == dict.fromkeys(
        ("input_ids", "labels", "position_ids"), torch.Size([1, 50])
    )
    assert all(tensor.dtype == torch.int64 for tensor in batch.values())
    assert batch["position_ids"].tolist() == [[*range(25), *range(25)]]
    assert batch["labels"][0, 25] == IGNORED
    assert (batch["labels"] != IGNORED).sum() == 7


def test_a_packed_sequence_and_its_rows_apart_are_one_batch() -> None:
    (packed,) = pack([C1, C2], max_length=64)
    together = collate([{"input_ids": packed.input_ids, "labels": packed.labels, "seq_lengths": packed.seq_lengths}])
    apart = collate(features(C1, C2))
    assert all(torch.equal(together[name], apart[name]) for name in apart)


LENGTHS = st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=4), min_size=1, max_size=5)


@given(LENGTHS)
@examples(50)
def test_every_sample_starts_at_position_0_with_a_token_that_is_no_target(lengths: list[list[int]]) -> None:
    rows = [
        {"input_ids": [7] * sum(row), "labels": [7] * sum(row), "seq_lengths": row}  # Even where a row forgot it.
        for row in lengths
    ]
    batch = collate(rows)
    starts = batch["position_ids"] == 0
    assert starts.sum() == sum(map(len, lengths))
    assert (batch["labels"][starts] == IGNORED).all()
    assert (batch["labels"][~starts] == 7).all()
    assert batch["input_ids"].shape == (1, sum(map(sum, lengths)))


def test_collating_leaves_the_rows_as_they_were() -> None:
    rows = features(Tokenized([1, 2], [1, 2]))
    collate(rows)
    collate_padded(rows, pad_token_id=0)
    assert rows == features(Tokenized([1, 2], [1, 2]))


def test_g08_eos_is_learned_though_padding_has_its_id() -> None:
    tokenizer = byte_tokenizer(pad_token="</s>")
    rows = [Traced({"instruction": "n", "output": answer}, tokenizer).tokens for answer in ("3", "twelve")]
    batch = collate_padded(features(*rows), pad_token_id=tokenizer.pad_token_id)
    assert tokenizer.pad_token_id == 257
    assert (batch["labels"] == 257).sum(dim=1).tolist() == [1, 1]
    assert (batch["input_ids"] == 257).sum(dim=1).tolist() == [6, 1]
    assert (batch["labels"][batch["attention_mask"] == 0] == IGNORED).all()
    assert batch["attention_mask"].sum(dim=1).tolist() == [len(row.input_ids) for row in rows]


def test_rows_of_one_length_are_not_padded() -> None:
    batch = collate_padded(features(C1, C2), pad_token_id=258)
    assert batch["input_ids"].tolist() == [C1.input_ids, C2.input_ids]
    assert batch["labels"].tolist() == [C1.labels, C2.labels]
    assert batch["attention_mask"].all()


# --- weights ----------------------------------------------------------------------------------------------


def weighed(*weights: float) -> list[dict[str, Any]]:
    """Rows of two tokens each, in packs of two and one alone."""
    pack_of_two = {"input_ids": [1, 2, 3, 4, 5], "labels": [-100, 2, -100, 4, 5], "seq_lengths": [2, 3]}
    alone = {"input_ids": [6, 7], "labels": [-100, 7], "seq_lengths": [2]}
    return [{**pack_of_two, "weights": list(weights[:2])}, {**alone, "weights": list(weights[2:])}]


def test_each_token_has_the_weight_of_its_own_sample() -> None:
    batch = collate(weighed(0.5, 2.0, 3.0))
    assert batch["loss_weights"].tolist() == [[0.5, 0.5, 2.0, 2.0, 2.0, 3.0, 3.0]]
    assert batch["loss_weights"].shape == batch["input_ids"].shape


def test_weights_of_one_are_none() -> None:
    assert "loss_weights" not in collate(weighed(1.0, 1.0, 1.0))
    assert "loss_weights" in collate(weighed(1.0, 1.0, 2.0))
    rows = features(Tokenized([1, 2], [1, 2]), Tokenized([3], [3]))
    assert "loss_weights" not in collate_padded(rows, pad_token_id=0)
    assert "loss_weights" not in collate_padded([{**row, "weights": [1.0]} for row in rows], pad_token_id=0)
    assert "loss_weights" not in collate_padded(rows[1:], pad_token_id=0)


def test_padded_rows_have_a_weight_for_every_place_and_padding_bears_no_loss() -> None:
    rows = [
        {**row, "weights": [weight]}
        for row, weight in zip(features(C1, Tokenized([1, 2], [-100, 2])), (1.0, 0.5), strict=True)
    ]
    batch = collate_padded(rows, pad_token_id=258)
    assert batch["loss_weights"].tolist() == [[1.0] * 25, [0.5] * 25]
    assert batch["input_ids"][1].tolist() == [1, 2, *[258] * 23]
    assert batch["labels"][1].tolist() == [IGNORED, 2, *[IGNORED] * 23]
    assert batch["attention_mask"][1].tolist() == [1, 1, *[0] * 23]
