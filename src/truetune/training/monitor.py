"""Trainer callbacks: metrics to a file, steps to a listener, signals and diverged losses to an orderly end."""

import math
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from truetune.errors import BackendError
from truetune.listener import Listener, StepEvent

NON_FINITE_LIMIT = 3


class MetricsCallback(TrainerCallback):
    """Hands every logged line, with its step, to `write`; the first and the last step are always logged."""

    def __init__(self, write: Callable[[dict[str, Any]], None]) -> None:
        self._write = write

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        if state.global_step >= state.max_steps:
            control.should_log = True
            control.should_evaluate |= args.eval_strategy == "steps"
        return control

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        if state.is_world_process_zero and logs and "train_runtime" not in logs:
            self._write({"step": state.global_step, **{name: _finite(value) for name, value in logs.items()}})


class SignalCallback(TrainerCallback):
    """SIGINT and SIGTERM finish the step, write a checkpoint and stop; a second one stops at once."""

    def __init__(self) -> None:
        self.received: str | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "SignalCallback":
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self._before[number] = signal.signal(number, self._handle)
            except ValueError:
                # Not the main thread: signals stay with whoever embeds us.
                return self
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _: FrameType | None) -> None:
        self.received = signal.Signals(number).name
        self.__exit__()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        if self.received:
            control.should_save = control.should_training_stop = True
        return control


class NonFiniteGuard:
    """Stops a run whose loss or gradient norm is not a number in three steps in a row."""

    def __init__(self) -> None:
        self._bad = 0

    def check(
        self, *, step: int, loss: float, grad_norm: float | None, newest_checkpoint: Callable[[], Path | None]
    ) -> None:
        """Counts the step; raises BackendError at the third bad one in a row."""
        is_bad = not math.isfinite(loss) or not math.isfinite(grad_norm or 0.0)
        self._bad = self._bad + 1 if is_bad else 0
        if self._bad < NON_FINITE_LIMIT:
            return
        raise BackendError(
            f"training diverged: non-finite loss ({loss}) or gradient norm ({grad_norm}) in {NON_FINITE_LIMIT} steps "
            f"in a row, the last of them step {step}; last good checkpoint: {newest_checkpoint() or 'none'}",
            hint="lower training.learning_rate; training.precision=fp32 shows whether precision is the cause",
        )


class Stopwatch:
    """Tokens and seconds of training steps; the first step, which warms caches up, is left out of the rate."""

    def __init__(self) -> None:
        self.tokens = 0
        self._timed_tokens = 0
        self._timed_seconds = 0.0
        self._started: float | None = None
        self._steps = 0

    def begin(self) -> None:
        self._started = time.perf_counter() if self._started is None else self._started

    def end(self, tokens: int) -> None:
        """Ends the step that `begin` opened."""
        seconds = time.perf_counter() - (self._started or time.perf_counter())
        self._started = None
        self.tokens += tokens
        self._steps += 1
        if self._steps > 1:
            self._timed_tokens += tokens
            self._timed_seconds += seconds

    @property
    def tokens_per_second(self) -> float | None:
        return self._timed_tokens / self._timed_seconds if self._timed_seconds else None

    def seconds_left(self, steps: int) -> float:
        """An estimate for so many further steps."""
        return steps * self._timed_seconds / (self._steps - 1) if self._steps > 1 else math.nan


def tell_step(listener: Listener, state: TrainerState, loss: float, watch: Stopwatch) -> None:
    """Tells the listener of the step just done."""
    listener.step(
        StepEvent(
            step=state.global_step,
            total_steps=state.max_steps,
            epoch=float(state.epoch or 0.0),
            loss=loss,
            tokens_per_second=watch.tokens_per_second or math.nan,
            seconds_left=watch.seconds_left(state.max_steps - state.global_step),
        )
    )


def _finite(value: Any) -> Any:
    """JSON has no NaN: a value that is none is null, never 0."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
