"""How much of a disk a run takes: estimated before it begins."""

import math
from typing import Literal

from truetune.planning.memory import Memory


def run_bytes(memory: Memory, *, checkpoints: int) -> int:
    """So many checkpoints, each of trained weights without gradients and the optimizer's numbers, and the weights."""
    weights = memory.trained // 2
    return checkpoints * (weights + memory.optimizer) + weights


def checkpoints_at_once(
    strategy: Literal["no", "steps", "epoch"],
    *,
    save_steps: float,
    limit: int | None,
    total_steps: int,
    steps_per_epoch: int,
) -> int:
    """The most checkpoints that lie on the disk: the next is written before the oldest is removed."""
    match strategy:
        case "no":
            saved = 1  # A signal writes one all the same.
        case "epoch":
            saved = math.ceil(total_steps / steps_per_epoch)
        case "steps":
            every = save_steps if save_steps >= 1 else math.ceil(total_steps * save_steps)
            saved = math.ceil(total_steps / every)
    return saved if limit is None else min(saved, limit + 1)
