"""An optimizer step while its batches come in: what it sums up, and how it starts over."""

from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock
from typing import Any

import torch


@dataclass(frozen=True, slots=True)
class Counts:
    """Tokens of some steps: supervised, all, and predicted right, where the engine tells."""

    supervised: int = 0
    tokens: int = 0
    correct: int | None = None

    def plus(self, other: "Counts") -> "Counts":
        correct = None if other.correct is None else other.correct + (self.correct or 0)
        return Counts(self.supervised + other.supervised, self.tokens + other.tokens, correct)


class Step:
    """The batches of one optimizer step, and sums over them, which stay on the device: reading waits for it."""

    def __init__(self) -> None:
        self.batches: list[dict[str, Any]] = []
        self._sums: dict[str, torch.Tensor] = {}
        self._adding = Lock()
        self._restore_random = random_state()

    def begin(self, batch: dict[str, Any]) -> None:
        """A batch more; with the first one, the random state is kept."""
        if not self.batches:
            self._restore_random = random_state()
        self.batches.append(batch)

    def add(self, **values: torch.Tensor) -> None:
        """From any thread."""
        with self._adding:
            for name, value in values.items():
                self._sums[name] = self._sums[name] + value if name in self._sums else value

    def start_over(self) -> None:
        """Forgets the sums, and draws the same random numbers again; the batches are kept."""
        self._sums.clear()
        self._restore_random()

    def end(self) -> tuple[float, Counts]:
        """The step's loss and counts, read in one go; the next batch begins another step."""
        names = ("loss", "supervised", "tokens", "correct")
        there = [self._sums[name].detach().float() for name in names if name in self._sums]
        loss, *counts = torch.stack(there).tolist()
        self._sums.clear()
        self.batches.clear()
        return loss, Counts(*map(int, counts))


def random_state() -> Callable[[], None]:
    """A function that takes torch's random numbers back to where they are now."""
    on_cpu = torch.get_rng_state()
    on_gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []

    def restore() -> None:
        torch.set_rng_state(on_cpu)
        if on_gpus:
            torch.cuda.set_rng_state_all(on_gpus)

    return restore
