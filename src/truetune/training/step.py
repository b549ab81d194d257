"""An optimizer step while its batches come in: what it sums up, and how it starts over."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from threading import Lock
from typing import Any

import torch

_SUMS = ("loss", "supervised", "tokens", "correct")


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
        self.batches: dict[int, dict[str, Any]] = {}
        self._sums: dict[str, torch.Tensor] = {}
        self._adding = Lock()
        self._restore_random = random_state()

    def begin(self, batch: dict[str, Any], place: int) -> None:
        """A batch more, by its place in the step; with the first one, the random state is kept."""
        if not self.batches:
            self._restore_random = random_state()
        self.batches[place] = batch

    def add(self, **values: torch.Tensor) -> None:
        """From any thread."""
        with self._adding:
            for name, value in values.items():
                self._sums[name] = self._sums[name] + value if name in self._sums else value

    @contextmanager
    def left_out(self) -> Iterator[None]:
        """What is added in here does not count."""
        kept = dict(self._sums)
        try:
            yield
        finally:
            self._sums = kept

    def start_over(self) -> None:
        """Forgets the sums, and draws the same random numbers again; the batches are kept."""
        self._sums.clear()
        self._restore_random()

    def share(
        self, add_up: Callable[[torch.Tensor], torch.Tensor], *, with_correct: bool, device: Any
    ) -> torch.Tensor:
        """The sums become those of all processes; returns the loss. A process that had no batch adds nothing."""
        names = _SUMS if with_correct else _SUMS[:-1]
        nothing = torch.zeros((), device=device)
        own = torch.stack([self._sums.get(name, nothing).detach().double() for name in names])
        self._sums = dict(zip(names, add_up(own), strict=True))
        return self._sums["loss"].float()

    def end(self) -> tuple[float, Counts]:
        """The step's loss and counts, read in one go; the next batch begins another step."""
        there = [self._sums[name].detach().float() for name in _SUMS if name in self._sums]
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


def seed_of(*numbers: int) -> int:
    """A seed for these numbers, as different from that of their neighbours as any."""
    return int.from_bytes(blake2b(repr(numbers).encode(), digest_size=8).digest())
