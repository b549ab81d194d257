"""Long work as it is seen: a live view on a terminal, plain lines elsewhere."""

import math
import os
import time
from collections.abc import Callable

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from truetune.console.output import error_console, is_first_process
from truetune.console.training_view import TrainingView
from truetune.figures import duration
from truetune.listener import StepEvent

_SECONDS_BETWEEN_LINES = 10.0
_A_SECOND = 2
"""Times that a terminal is drawn anew."""


class ConsoleListener:
    """Shows a run on stderr, or on the console that is given: live on a terminal, in files and CI as plain lines."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or error_console()
        self._console.quiet = not is_first_process()
        self._wraps = is_live(self._console)
        self._work: _View | PlainLines = (
            _View(self._console, shows_prints=console is None) if self._wraps else PlainLines(self._say_plain)
        )

    def say(self, message: str) -> None:
        self._print(escape(message))

    def warn(self, message: str) -> None:
        self._print(f"[yellow]warning:[/] {escape(message)}")

    def progress(self, stage: str, done: int, total: int | None) -> None:
        self._work.progress(stage, done, total)

    def step(self, event: StepEvent) -> None:
        self._work.step(event)

    def close(self) -> None:
        """Takes unfinished bars off the screen."""
        self._work.close()

    def _say_plain(self, line: str) -> None:
        self._print(escape(line))

    def _print(self, line: str) -> None:
        # A terminal breaks lines between words; a file has each of them whole.
        self._console.print(line, soft_wrap=not self._wraps)


def is_live(console: Console) -> bool:
    """True where what was written can be written over, and somebody looks: no file, no CI."""
    return console.is_terminal and not console.is_dumb_terminal and not os.environ.get("CI")


class PlainLines:
    """Work in lines, `seconds` apart at least, and with each evaluation and the last step."""

    def __init__(self, write: Callable[[str], None], *, seconds: float = _SECONDS_BETWEEN_LINES) -> None:
        self._write = write
        self._seconds = seconds
        self._last_line = -math.inf
        self._rates = _Rates()
        self._evaluated: int | None = None

    def progress(self, stage: str, done: int, total: int | None) -> None:
        rate = self._rates.of(stage, done, total)
        if done != total and self._is_time():
            self._write(f"{stage}: {done:,}{f' of {total:,}' if total else ''} {rate}".rstrip())

    def step(self, event: StepEvent) -> None:
        if event.eval_loss is not None and event.eval_step != self._evaluated:
            self._evaluated = event.eval_step
            self._write(f"step {event.eval_step}: validation loss {event.eval_loss:.4f}")
        if event.step >= event.total_steps or self._is_time():
            self._write(_line(event))

    def close(self) -> None:
        """Nothing: every line is written as it comes."""

    def _is_time(self) -> bool:
        now = time.monotonic()
        if now - self._last_line < self._seconds:
            return False
        self._last_line = now
        return True


class _Rates:
    """How fast each stage goes."""

    def __init__(self) -> None:
        self._since: dict[str, float] = {}

    def of(self, stage: str, done: int, total: int | None) -> str:
        """Units a second, once that can be told; the stage ends with done == total."""
        seconds = time.monotonic() - self._since.setdefault(stage, time.monotonic())
        if done == total:
            del self._since[stage]
        return _rate(done / seconds) if seconds > 0.5 else ""


def _rate(a_second: float) -> str:
    return f"{a_second:,.0f}/s" if a_second >= 10 else f"{a_second:.2g}/s"


def _line(event: StepEvent) -> str:
    line = f"step {event.step} of {event.total_steps}: loss {event.loss:.4f}"
    if math.isfinite(event.tokens_per_second):
        line += f"  {event.tokens_per_second:,.0f} tokens/s"
        line += f"  {duration(event.seconds_left)} left" if event.seconds_left else ""
    return line


class _View:
    """Bars of what goes on, and the training; on the screen only while there is something to see.

    `shows_prints`: what is printed meanwhile is shown above; else it has somewhere else to go.
    """

    def __init__(self, console: Console, *, shows_prints: bool) -> None:
        self._console = console
        self._shows_prints = shows_prints
        self._live: Live | None = None
        self._training: TrainingView | None = None
        self._rates = _Rates()
        self._tasks: dict[str, TaskID] = {}
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            console=console,
        )

    def progress(self, stage: str, done: int, total: int | None) -> None:
        rate = self._rates.of(stage, done, total)
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
            prints = self._shows_prints
            self._live = Live(
                self,
                console=self._console,
                refresh_per_second=_A_SECOND,
                redirect_stdout=prints,
                redirect_stderr=prints,
            )
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
