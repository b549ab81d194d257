"""How much of a disk a run takes: estimated before it begins."""

from truetune.planning.memory import Memory


def run_bytes(memory: Memory, *, checkpoints: int) -> int:
    """So many checkpoints, each of trained weights without gradients and the optimizer's numbers, and the weights."""
    return checkpoints * (memory.trained + memory.optimizer) + memory.trained


def checkpoints_at_once(saved: int, *, limit: int | None) -> int:
    """The most of the checkpoints saved that lie on the disk: the next is written before the oldest is removed.

    One at least: a signal writes one, whatever the strategy.
    """
    return max(1, saved if limit is None else min(saved, limit + 1))
