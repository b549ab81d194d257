"""Who hears what happens in long work: the library tells a Listener, and only console/ prints."""

import logging
from dataclasses import dataclass
from typing import Protocol

logger = logging.getLogger("truetune")


@dataclass(frozen=True, slots=True)
class StepEvent:
    """One optimizer step done. `loss` is the mean over the step's supervised tokens, `seconds_left` an estimate.

    `learning_rate` is the one the step was taken at, `memory_bytes` what the process holds (on CUDA, the allocator).
    `eval_loss` is that of the newest evaluation, at `eval_step`; `next_checkpoint` the step that will be saved next.
    """

    step: int
    total_steps: int
    epoch: float
    loss: float
    tokens_per_second: float
    seconds_left: float
    learning_rate: float | None = None
    memory_bytes: int | None = None
    eval_loss: float | None = None
    eval_step: int | None = None
    next_checkpoint: int | None = None


class Listener(Protocol):
    """What a front end implements to show a run."""

    def say(self, message: str) -> None:
        """Something worth a line."""

    def warn(self, message: str) -> None:
        """Something that may differ from what was asked."""

    def progress(self, stage: str, done: int, total: int | None) -> None:
        """`done` of `total` units (rows, prompts, batches) of a stage; the stage ends with done == total."""

    def step(self, event: StepEvent) -> None:
        """A training step ended."""


class LogListener:
    """The library's default: everything goes to the `truetune` logger."""

    def say(self, message: str) -> None:
        logger.info(message)

    def warn(self, message: str) -> None:
        logger.warning(message)

    def progress(self, stage: str, done: int, total: int | None) -> None:
        if done == total:
            logger.info("%s: %s done", stage, done)

    def step(self, event: StepEvent) -> None:
        logger.debug("step %s/%s: loss %.4f", event.step, event.total_steps, event.loss)


class Unheard:
    """For a process whose work another one tells of."""

    def say(self, message: str) -> None:
        """Nothing."""

    def warn(self, message: str) -> None:
        """Nothing."""

    def progress(self, stage: str, done: int, total: int | None) -> None:
        """Nothing."""

    def step(self, event: StepEvent) -> None:
        """Nothing."""
