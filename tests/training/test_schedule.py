"""The plan's arithmetic; that the trainer follows it is shown in test_engine.py and tests/pipeline."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from properties import examples
from truetune.training.schedule import Lengths, is_worth_packing, schedule

PLAIN = {"num_train_epochs": 2, "max_steps": -1, "warmup_steps": 0.5}


def test_g18_packs_are_counted_not_rows() -> None:
    lengths = Lengths(per_device_train_batch_size=2, gradient_accumulation_steps=1, **PLAIN)
    packed, unpacked = schedule(5, lengths), schedule(10, lengths)
    assert (packed.steps_per_epoch, packed.total_steps, packed.warmup_steps) == (3, 6, 3)
    assert (unpacked.total_steps, unpacked.warmup_steps) == (10, 5)


def test_g18_max_steps_is_exact() -> None:
    lengths = Lengths(2, 1, num_train_epochs=2, max_steps=4, warmup_steps=0.5)
    assert (schedule(5, lengths).total_steps, schedule(500, lengths).total_steps) == (4, 4)


@pytest.mark.parametrize(("processes", "batch", "steps"), [(1, 6, 17), (4, 24, 5)])
def test_g28_processes_multiply_the_batch(processes: int, batch: int, steps: int) -> None:
    lengths = Lengths(2, 3, num_train_epochs=1, max_steps=-1, warmup_steps=0, num_processes=processes)
    plan = schedule(100, lengths)
    assert (plan.effective_batch_size, plan.total_steps) == (batch, steps)


@pytest.mark.parametrize(("rows", "accumulation"), [(1_000, 4), (270, 4), (100, 3), (70, 2), (60, 1), (5, 1)])
def test_accumulation_is_lowered_until_fifty_steps_remain(rows: int, accumulation: int) -> None:
    lengths = Lengths(2, "auto", num_train_epochs=3, max_steps=-1, warmup_steps=0)
    plan = schedule(rows, lengths)
    assert plan.gradient_accumulation_steps == accumulation
    assert plan.total_steps >= 50 or accumulation == 1


@given(
    sequences=st.integers(1, 10_000),
    batch=st.integers(1, 64),
    accumulation=st.one_of(st.just("auto"), st.integers(1, 64)),
    epochs=st.floats(1e-6, 20),
    max_steps=st.one_of(st.just(-1), st.integers(1, 1000)),
    warmup=st.floats(0, 1, exclude_max=True),
    processes=st.integers(1, 8),
)
@examples(100)
def test_no_run_has_no_step_or_more_warm_up_than_steps(
    sequences: int, batch: int, accumulation: Any, epochs: float, max_steps: int, warmup: float, processes: int
) -> None:
    plan = schedule(sequences, Lengths(batch, accumulation, epochs, max_steps, warmup, processes))
    assert plan.total_steps >= 1
    assert plan.steps_per_epoch >= 1
    assert 0 <= plan.warmup_steps <= plan.total_steps
    assert max_steps < 0 or plan.total_steps == max_steps
    assert plan.effective_batch_size == batch * plan.gradient_accumulation_steps * processes
    assert (plan.steps_per_epoch - 1) * plan.effective_batch_size < sequences


def test_a_run_of_one_step_has_no_warm_up_and_steps_are_taken_as_given() -> None:
    assert schedule(2, Lengths(2, 1, num_train_epochs=1, max_steps=-1, warmup_steps=0.03)).warmup_steps == 0
    assert schedule(2, Lengths(2, 1, num_train_epochs=1, max_steps=-1, warmup_steps=7)).warmup_steps == 7


def test_packing_is_worth_it_only_where_a_hundred_steps_remain() -> None:
    lengths = Lengths(2, "auto", num_train_epochs=1, max_steps=-1, warmup_steps=0)
    assert is_worth_packing(800, lengths)
    assert not is_worth_packing(792, lengths)


@pytest.mark.parametrize(
    ("steps", "ratio", "expected"),
    [
        (1, 0.03, 0),
        (10, 0.03, 0),
        (20, 0.03, 1),
        (60, 0.03, 2),
        (7, 0.1, 1),
        (100, 0.1, 10),
        (620, 0.03, 19),
        (3, 0.99, 3),
    ],
)
def test_a_share_of_the_steps_is_rounded_to_whole_steps(steps: int, ratio: float, expected: int) -> None:
    lengths = Lengths(1, 1, num_train_epochs=1, max_steps=steps, warmup_steps=ratio)
    assert schedule(1000, lengths).warmup_steps == expected


@pytest.mark.parametrize(
    ("rows", "epochs", "steps"), [(10, 1.0, 5), (10, 1.5, 8), (10, 0.1, 1), (11, 1.0, 6), (1, 3.0, 3), (10, 2.5, 13)]
)
def test_parts_of_an_epoch_are_rounded_up_to_whole_steps(rows: int, epochs: float, steps: int) -> None:
    lengths = Lengths(2, 1, num_train_epochs=epochs, max_steps=-1, warmup_steps=0)
    assert schedule(rows, lengths).total_steps == steps


@pytest.mark.parametrize(("rows", "accumulation", "steps"), [(400, 4, 50), (392, 3, 66)])
def test_fifty_steps_are_enough_and_forty_nine_are_not(rows: int, accumulation: int, steps: int) -> None:
    plan = schedule(rows, Lengths(2, "auto", num_train_epochs=1, max_steps=-1, warmup_steps=0))
    assert (plan.gradient_accumulation_steps, plan.total_steps) == (accumulation, steps)


def test_one_warm_up_step_is_one_step_and_no_share() -> None:
    assert schedule(20, Lengths(2, 1, num_train_epochs=1, max_steps=-1, warmup_steps=1)).warmup_steps == 1


def test_what_a_process_computes_in_an_epoch_is_counted_in_its_own_batches() -> None:
    plan = schedule(101, Lengths(2, 4, num_train_epochs=1, max_steps=-1, warmup_steps=0, num_processes=3))
    assert (plan.sequences, plan.micro_batches, plan.steps_per_epoch) == (101, 17, 5)
