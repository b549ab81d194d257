"""The trainer takes the steps, the warm-up and the rows that training/schedule.py announced."""

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import tiny_model
from tiny_runs import C1, ROWS, Trained, row
from truetune.data.examples import IGNORED
from truetune.data.packing import pack
from truetune.training.schedule import Lengths, schedule
from truetune.training.world import deal


def follow(folder: Path, rows: Any, lengths: Lengths) -> Trained:
    """A training after the plan for these lengths, which it must have kept to."""
    plan = schedule(len(rows), lengths)
    trained = Trained(
        folder,
        rows,
        num_train_epochs=lengths.num_train_epochs,
        max_steps=lengths.max_steps,
        per_device_train_batch_size=lengths.per_device_train_batch_size,
        gradient_accumulation_steps=plan.gradient_accumulation_steps,
        warmup_steps=plan.warmup_steps,
        learning_rate=1e-3,
    )
    assert trained.result.steps == trained.engine.state.max_steps == plan.total_steps
    rates = trained.logged("learning_rate")
    assert len(rates) == plan.total_steps
    for step, rate in enumerate(rates):
        rising = step / max(1, plan.warmup_steps)
        falling = (plan.total_steps - step) / max(1, plan.total_steps - plan.warmup_steps)
        assert rate == pytest.approx(1e-3 * (rising if step < plan.warmup_steps else falling))
    return trained


def test_g18_ten_copies_in_five_packs_take_six_steps_with_three_of_warm_up(tmp_path: Path) -> None:
    packs = pack([C1] * 10, max_length=64)
    assert [each.seq_lengths for each in packs] == [[25, 25]] * 5
    lengths = Lengths(2, 1, num_train_epochs=2, max_steps=-1, warmup_steps=0.5)
    plan = schedule(len(packs), lengths)
    assert (plan.steps_per_epoch, plan.total_steps, plan.warmup_steps) == (3, 6, 3)
    trained = follow(tmp_path, packs, lengths)
    rates = trained.logged("learning_rate")
    assert rates[0] < rates[1] < rates[2]
    assert all(later <= earlier for earlier, later in pairwise(rates[3:]))
    assert all(rate > 0 for rate in rates[1:])
    assert set(trained.engine.lr_scheduler.get_last_lr()) == {0.0}
    assert trained.lines[-1]["epoch"] == 2
    assert trained.result.tokens == 2 * 250
    assert trained.result.supervised_tokens == 2 * 30


def test_g18_unpacked_the_same_rows_take_ten_steps_with_five_of_warm_up(tmp_path: Path) -> None:
    lengths = Lengths(2, 1, num_train_epochs=2, max_steps=-1, warmup_steps=0.5)
    plan = schedule(10, lengths)
    assert (plan.total_steps, plan.warmup_steps) == (10, 5)
    assert follow(tmp_path, [C1] * 10, lengths).result.tokens == 2 * 250


@pytest.mark.parametrize("is_packed", [True, False])
def test_g18_max_steps_is_exact_packed_or_not(tmp_path: Path, is_packed: bool) -> None:
    rows: Any = pack([C1] * 10, max_length=64) if is_packed else [C1] * 10
    follow(tmp_path, rows, Lengths(2, 1, num_train_epochs=2, max_steps=4, warmup_steps=0.5))


@pytest.mark.parametrize(
    "lengths",
    [
        Lengths(2, 4, num_train_epochs=1, max_steps=-1, warmup_steps=0),
        Lengths(3, 2, num_train_epochs=1.5, max_steps=-1, warmup_steps=1),
        Lengths(1, 3, num_train_epochs=0.5, max_steps=-1, warmup_steps=0.34),
        Lengths(16, 4, num_train_epochs=3, max_steps=-1, warmup_steps=0.1),
        Lengths(2, "auto", num_train_epochs=1, max_steps=-1, warmup_steps=0.03),
        Lengths(4, 2, num_train_epochs=1, max_steps=5, warmup_steps=2),
        Lengths(2, 2, num_train_epochs=0.01, max_steps=-1, warmup_steps=0.03),
        Lengths(2, 4, num_train_epochs=2.5, max_steps=-1, warmup_steps=0.1),
        Lengths(16, 1, num_train_epochs=0.01, max_steps=-1, warmup_steps=0),
        Lengths(1, 4, num_train_epochs=3, max_steps=7, warmup_steps=0.3),
    ],
    ids=str,
)
def test_the_trainer_takes_the_planned_steps_at_the_planned_rates(tmp_path: Path, lengths: Lengths) -> None:
    follow(tmp_path, ROWS[:11], lengths)


SMALL_SETS = [
    Lengths(2, 4, num_train_epochs=3, max_steps=-1, warmup_steps=0.03),
    Lengths(2, "auto", num_train_epochs=1.5, max_steps=-1, warmup_steps=0.5),
    Lengths(1, 1, num_train_epochs=0.01, max_steps=-1, warmup_steps=0.03),
    Lengths(2, 2, num_train_epochs=1, max_steps=3, warmup_steps=1),
]


@pytest.mark.parametrize("lengths", SMALL_SETS, ids=str)
def test_one_row_is_trained_as_planned(tmp_path: Path, lengths: Lengths) -> None:
    trained = follow(tmp_path, ROWS[:1], lengths)
    assert trained.result.steps >= 1
    assert trained.result.tokens == trained.result.steps * len(ROWS[0].input_ids)


@pytest.mark.parametrize("lengths", SMALL_SETS, ids=str)
def test_packs_of_uneven_fill_are_trained_as_planned(tmp_path: Path, lengths: Lengths) -> None:
    packs = pack(ROWS[:7], max_length=120)
    assert len({len(each.seq_lengths) for each in packs}) > 1
    trained = follow(tmp_path, packs, lengths)
    if lengths.max_steps < 0 and lengths.num_train_epochs == 3:
        assert trained.result.tokens == 3 * sum(len(each.input_ids) for each in ROWS[:7])


def test_every_row_is_read_once_an_epoch_and_in_another_order(tmp_path: Path) -> None:
    rows = [row(f"q{number}", "a") for number in range(11)]
    trained = follow(tmp_path, rows, Lengths(2, 2, num_train_epochs=2, max_steps=-1, warmup_steps=0))
    read = trained.read()
    everything = sorted(tuple(each.input_ids) for each in rows)
    assert sorted(read[:11]) == sorted(read[11:]) == everything
    assert read[:11] != read[11:]


def test_another_seed_reads_the_rows_in_another_order_and_the_same_seed_in_the_same(tmp_path: Path) -> None:
    first, again, other = (Trained(tmp_path / str(n), ROWS, seed=seed).read() for n, seed in enumerate((7, 7, 8)))
    assert first == again
    assert sorted(first) == sorted(other)
    assert first != other


@pytest.mark.parametrize("is_packed", [False, True])
def test_the_last_incomplete_group_counts_with_its_own_tokens(tmp_path: Path, is_packed: bool) -> None:
    """Five sequences in groups of four: the fifth is a step by itself, and weighs as much as the four."""
    settings = {"optim": "sgd", "max_grad_norm": 0.0, "lr_scheduler_type": "constant", "learning_rate": 1e-2}
    rows: Any = pack(ROWS[:9], max_length=100) if is_packed else ROWS[:5]
    assert len(rows) == 5
    trained = Trained(tmp_path / "a", rows, per_device_train_batch_size=1, gradient_accumulation_steps=4, **settings)
    assert trained.result.steps == 2
    model = tiny_model()
    by_ids = {tuple(each.input_ids): each for each in rows}
    read = [by_ids[ids] for ids in trained.read()]
    for group in (read[:4], read[4:]):
        loss = torch.stack([_summed_loss(model, each) for each in group]).sum()
        supervised = sum(label != IGNORED for each in group for label in each.labels)
        gradients = torch.autograd.grad(loss / supervised, list(model.parameters()))
        with torch.no_grad():
            for value, gradient in zip(model.parameters(), gradients, strict=True):
                value -= 1e-2 * gradient
    for ours, plain in zip(trained.model.parameters(), model.parameters(), strict=True):
        assert torch.allclose(ours, plain, rtol=1e-5, atol=1e-7)


def _summed_loss(model: Any, sequence: Any) -> torch.Tensor:
    """The loss of all supervised tokens, each sample by itself."""
    ids, labels = torch.tensor(sequence.input_ids), torch.tensor(sequence.labels)
    lengths = getattr(sequence, "seq_lengths", [len(ids)])
    losses = [
        torch.nn.functional.cross_entropy(model(input_ids=each[None]).logits[0, :-1], its[1:], reduction="sum")
        for each, its in zip(ids.split(lengths), labels.split(lengths), strict=True)
    ]
    return torch.stack(losses).sum()


@pytest.mark.parametrize(("processes", "micro_batches", "steps"), [(1, 50, 17), (4, 13, 5)])
def test_g28_processes_share_the_micro_batches_that_the_plan_counts(
    processes: int, micro_batches: int, steps: int
) -> None:
    from torch.utils.data import BatchSampler, SequentialSampler

    batches = list(BatchSampler(SequentialSampler(range(100)), batch_size=2, drop_last=False))
    a_step = 3 * processes
    groups = [batches[first : first + a_step] for first in range(0, len(batches), a_step)]
    hands = [deal([len(batch) for batch in group], processes) for group in groups]
    largest = [max(map(len, hand)) for hand in hands]
    assert sum(largest) == micro_batches
    plan = schedule(100, Lengths(2, 3, num_train_epochs=1, max_steps=-1, warmup_steps=0, num_processes=processes))
    assert plan.total_steps == len(groups) == math.ceil(micro_batches / 3) == steps
    assert plan.micro_batches == micro_batches
    assert plan.effective_batch_size == 2 * 3 * processes
