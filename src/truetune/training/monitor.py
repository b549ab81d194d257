"""Trainer callbacks: metrics to a file, steps to a listener, signals and diverged losses to an orderly end."""

import math
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

from transformers import EarlyStoppingCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import SaveStrategy

from truetune.errors import BackendError
from truetune.listener import Listener, StepEvent
from truetune.model.hardware import used_memory
from truetune.runs.checkpoints import metrics_line
from truetune.training.signals import heard_by
from truetune.training.world import World

NON_FINITE_LIMIT = 3

_DECISIONS = ("should_training_stop", "should_epoch_stop", "should_save", "should_evaluate", "should_log")


class MetricsCallback(TrainerCallback):
    """Hands every logged line, with its step, to `write`.

    Logged are, besides the rhythm asked for, the first and the last step and each one that is evaluated or saved: a
    resumed run then has the lines of an uninterrupted one.
    """

    def __init__(self, write: Callable[[dict[str, Any]], None]) -> None:
        self._write = write

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Has Trainer make up for an evaluation that came behind the checkpoint which a run goes on from.

        A checkpoint of an epoch's last step is saved within that step, and the epoch is evaluated behind it.
        """
        if args.eval_strategy == "epoch" and lacks_evaluation(state):
            args.eval_on_start = True

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        if state.global_step >= state.max_steps:
            control.should_log = True
            control.should_evaluate |= args.eval_strategy == "steps"
        control.should_log |= control.should_evaluate or control.should_save
        return control

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        control.should_log |= control.should_evaluate or control.should_save
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
            self._write(metrics_line(state.global_step, logs))


def lacks_evaluation(state: TrainerState) -> bool:
    """True at the end of an epoch, or of the run, if nothing was evaluated there."""
    is_end = state.global_step >= state.max_steps or float(state.epoch or 0.0).is_integer()
    evaluated = {line["step"] for line in state.log_history if "eval_loss" in line}
    return state.global_step > 0 and is_end and state.global_step not in evaluated


class SignalCallback(TrainerCallback):
    """A signal to stop finishes the step, writes a checkpoint and ends the run; a second one ends it at once."""

    def __init__(self) -> None:
        self.received: str | None = None
        self._hearing = ExitStack()

    def __enter__(self) -> Self:
        self._hearing.enter_context(heard_by(self._handle))
        return self

    def __exit__(self, *_: object) -> None:
        self._hearing.close()

    def _handle(self, number: int, _: object) -> None:
        self.received = signal.Signals(number).name
        self._hearing.close()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        if self.received:
            control.should_log = control.should_save = control.should_training_stop = True
        return control

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        """A run that stops within an epoch has saved already, and nobody who stops it waits for an evaluation."""
        if self.received and control.should_training_stop:
            control.should_save = control.should_evaluate = False
        return control


def agree(world: World, control: TrainerControl, callbacks: Sequence[TrainerCallback]) -> None:
    """What any process decides at a step's end, all do: a signal may reach one of them before the others."""
    if world.size == 1:
        return
    signals = next((each for each in callbacks if isinstance(each, SignalCallback)), None)
    received = signal.Signals[signals.received] if signals and signals.received else 0
    *decided, number = world.most([*(float(getattr(control, name)) for name in _DECISIONS), float(received)])
    for name, is_so in zip(_DECISIONS, decided, strict=True):
        setattr(control, name, bool(is_so))
    if signals and number:
        signals.received = signal.Signals(int(number)).name


class EarlyStopping(EarlyStoppingCallback):
    """transformers' own, which would begin to count anew in a resumed run."""

    @property
    def is_over(self) -> bool:
        """True if the run was to stop at its last evaluation."""
        return bool(self.early_stopping_patience_counter >= self.early_stopping_patience)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: Any
    ) -> None:
        super().on_train_begin(args, state, control, **others)
        saved: Any = state.stateful_callbacks.get(type(self).__name__)
        if saved:
            self.early_stopping_patience_counter = saved["attributes"]["early_stopping_patience_counter"]


class NonFiniteGuard:
    """Stops a run whose loss or gradient norm is not a number in three steps in a row."""

    def __init__(self) -> None:
        self._bad = 0

    @property
    def is_alarmed(self) -> bool:
        """True while the newest step was a bad one: the weights it left may be lost."""
        return self._bad > 0

    def check(
        self,
        *,
        step: int,
        loss: float,
        grad_norm: float | None,
        newest_checkpoint: Callable[[], Path | None],
        damaged: Callable[[], str | None] = lambda: None,
    ) -> None:
        """Counts the step; raises BackendError at the third bad one in a row, naming a weight that was `damaged`."""
        is_bad = not math.isfinite(loss) or not math.isfinite(grad_norm or 0.0)
        self._bad = self._bad + 1 if is_bad else 0
        if self._bad < NON_FINITE_LIMIT:
            return
        if (name := damaged()) is not None:
            raise BackendError(
                f"the base model's weight {name} holds values that are not finite, and so do all losses",
                hint="its files are damaged, or its precision is too narrow: load it again, or set model.dtype",
            )
        raise BackendError(
            f"training diverged: non-finite loss ({loss}) or gradient norm ({grad_norm}) in {NON_FINITE_LIMIT} steps "
            f"in a row, the last of them step {step}; last good checkpoint: {newest_checkpoint() or 'none'}",
            hint="lower training.learning_rate; training.precision=fp32 shows whether precision is the cause",
        )


def damaged_weight(model: Any) -> str | None:
    """The name of a weight that does not learn and yet holds values that are not finite."""
    frozen = ((name, each) for name, each in model.named_parameters() if not each.requires_grad)
    return next((name for name, each in frozen if each.is_floating_point() and not each.isfinite().all()), None)


class Stopwatch:
    """Tokens and seconds of training steps; the first step, which warms caches up, is left out of the rate."""

    def __init__(self) -> None:
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


class NewestEvaluation:
    """The last evaluation in a history that grows: each of its lines is looked at once, however long the run is."""

    def __init__(self) -> None:
        self._seen = 0
        self._line: Mapping[str, Any] = {}

    def of(self, history: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
        """Its line; an empty one where there was none yet."""
        evaluated = [line for line in history[self._seen :] if "eval_loss" in line]
        self._seen, self._line = len(history), evaluated[-1] if evaluated else self._line
        return self._line


def tell_step(
    listener: Listener,
    state: TrainerState,
    loss: float,
    watch: Stopwatch,
    *,
    args: TrainingArguments,
    evaluated: Mapping[str, Any],
    learning_rate: float | None,
) -> None:
    """Tells the listener of the step just done; `evaluated` is the line of the newest evaluation."""
    listener.step(
        StepEvent(
            step=state.global_step,
            total_steps=state.max_steps,
            epoch=float(state.epoch or 0.0),
            loss=loss,
            tokens_per_second=watch.tokens_per_second or math.nan,
            seconds_left=watch.seconds_left(state.max_steps - state.global_step),
            learning_rate=learning_rate,
            memory_bytes=used_memory(args.device.type),
            eval_loss=evaluated.get("eval_loss"),
            eval_step=evaluated.get("step"),
            next_checkpoint=next_checkpoint(state, args),
        )
    )


def next_checkpoint(state: TrainerState, args: TrainingArguments) -> int | None:
    """The step behind this one that will be saved; None where the run saves none, or is at its end."""
    step, last = int(state.global_step), int(state.max_steps)
    if step >= last:
        return None
    match args.save_strategy:
        case SaveStrategy.STEPS:
            return min(last, (step // int(state.save_steps) + 1) * int(state.save_steps))
        case SaveStrategy.EPOCH if state.epoch:
            epoch = float(state.epoch)
            return min(last, round((math.floor(epoch + 1e-6) + 1) * step / epoch))
        case _:
            return None
