"""How many steps a run has: the arithmetic that the plan prints and the trainer follows."""

import math
from dataclasses import dataclass
from typing import Literal

ACCUMULATION, FEWEST_STEPS, FEWEST_PACKED_STEPS = 4, 50, 100
"""The guide's accumulation; below these steps `auto` accumulates less, or does not pack."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """`effective_batch_size` = per-device batch × accumulation × processes, in sequences.

    `micro_batches` are what one process computes in an epoch.
    """

    sequences: int
    micro_batches: int
    gradient_accumulation_steps: int
    effective_batch_size: int
    steps_per_epoch: int
    total_steps: int
    warmup_steps: int


@dataclass(frozen=True, slots=True)
class Lengths:
    """What fixes a schedule besides the number of sequences."""

    per_device_train_batch_size: int
    gradient_accumulation_steps: int | Literal["auto"]
    num_train_epochs: float
    max_steps: int
    warmup_steps: float
    num_processes: int = 1


def schedule(sequences: int, lengths: Lengths) -> Schedule:
    """The run's steps for so many sequences (rows, or packs of rows).

    Accumulation `auto` starts from 4 and is lowered until the run has at least 50 steps, where its rows allow. The
    last group of an epoch may be smaller; it is a step like any other.
    """
    accumulation = _accumulation(sequences, lengths)
    per_epoch = _steps_per_epoch(sequences, lengths, accumulation)
    total = _total_steps(per_epoch, lengths)
    warmup = lengths.warmup_steps
    return Schedule(
        sequences=sequences,
        micro_batches=_micro_batches(sequences, lengths),
        gradient_accumulation_steps=accumulation,
        effective_batch_size=lengths.per_device_train_batch_size * accumulation * lengths.num_processes,
        steps_per_epoch=per_epoch,
        total_steps=total,
        # Rounded, where Trainer rounds up: the first warm-up step has a rate of 0, so a run of one learned nothing.
        warmup_steps=round(total * warmup) if warmup < 1 else int(warmup),
    )


def is_worth_packing(packs: int, lengths: Lengths) -> bool:
    """True if a run on so many packs still has at least 100 optimizer steps."""
    accumulation = lengths.gradient_accumulation_steps
    accumulation = ACCUMULATION if accumulation == "auto" else accumulation
    return _total_steps(_steps_per_epoch(packs, lengths, accumulation), lengths) >= FEWEST_PACKED_STEPS


def _accumulation(sequences: int, lengths: Lengths) -> int:
    if lengths.gradient_accumulation_steps != "auto":
        return lengths.gradient_accumulation_steps
    for accumulation in range(ACCUMULATION, 1, -1):
        if _total_steps(_steps_per_epoch(sequences, lengths, accumulation), lengths) >= FEWEST_STEPS:
            return accumulation
    return 1


def _micro_batches(sequences: int, lengths: Lengths) -> int:
    return math.ceil(sequences / (lengths.per_device_train_batch_size * lengths.num_processes))


def _steps_per_epoch(sequences: int, lengths: Lengths, accumulation: int) -> int:
    return max(1, math.ceil(_micro_batches(sequences, lengths) / accumulation))


def _total_steps(per_epoch: int, lengths: Lengths) -> int:
    return lengths.max_steps if lengths.max_steps > 0 else math.ceil(lengths.num_train_epochs * per_epoch)
