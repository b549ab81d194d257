"""Whether compiling a model's layers pays for its own time within the run."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from truetune.planning.hyperparameters import Choice
from truetune.planning.timing import cpu_rate

_SAVES, _TAKES = 0.1, 40.0
"""What compiled layers save of a training's time, and the seconds that compiling takes: measured on two cores, with
a spread from nothing to 0.3."""

_LEAST = 2 * _TAKES / _SAVES
"""Seconds of training from which on compiling gains twice its own time."""


@dataclass(frozen=True, slots=True)
class LongRun:
    """What the choice hangs on: a training on so many `tokens`, padding aside, and what it is computed on and with.

    `lacks` says what torch lacks here to compile; None if nothing.
    """

    tokens: int
    parameters: int
    are_adapters: bool
    device: Literal["cpu", "cuda", "mps"]
    precision: Literal["fp32", "bf16", "fp16"]
    threads: int
    backend: str
    is_quantized: bool
    drops_out: bool
    checkpoints: bool
    num_processes: int
    lacks: str | None

    @property
    def seconds(self) -> float:
        """Of training, roughly: 4 operations a weight and token where it is frozen, 6 where it learns."""
        operations = self.tokens * self.parameters * (4 if self.are_adapters else 6)
        return operations / cpu_rate(self.precision, self.threads)


def compilation(run: LongRun) -> Choice:
    """True where it saves the run more than it takes. Nothing is measured: the same run has the same choice."""
    name = "training.torch_compile"
    if against := next(_against(run), None):
        return Choice(name, False, against)
    minutes = f"about {run.seconds / 60:,.0f} minutes" if run.seconds >= 90 else "a minute or less"
    length = f"{minutes} of training by a rough estimate"
    if run.seconds < _LEAST:
        return Choice(name, False, f"{length}: too short to gain from it")
    return Choice(name, True, f"{length}: compiling takes {_TAKES:.0f} seconds and saves {_SAVES:.0%}")


def _against(run: LongRun) -> Iterator[str]:
    if run.backend != "trl":
        yield f"{run.backend} compiles by itself"
    if run.device != "cpu":
        yield f"what it gains on {run.device} is not measured yet"
    if run.num_processes > 1:
        yield "several processes are running"
    if run.is_quantized:
        yield "quantised layers cannot be compiled whole"
    if run.drops_out:
        yield "compiled layers would draw another dropout"
    if run.checkpoints:
        yield "with gradient checkpointing its gain is not measured yet"
    if run.are_adapters and run.threads > 1:
        yield "an adapter's slices can be computed side by side, where compiled layers gain nothing more"
    if run.lacks:
        yield run.lacks
