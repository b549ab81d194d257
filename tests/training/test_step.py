"""What a step sums up of its batches, and what a batch is made of: the numbers that loss and rates come from."""

import threading
from contextlib import suppress
from typing import Any

import torch

from truetune.data.examples import Packed, Tokenized
from truetune.training.batches import StreamedSequences, dataset_of, real_tokens, without_weights
from truetune.training.step import Counts, Step, random_state, seed_of

ROW = Tokenized([1, 2, 3], [-100, 2, 3], 0.5)
PACK = Packed([1, 2, 3, 4], [-100, 2, -100, 4], [2, 2], [1.0, 2.0])


def tensor(value: float) -> torch.Tensor:
    return torch.tensor(value)


# --- sums -------------------------------------------------------------------------------------------------


def test_counts_add_up_and_correct_tokens_are_told_from_the_first_step_that_tells_them() -> None:
    first, second = Counts(supervised=3, tokens=7), Counts(supervised=2, tokens=5, correct=1)
    assert first.plus(second) == Counts(5, 12, 1)
    assert second.plus(second) == Counts(4, 10, 2)
    assert second.plus(first) == Counts(5, 12, None)
    assert Counts() == Counts(supervised=0, tokens=0, correct=None)


def test_a_step_ends_with_the_sums_of_its_batches_and_the_next_begins_with_none() -> None:
    step = Step()
    for place, (loss, supervised, tokens) in enumerate([(0.5, 3, 7), (0.25, 2, 5)]):
        step.begin({"place": place}, place)
        step.add(loss=tensor(loss), supervised=tensor(supervised), tokens=tensor(tokens))
    assert step.batches == {0: {"place": 0}, 1: {"place": 1}}
    assert step.end() == (0.75, Counts(5, 12, None))
    assert step.batches == {}
    step.add(loss=tensor(1.0), supervised=tensor(1), tokens=tensor(2), correct=tensor(1))
    assert step.end() == (1.0, Counts(1, 2, 1))


def test_what_is_added_in_a_part_that_is_left_out_does_not_count() -> None:
    step = Step()
    step.add(loss=tensor(1.0), supervised=tensor(1), tokens=tensor(1))
    with suppress(ZeroDivisionError), step.left_out():
        step.add(loss=tensor(9.0), supervised=tensor(9), tokens=tensor(9))
        raise ZeroDivisionError
    assert step.end() == (1.0, Counts(1, 1))


def test_a_step_that_starts_over_forgets_its_sums_keeps_its_batches_and_draws_the_same_numbers() -> None:
    step = Step()
    torch.manual_seed(3)
    step.begin({"place": 0}, 0)
    drawn = torch.rand(2)
    step.begin({"place": 1}, 1)
    step.add(loss=tensor(9.0))
    step.start_over()
    assert torch.equal(torch.rand(2), drawn)
    assert list(step.batches) == [0, 1]
    step.add(loss=tensor(1.0))
    assert step.end() == (1.0, Counts())


def test_sums_are_those_of_all_processes_and_one_without_a_batch_adds_nothing() -> None:
    step, other = Step(), Step()
    step.add(loss=tensor(0.5), supervised=tensor(3), tokens=tensor(7), correct=tensor(2))
    taken: list[torch.Tensor] = []
    assert other.share(lambda own: taken.append(own) or own, with_correct=True, device="cpu") == 0.0
    assert taken[0].tolist() == [0, 0, 0, 0]
    assert step.share(lambda own: own * 2, with_correct=True, device="cpu") == 1.0
    assert step.end() == (1.0, Counts(6, 14, 4))
    step.add(loss=tensor(0.5), supervised=tensor(3), tokens=tensor(7))
    assert step.share(lambda own: own + 1, with_correct=False, device="cpu").dtype == torch.float32
    assert step.end() == (1.5, Counts(4, 8, None))


def test_a_sum_that_fp32_would_round_is_added_up_exactly() -> None:
    step = Step()
    step.add(loss=tensor(0.0), supervised=torch.tensor(2**24 + 1), tokens=torch.tensor(1))
    taken: list[Any] = []
    step.share(lambda own: taken.append(own.tolist()) or own, with_correct=False, device="cpu")
    assert taken == [[0.0, 2**24 + 1, 1.0]]


def test_threads_lose_nothing_of_what_they_add() -> None:
    step = Step()
    adding = [
        threading.Thread(target=lambda: [step.add(tokens=torch.tensor(1)) for _ in range(200)]) for _ in range(4)
    ]
    for each in adding:
        each.start()
    for each in adding:
        each.join()
    step.add(loss=tensor(0.0), supervised=tensor(0.0))
    assert step.end()[1].tokens == 800


def test_random_numbers_go_back_to_where_they_were() -> None:
    restore = random_state()
    drawn = torch.rand(3)
    restore()
    assert torch.equal(torch.rand(3), drawn)


def test_seeds_are_pinned_and_those_of_neighbours_have_nothing_in_common() -> None:
    assert seed_of(42, 0, 0) == 6205966214205040493
    found = {seed_of(42, step, place) for step in range(20) for place in range(20)}
    assert len(found) == 400
    assert all(0 <= seed < 2**64 for seed in found)
    assert seed_of(1, 23) != seed_of(12, 3)


# --- batches ----------------------------------------------------------------------------------------------


def test_a_row_and_a_pack_are_columns_with_each_sample_s_length_and_weight() -> None:
    row = {"input_ids": [1, 2, 3], "labels": [-100, 2, 3], "seq_lengths": [3], "weights": [0.5]}
    pack = {"input_ids": [1, 2, 3, 4], "labels": [-100, 2, -100, 4], "seq_lengths": [2, 2], "weights": [1.0, 2.0]}
    rows = dataset_of([ROW, PACK])
    assert len(rows) == 2
    assert (rows[0], rows[1]) == (row, pack)
    assert rows[[1, 0]]["seq_lengths"] == [[2, 2], [3]]
    stream = StreamedSequences([ROW, PACK])
    assert (len(stream), stream[0], stream[1]) == (2, row, pack)


def test_weights_are_taken_out_of_what_the_model_takes() -> None:
    inputs = {"input_ids": tensor(1), "loss_weights": tensor(2)}
    weights, rest = without_weights(inputs)
    assert (weights, list(rest)) == (tensor(2), ["input_ids"])
    assert list(inputs) == ["input_ids", "loss_weights"]
    assert without_weights(rest) == (None, rest)


def test_padding_is_no_token_of_a_batch() -> None:
    ids = torch.ones(2, 5)
    assert real_tokens({"input_ids": ids}) == 10
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    assert real_tokens({"input_ids": ids, "attention_mask": mask}) == 8
