"""Trackers in a training: each hears what happens, and none can ask, print among results, or end the run."""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from functools import partial
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import get_reporting_integration_callbacks

from truetune.errors import first_line
from truetune.lint.private import without_secrets
from truetune.listener import Listener
from truetune.runs.directory import answers_file
from truetune.training.trackers.facts import RunFacts, Scores, answers_table
from truetune.training.trackers.mirrors import Mirror, mirror_of
from truetune.training.trackers.places import Situation, tracker_places


class GuardedTracker(TrainerCallback):
    """A tracker that may fail: the first failure is told, then the tracker is left alone and the run goes on.

    It hears what metrics.jsonl gets, and no more: what Trainer reckons of the whole run at its end counts padding and
    steps of its own. `conclude` or `abandon` ends it, behind the training.
    """

    def __init__(self, name: str, mirror: Mirror, listener: Listener, facts: RunFacts | None = None) -> None:
        self._name = name
        self._mirror: Mirror | None = mirror
        self._listener = listener
        self._facts = facts
        self._args: TrainingArguments | None = None
        self._end: Callable[[], Any] | None = None
        self._step = 0

    def on_init_end(self, *args: Any, **kwargs: Any) -> None:
        self._forward("on_init_end", *args, **kwargs)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: Any
    ) -> None:
        def begin(mirror: Mirror) -> None:
            self._args = mirror.prepare(args)
            mirror.callback.on_train_begin(self._args, state, control, **others)
            if self._facts:
                mirror.tell(self._facts)
            if place := dict(tracker_places(mirror.situation.run)).get(self._name):
                self._listener.say(f"{self._name}: {place}")

        if state.is_world_process_zero:
            self._guard(begin)

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self._forward("on_step_end", *args, **kwargs)

    def on_log(self, *args: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if logs and "train_runtime" not in logs:
            self._forward("on_log", *args, logs=logs, **kwargs)

    def on_evaluate(self, *args: Any, **kwargs: Any) -> None:
        self._forward("on_evaluate", *args, **kwargs)
        state: TrainerState = args[1]
        if state.is_world_process_zero and self._facts and self._facts.answers:
            file, most = answers_file(self._facts.answers, state.global_step), self._facts.rows
            if most and file.exists():
                self._guard(lambda mirror: mirror.answers(answers_table(file, most=most), state.global_step))

    def on_save(self, *args: Any, **kwargs: Any) -> None:
        self._forward("on_save", *args, **kwargs)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: Any
    ) -> None:
        """Put off: what was saved and verified is known later."""
        self._step = state.global_step
        if self._mirror:
            self._end = partial(self._mirror.callback.on_train_end, self._args or args, state, control, **others)

    def conclude(self, scores: Scores) -> None:
        """Tells what came of the run, and ends the tracker."""

        def end(mirror: Mirror) -> None:
            mirror.conclude(scores, self._step)
            if self._end:
                self._end()
            mirror.close(has_failed=False)

        if self._args is not None:
            self._guard(end)
        self._mirror = self._end = None

    def abandon(self) -> None:
        """Ends a tracker that was not concluded: the run has failed."""
        if self._args is not None:
            self._guard(lambda mirror: mirror.close(has_failed=True))
        self._mirror = self._end = None

    def _forward(self, event: str, args: TrainingArguments, *others: Any, **kwargs: Any) -> None:
        """Hands an event of the training on, with the arguments that the tracker was begun with."""
        self._guard(lambda mirror: getattr(mirror.callback, event)(self._args or args, *others, **kwargs))

    def _guard(self, work: Callable[[Mirror], Any]) -> None:
        if (mirror := self._mirror) is None:
            return
        try:
            with _unattended():
                work(mirror)
        except Exception as error:  # noqa: BLE001 - a tracker may raise anything, and none of it is worth a run
            self._mirror = None
            reason = without_secrets(first_line(error))
            self._listener.warn(f"{self._name} failed; from now on metrics go to metrics.jsonl only: {reason}")
            with suppress(Exception), _unattended():
                mirror.close(has_failed=True)


@contextmanager
def _unattended() -> Iterator[None]:
    """No client asks, since standard input is empty and no terminal; what it prints is not among results."""
    asked = sys.stdin
    with open(os.devnull, encoding="utf-8") as nothing, redirect_stdout(sys.stderr):
        sys.stdin = nothing
        try:
            yield
        finally:
            sys.stdin = asked


def guarded_trackers(
    names: Sequence[str], listener: Listener, situation: Situation, facts: RunFacts | None = None
) -> list[GuardedTracker]:
    """transformers' callbacks for these trackers, whose failures are warnings."""
    found: list[GuardedTracker] = []
    for name, callback in zip(names, get_reporting_integration_callbacks(list(names)), strict=True):
        try:
            found.append(GuardedTracker(name, mirror_of(name, callback(), situation), listener, facts))
        except Exception as error:  # noqa: BLE001 - whatever it raises as it starts, as in the run
            listener.warn(f"{name} cannot start; metrics go to metrics.jsonl only: {first_line(error)}")
    return found
