"""What a run takes of a disk."""

import pytest

from truetune.planning.disk import checkpoints_at_once, run_bytes
from truetune.planning.memory import Memory

FULL = Memory(
    weights=100, adapters=0, gradients=100, casts=50, optimizer=200, activations=1_000, logits=1_000, backward=1_000
)
LORA = Memory(
    weights=100, adapters=7, gradients=7, casts=0, optimizer=14, activations=1_000, logits=1_000, backward=1_000
)


def test_a_checkpoint_has_what_learns_and_the_optimizer_and_no_frozen_weight() -> None:
    assert run_bytes(LORA, checkpoints=1) == (7 + 14) + 7
    assert run_bytes(FULL, checkpoints=1) == (100 + 200) + 100
    assert run_bytes(LORA, checkpoints=4) - run_bytes(LORA, checkpoints=3) == 7 + 14


@pytest.mark.parametrize(
    ("saved", "limit", "at_once"),
    [(10, 3, 4), (3, 3, 3), (4, 3, 4), (10, None, 10), (0, 3, 1), (0, None, 1), (10, 1, 2)],
)
def test_the_next_checkpoint_is_written_before_the_oldest_goes_and_a_signal_writes_one(
    saved: int, limit: int | None, at_once: int
) -> None:
    assert checkpoints_at_once(saved, limit=limit) == at_once
