"""A command that trains: its words on the terminal and in the run's log, the libraries' in the log alone."""

import io
import os
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from typing import TextIO

from truetune.console.listener import ConsoleListener, PlainLines
from truetune.console.output import error_console
from truetune.listener import StepEvent
from truetune.runs.captured import captured
from truetune.runs.log import RunLog

_SECONDS_BETWEEN_STEPS = 60.0
"""Of the log, which metrics.jsonl lies beside."""


class LoggedListener:
    """A listener of the terminal whose words are kept too."""

    def __init__(self, console: ConsoleListener, log: RunLog) -> None:
        self._console = console
        self._log = log
        self._lines = PlainLines(log.say, seconds=_SECONDS_BETWEEN_STEPS)

    def say(self, message: str) -> None:
        self._log.say(message)
        self._console.say(message)

    def warn(self, message: str) -> None:
        self._log.say(f"warning: {message}")
        self._console.warn(message)

    def progress(self, stage: str, done: int, total: int | None) -> None:
        self._lines.progress(stage, done, total)
        self._console.progress(stage, done, total)

    def step(self, event: StepEvent) -> None:
        self._lines.step(event)
        self._console.step(event)


@contextmanager
def logged() -> Iterator[tuple[LoggedListener, RunLog]]:
    """A listener and the log of the run that it will hear of; what libraries say meanwhile is in the log alone.

    An error that ends the block is in the log with where it came from, and has the log's place as a note.
    """
    with _stderr() as stream:
        console = ConsoleListener(error_console(stream))
        log = RunLog(warn=console.warn)
        with closing(log), captured(log), closing(console):
            try:
                yield LoggedListener(console, log), log
            except BaseException as error:
                log.failure(error)
                if log.path is not None:
                    error.add_note(f"log: {log.path}")
                raise


@contextmanager
def _stderr() -> Iterator[TextIO]:
    """Standard error as it is now, wherever the process's own comes to lead."""
    if not _is_own(sys.stderr):
        yield sys.stderr
        return
    raw = io.FileIO(os.dup(2), "w")
    with _Patient(raw, encoding=sys.stderr.encoding, errors=sys.stderr.errors, write_through=True) as stream:
        yield stream


class _Patient(io.TextIOWrapper):
    """A stream to somebody who may go, as a terminal that closes does: no training ends because nobody listens."""

    def write(self, text: str) -> int:
        with suppress(OSError):
            super().write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            super().flush()

    def close(self) -> None:
        with suppress(OSError):
            super().close()


def _is_own(stream: TextIO) -> bool:
    """False for a stream that stands in standard error's place, as in a test or a notebook."""
    try:
        return stream.fileno() == 2
    except (OSError, ValueError, AttributeError):
        return False
