"""A run's log: what truetune says, and what libraries print, warn of and log, in a file that a crash leaves whole."""

import faulthandler
import os
import re
import shlex
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path

from truetune.errors import first_line
from truetune.files import aside
from truetune.lint.private import without_secrets
from truetune.runs.directory import public

_MOST = 10_000_000
"""Bytes of what libraries say, and as many of what they write past Python: some hundred thousand lines."""
_DIFFERENT = 10_000
"""Lines that are remembered, so that they are not written twice."""
_CONTROLS = re.compile(
    r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b\n]*(?:\x07|\x1b\\)?)|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]"
)
_SECRET_NAME = re.compile(r"(?:TOKEN|KEY|SECRET|PASSWORD)$", re.IGNORECASE)
_SHORTEST_SECRET = 12


class RunLog:
    """The log of a command that trains. Until `open` gives it a file, what is said waits in one without a name.

    What a call writes is with the system when it returns, so that a process that crashes takes none of it along. What
    the disk refuses is told to `warn`, once, and the run goes on. With a `descriptor` the log goes on there, as does
    that of a process which another one has started.
    """

    def __init__(self, *, descriptor: int | None = None, warn: Callable[[str], None] | None = None) -> None:
        self._number = _unnamed() if descriptor is None else os.dup(descriptor)
        self._warn = warn
        self._file: Path | None = None
        self._replaced: Path | None = None
        self._is_new = False
        self._has_begun = False
        self._followers: list[int] = []
        self._lock = threading.RLock()
        self._repeats = Repeats()
        self._room = _MOST
        self._own = self._size()
        self._secrets = _secrets(os.environ)

    # --- its file -----------------------------------------------------------------------------------------

    @property
    def file(self) -> Path | None:
        """The file that is written, if there is one yet."""
        return self._file

    @property
    def path(self) -> Path | None:
        """The file, of a run that has begun: what a user can be sent to."""
        return self._file if self._has_begun else None

    def open(self, path: Path, *, goes_on: bool) -> None:
        """From now on the log is this file, with all that was said so far: behind what is there, or in its place.

        What it takes the place of is gone for good only when the run begins.
        """
        is_there = path.exists()
        try:
            if is_there and not goes_on:
                self._replaced = aside(path)
                os.replace(path, self._replaced)
            number = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            self._put_back(path)
            self._refused(error)
            return
        self._file, self._is_new = path, not (is_there and goes_on)
        with self._lock:
            self._put(_heading(goes_on=not self._is_new), number)
            self._move_to(number)

    def begin(self) -> None:
        """The run has begun: its log stays, and takes the last words of a process that crashes."""
        self._has_begun = True
        if self._replaced is not None:
            self._replaced.unlink(missing_ok=True)
        if self._file is not None:
            faulthandler.enable(self._number)

    def leave(self) -> None:
        """If no run has begun, the file goes, and what it took the place of is back."""
        if self._has_begun or self._file is None or not self._is_new:
            return
        with self._lock:
            self._move_to(_unnamed())
            self._file.unlink(missing_ok=True)
            self._put_back(self._file)
            self._file = None

    def _put_back(self, path: Path) -> None:
        if self._replaced is not None:
            with suppress(OSError):
                os.replace(self._replaced, path)
        self._replaced = None

    def close(self) -> None:
        """Tells how often lines were repeated, and writes no more."""
        with self._lock:
            for text in self._repeats.untold():
                self._write(text)
            os.close(self._number)
            self._number = -1

    @property
    def is_closed(self) -> bool:
        return self._number < 0

    @contextmanager
    def receiving(self, *numbers: int) -> Iterator[Mapping[int, int]]:
        """What is written to these descriptors, past Python too, goes to the log. Yields copies of what they were."""
        kept = {number: copy for number in numbers if (copy := _copy(number)) is not None}
        _flush()
        self._followers = list(kept)
        for number in kept:
            os.dup2(self._number, number)
        try:
            yield kept
        finally:
            _flush()
            self._followers = []
            for number, copy in kept.items():
                os.dup2(copy, number)
                os.close(copy)

    def _move_to(self, number: int) -> None:
        for piece in _content(self._number):
            self._put(piece, number)
        os.dup2(number, self._number, inheritable=False)
        for each in self._followers:
            os.dup2(number, each)
        os.close(number)
        self._own = self._size()

    # --- what is written ----------------------------------------------------------------------------------

    def say(self, text: str) -> None:
        """Words of truetune's own, with the time."""
        with self._lock:
            if not self.is_closed:
                self._write(text)

    def hear(self, text: str, *, is_part: bool = False) -> None:
        """Words of a library. The same ones again are counted, unless they are part of something longer."""
        with self._lock:
            if self.is_closed or self._room <= 0:
                return
            if (kept := text if is_part else self._repeats.take(text)) is None:
                return
            self._room -= len(kept)
            full = f"libraries have said {_MOST // 1_000_000} MB: nothing more of it is kept"
            self._write(kept if self._room > 0 else full)

    def failure(self, error: BaseException) -> None:
        """What ended the command, with where it came from."""
        self.say("".join(traceback.format_exception(error)))

    def _write(self, text: str) -> None:
        stamp = time.strftime("%Y-%m-%d %H:%M:%S  ")
        lines = self._masked(without_controls(text)).splitlines()
        written = (stamp + f"\n{' ' * len(stamp)}".join(lines) + "\n").encode("utf-8", "backslashreplace")
        self._own += self._put(written, self._number)
        if self._followers and self._size() - self._own > _MOST:
            self._stop_following()

    def _put(self, data: bytes, number: int) -> int:
        """Writes all of it; how much the disk took."""
        done = 0
        try:
            while done < len(data):
                done += os.write(number, data[done:])
        except OSError as error:
            self._refused(error)
        return done

    def _stop_following(self) -> None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for number in self._followers:
            os.dup2(nowhere, number)
        os.close(nowhere)
        self._followers = []
        self._write(f"libraries have written {_MOST // 1_000_000} MB past Python: nothing more of it is kept")

    def _refused(self, error: OSError) -> None:
        warn, self._warn = self._warn, None
        if warn is not None:
            warn(f"the log cannot be written ({first_line(error)}): lines may be missing there, and the run goes on")

    def _masked(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return without_secrets(text)

    def _size(self) -> int:
        return os.fstat(self._number).st_size


class Repeats:
    """Of equal lines the first is kept; then it is told that there were 10, 100, 1,000, and at the end how many."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def take(self, text: str) -> str | None:
        """What is to be written of a line that is said; None if nothing."""
        if len(self._counts) >= _DIFFERENT:
            self._counts.clear()
        self._counts[text] += 1
        count = self._counts[text]
        if count == 1:
            return text
        return _times(text, count) if _is_told(count) else None

    def untold(self) -> Iterator[str]:
        """Lines that were repeated since their number was last told."""
        return (_times(text, count) for text, count in self._counts.items() if not _is_told(count))


def without_controls(text: str) -> str:
    """The text without what only a terminal understands, but for tabs and the ends of lines."""
    return _CONTROLS.sub("", text)


def _is_told(count: int) -> bool:
    return str(count).rstrip("0") == "1"


def _times(text: str, count: int) -> str:
    return f"({count:,} times) {text.splitlines()[0]}"


def _heading(*, goes_on: bool) -> bytes:
    words = shlex.join(public(["truetune", *sys.argv[1:]]))
    manner = "goes on" if goes_on else "begins"
    when, version = time.strftime("%Y-%m-%d %H:%M:%S %z"), metadata.version("truetune")
    return f"=== {when}, truetune {version} {manner}: {words}\n".encode("utf-8", "backslashreplace")


def _secrets(environment: Mapping[str, str]) -> list[str]:
    """The values of variables that hold a key, a token or a password by their names."""
    named = (value for name, value in environment.items() if _SECRET_NAME.search(name))
    return [value for value in named if len(value) >= _SHORTEST_SECRET]


def _unnamed() -> int:
    try:
        with tempfile.TemporaryFile() as file:
            return os.dup(file.fileno())
    except OSError:  # Where nothing can be kept, at least nothing of it is on the terminal.
        return os.open(os.devnull, os.O_RDWR)


def _content(number: int) -> Iterator[bytes]:
    place = 0
    while piece := os.pread(number, 1 << 16, place):
        yield piece
        place += len(piece)


def _copy(number: int) -> int | None:
    """A copy of a descriptor; None if it is closed, as a daemon's may be."""
    with suppress(OSError):
        return os.dup(number)
    return None


def _flush() -> None:
    """Python's and C's buffers. What `printf` holds back would come out at the process's end, on the terminal."""
    import ctypes

    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, OSError, ValueError):
            stream.flush()
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).fflush(None)
