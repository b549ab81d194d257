"""A sign of life from each process: nobody waits for ever for one that is halted, or whose machine has gone.

A process that dies is noticed by its closed connections, and one that fails tells so. One that is stopped, or whose
machine has lost its network, does neither.
"""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from threading import Event, Thread
from typing import Any

_BEAT = 5.0
"""Seconds between two signs of life."""

_PATIENCE = 24
"""Beats without a sign, which are counted in this process: while it is halted itself it accuses nobody."""

_GRACE = 20.0
"""Seconds for the main thread to tell what has happened, before the process is ended under it."""


@contextmanager
def pulse(store: Any, *, rank: int, size: int, lost: Callable[[str], None]) -> Iterator[None]:
    """Gives signs of life while it lasts, and listens for the others': the first process for all, they for the first.

    `lost` is called, in a thread, with what is to be told of a process that gives none. Where the main thread has not
    left the block soon behind that, since it waits in a library for what will not come, the process ends.
    """
    heart = _Heart(store.clone(), rank, [*range(1, size)] if rank == 0 else [0], lost)
    threads = [Thread(target=work, daemon=True) for work in (heart.beat, heart.watch)]
    for each in threads:
        each.start()
    try:
        yield
    finally:
        heart.over.set()


@dataclass
class _Heart:
    """`store` is a connection of its own: the main thread's may be waiting."""

    store: Any
    rank: int
    others: list[int]
    lost: Callable[[str], None]
    over: Event = field(default_factory=Event)
    _beats: int = 0
    _heard: dict[int, int] = field(default_factory=dict)
    _silent: dict[int, int] = field(default_factory=dict)

    def beat(self) -> None:
        while not self.over.wait(_BEAT):
            with suppress(RuntimeError):  # A store that is gone is noticed by whoever asks it.
                self.store.add(_key(self.rank), 1)
                self._beats += 1
                if (other := self._silent_one()) is not None:
                    self._give_up(f"process {other} has given no sign of life for {_said()}")
                    return

    def _silent_one(self) -> int | None:
        """The first of the others that has given no sign for too long."""
        for other in self.others:
            heard = self.store.add(_key(other), 0)
            self._silent[other] = 0 if heard != self._heard.get(other) else self._silent[other] + 1
            self._heard[other] = heard
        return next((other for other, silent in self._silent.items() if silent > _PATIENCE), None)

    def watch(self) -> None:
        """Looks after `beat`, which a store that does not answer keeps waiting."""
        before, silent = 0, 0
        while not self.over.wait(_BEAT):
            silent = 0 if self._beats != before else silent + 1
            before = self._beats
            if silent > _PATIENCE:
                self._give_up(f"the first process, or its machine, has not answered for {_said()}")
                return

    def _give_up(self, reason: str) -> None:
        Thread(target=self.lost, args=(reason,), daemon=True).start()  # The store may keep that waiting, too.
        if not self.over.wait(_GRACE):
            logging.getLogger(__name__).critical("process %d ends: %s; go on with --resume", self.rank, reason)
            os._exit(1)


def _key(rank: int) -> str:
    return f"pulse/{rank}"


def _said() -> str:
    return f"{_BEAT * _PATIENCE:.0f} seconds"
