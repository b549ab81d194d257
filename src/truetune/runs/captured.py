"""What a process prints, warns of and logs, to a log instead of the terminal."""

import faulthandler
import io
import logging
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from typing import TextIO, cast

from truetune.environment import libraries_heard
from truetune.runs.log import RunLog

_LONGEST = 100_000
_OF_A_TRACE = ("Traceback (most recent call last)", "During handling of", "The above exception")


@contextmanager
def captured(log: RunLog) -> Iterator[None]:
    """While it lasts, all that this process writes to stdout and stderr goes to the log, and warnings and records do.

    So does what C++ writes, and processes that this one starts. A crash leaves the stacks of Python's threads: on
    stderr, from `RunLog.begin` on in the log.
    """
    with ExitStack() as stack:
        kept = stack.enter_context(log.receiving(1, 2))
        stack.enter_context(_last_words(kept.get(2)))
        out, err = _Heard(log, sys.stdout, 1), _Heard(log, sys.stderr, 2)
        stack.enter_context(redirect_stdout(cast(TextIO, out)))
        stack.enter_context(redirect_stderr(cast(TextIO, err)))
        stack.callback(out.finish)
        stack.callback(err.finish)
        stack.enter_context(libraries_heard())
        stack.enter_context(_records(log))
        yield


class _Heard(io.TextIOBase):
    """A stream whose lines go to the log; behind the log's end, the stream that it stands for."""

    encoding = "utf-8"
    errors = "backslashreplace"

    def __init__(self, log: RunLog, before: TextIO, number: int) -> None:
        self._log = log
        self._before = before
        self._number = number
        self._lock = threading.RLock()
        self._rest = ""
        self._is_trace = False

    def write(self, text: str) -> int:
        if self._log.is_closed:
            return self._before.write(text)
        with self._lock:
            *lines, rest = (self._rest + text).split("\n")
            for line in lines:
                self._keep(line)
            # Of what is written over itself, as a bar is, the newest counts.
            self._rest = rest if len(rest) < _LONGEST else rest[rest.rstrip("\r").rfind("\r") + 1 :][-_LONGEST:]
        return len(text)

    def finish(self) -> None:
        """The last line, if it has no end."""
        with self._lock:
            line, self._rest = self._rest, ""
            self._keep(line)

    def _keep(self, line: str) -> None:
        shown = line.rstrip("\r").rpartition("\r")[2]
        if not shown.strip():
            return
        is_trace = shown[0].isspace() or shown.startswith(_OF_A_TRACE)
        self._log.hear(shown, is_part=is_trace or self._is_trace)
        self._is_trace = is_trace

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._number

    @property
    def buffer(self) -> io.FileIO:
        """For bytes, which go the way of all that is written past Python."""
        return io.FileIO(self._number, "w", closefd=False)


class _Records(logging.Handler):
    """Records of libraries that have no handler of their own; those of others come by their streams."""

    def __init__(self, log: RunLog) -> None:
        super().__init__()
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._log.hear(f"{record.levelname.lower()}: {record.name}: {self.format(record).strip()}")
        except Exception:  # noqa: BLE001 - logging's own way with records that cannot be formatted
            self.handleError(record)


@contextmanager
def _records(log: RunLog) -> Iterator[None]:
    handler = _Records(log)
    logging.getLogger().addHandler(handler)
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        logging.getLogger().removeHandler(handler)


@contextmanager
def _last_words(number: int | None) -> Iterator[None]:
    """Has a crash leave its stacks there, and afterwards where it did before."""
    was_enabled = faulthandler.is_enabled()
    if number is not None:
        faulthandler.enable(number)
    try:
        yield
    finally:
        faulthandler.disable()
        if was_enabled and sys.__stderr__ is not None:
            faulthandler.enable(sys.__stderr__)
