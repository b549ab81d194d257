"""Long work as it is seen: a live view on a terminal, plain lines elsewhere."""

import math
import os
import time

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from truetune.console.output import duration, error_console, is_first_process
from truetune.console.training_view import TrainingView
from truetune.listener import StepEvent

_SECONDS_BETWEEN_LINES = 10.0
_A_SECOND = 2
"""Times that a terminal is drawn anew."""


class ConsoleListener:
    """Shows a run on stderr: a live view on a terminal; in files and CI plain lines, at least ten seconds apart."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or error_console()
        self._console.quiet = not is_first_process()
        self._is_live = is_live(self._console)
        self._view = _View(self._console)
        self._last_line = 0.0
        self._since: dict[str, float] = {}
        self._evaluated: int | None = None

    def say(self, message: str) -> None:
        self._console.print(escape(message))

    def warn(self, message: str) -> None:
        self._console.print(f"[yellow]warning:[/] {escape(message)}")

    def progress(self, stage: str, done: int, total: int | None) -> None:
        is_over = done == total
        seconds = time.monotonic() - self._since.setdefault(stage, time.monotonic())
        rate = _rate(done / seconds) if seconds > 0.5 else ""
        if is_over:
            del self._since[stage]
        if self._is_live:
            self._view.progress(stage, done, total, rate)
        elif self._is_time() and not is_over:
            self._console.print(f"{stage}: {done:,}{f' of {total:,}' if total else ''} {rate}".rstrip())

    def step(self, event: StepEvent) -> None:
        if self._is_live:
            self._view.step(event)
            return
        if event.eval_loss is not None and event.eval_step != self._evaluated:
            self._evaluated = event.eval_step
            self._console.print(f"step {event.eval_step}: validation loss {event.eval_loss:.4f}")
        if event.step >= event.total_steps or self._is_time():
            self._console.print(_line(event))

    def close(self) -> None:
        """Takes unfinished bars off the screen."""
        self._view.close()

    def _is_time(self) -> bool:
        now = time.monotonic()
        if now - self._last_line < _SECONDS_BETWEEN_LINES:
            return False
        self._last_line = now
        return True


def is_live(console: Console) -> bool:
    """True where what was written can be written over, and somebody looks: no file, no CI."""
    return console.is_terminal and not console.is_dumb_terminal and not os.environ.get("CI")


def _rate(a_second: float) -> str:
    return f"{a_second:,.0f}/s" if a_second >= 10 else f"{a_second:.2g}/s"


def _line(event: StepEvent) -> str:
    line = f"step {event.step} of {event.total_steps}: loss {event.loss:.4f}"
    if math.isfinite(event.tokens_per_second):
        line += f"  {event.tokens_per_second:,.0f} tokens/s  {duration(event.seconds_left)} left"
    return line


class _View:
    """Bars of what goes on, and the training; on the screen only while there is something to see."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live: Live | None = None
        self._training: TrainingView | None = None
        self._tasks: dict[str, TaskID] = {}
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            console=console,
        )

    def progress(self, stage: str, done: int, total: int | None, rate: str) -> None:
        if stage not in self._tasks:
            self._tasks[stage] = self._bars.add_task(stage, total=total, rate=rate)
        self._bars.update(self._tasks[stage], completed=done, total=total, rate=rate)
        self._show()
        if done == total:
            self._bars.remove_task(self._tasks.pop(stage))
            self._hide_if_done()

    def step(self, event: StepEvent) -> None:
        self._training = self._training or TrainingView()
        self._training.take(event)
        self._show()
        if event.step >= event.total_steps:
            # Its last state stays on the screen; what comes now is drawn below.
            self.close()

    def close(self) -> None:
        for task in self._tasks.values():
            self._bars.remove_task(task)
        self._tasks = {}
        self._stop()
        self._training = None

    def _show(self) -> None:
        if self._live is None:
            self._live = Live(self, console=self._console, refresh_per_second=_A_SECOND)
            self._live.start()

    def _hide_if_done(self) -> None:
        if not self._tasks and self._training is None:
            self._stop()

    def _stop(self) -> None:
        if self._live is not None:
            self._live.stop()
        self._live = None

    def __rich__(self) -> Group:
        bars = [self._bars] if self._tasks else []
        return Group(*bars, *([self._training] if self._training else []))
