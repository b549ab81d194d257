"""What is new in a run's files: lines of its metrics, words of its log, read from where they were left."""

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from truetune.lint.private import without_secrets
from truetune.report.curves import DRAWN, axes, charts, number, payload
from truetune.runs.columns import read_columns
from truetune.runs.directory import RunDirectory
from truetune.runs.documents import damage, json_objects, open_plain
from truetune.runs.log import without_controls

_PIECE = 1_000_000
"""Bytes that are told line by line, some 4,000 lines: where more is new, a snapshot tells it in fewer points."""
_MOST_VALUES = 64
_DRAWN = 40_000_000
"""Bytes at the end of metrics.jsonl that are drawn: some 150,000 lines."""
_LOG_TAIL = 30_000
_FIRST_LINE = 4_096


@dataclass(frozen=True, slots=True)
class Position:
    """How far a file was read: `offset` bytes of the file that `mark` tells from others of its name."""

    offset: int = 0
    mark: str = ""

    def __str__(self) -> str:
        return f"{self.offset}-{self.mark}"


def parse_position(text: str) -> Position:
    """What a client sends back; the beginning where that is no position."""
    found = re.fullmatch(r"(\d{1,15})-([0-9a-f]{0,16})", text, re.ASCII)
    return Position(int(found[1]), found[2]) if found else Position()


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A run's curves, thinned, as the page's script reads them, and where the lines ended that they are made of."""

    curves: Mapping[str, Any]
    position: Position
    problem: str = ""


@dataclass(frozen=True, slots=True)
class News:
    """New lines, and where they end. `is_restarted`: the file is another one, or has too many new lines to tell."""

    lines: tuple[Mapping[str, float | None], ...]
    position: Position
    is_restarted: bool = False


# --- metrics ----------------------------------------------------------------------------------------------


def snapshot(run: RunDirectory) -> Snapshot:
    """The curves of a run as they are now. What cannot be read is told, and never raised."""
    try:
        with open_plain(run.metrics) as file:
            mark = _mark(file)
            size = file.seek(0, os.SEEK_END)
            start = _seek_line(file, max(0, size - _DRAWN))
            text = file.read(size - start)
    except FileNotFoundError:
        return Snapshot(payload((), ()), Position())
    except OSError as error:
        return Snapshot(payload((), ()), Position(), f"metrics.jsonl cannot be read: {error.strerror or error}.")
    whole = text[: text.rfind(b"\n") + 1]  # What is half written waits.
    logged = read_columns(whole, names=DRAWN)
    problems = [f"{told}."] if (told := damage(run.metrics, logged.damaged)) else []
    problems += ["Only the end of this long run is drawn: the report has all of it."] if start else []
    curves = payload(charts(logged.columns), axes(logged.columns))
    return Snapshot(curves, Position(start + len(whole), mark), " ".join(problems))


def news(run: RunDirectory, since: Position) -> News:
    """The lines that were logged since; none where the file is not there, or only half a line has come."""
    try:
        with open_plain(run.metrics) as file:
            mark, size = _mark(file), file.seek(0, os.SEEK_END)
            is_other = since.offset > 0 and (since.mark != mark or size < since.offset)
            if is_other or size - since.offset > _PIECE:
                return News((), Position(_end_of_lines(file), mark), is_restarted=True)
            file.seek(since.offset)
            text = file.read(_PIECE)
    except OSError:
        return News((), Position(), is_restarted=since.offset > 0)
    text = text[: text.rfind(b"\n") + 1]
    found, _ = json_objects(text.decode("utf-8", "replace"))
    return News(tuple(filter(None, map(_numbers, found))), Position(since.offset + len(text), mark))


def _numbers(line: Mapping[str, Any]) -> dict[str, float | None]:
    """The numbers of a line, as the curves have them: null where a value is none. Empty without a step."""
    step = line.get("step")
    if type(step) is not int or not 0 <= step < 2**53:
        return {}
    values = {name: number(value) for name, value in list(line.items())[:_MOST_VALUES] if not isinstance(value, str)}
    known = {name[:100]: None if value != value else float(f"{value:.6g}") for name, value in values.items()}
    return {**known, "step": step}


def _mark(file: BinaryIO) -> str:
    """What tells the file from another one that has its name later: its number on the disk, and its first line."""
    file.seek(0)
    first = file.read(_FIRST_LINE).partition(b"\n")
    told = first[0] if first[1] else b""
    return hashlib.sha256(b"%d:%b" % (os.fstat(file.fileno()).st_ino, told)).hexdigest()[:12]


def _end_of_lines(file: BinaryIO) -> int:
    """Where the last line that is whole ends; the end of the file where its last piece has none."""
    start = max(0, file.seek(0, os.SEEK_END) - _PIECE)
    file.seek(start)
    text = file.read(_PIECE)
    return start + (text.rfind(b"\n") + 1 or len(text))


def _seek_line(file: BinaryIO, offset: int) -> int:
    """Goes to the first line that begins there or behind it, and says where that is."""
    file.seek(offset)
    return offset + len(file.readline(_PIECE)) if offset else 0


# --- the log ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LogNews:
    """Words of the log that are new. `is_whole`: they are its end as it is now, in place of what was known of it."""

    text: str
    position: Position
    is_whole: bool


def log_news(path: Path, since: Position | None) -> LogNews | None:
    """What was written to a log since; of one that is new to the reader its end. None where nothing is new."""
    try:
        with open_plain(path) as file:
            mark, size = _mark(file), file.seek(0, os.SEEK_END)
            is_whole = since is None or since.mark != mark or size < since.offset or size - since.offset > _LOG_TAIL
            start = _seek_line(file, max(0, size - _LOG_TAIL)) if since is None or is_whole else since.offset
            file.seek(start)
            text = file.read(_LOG_TAIL)
    except OSError:
        return None
    whole = text[: text.rfind(b"\n") + 1]
    if not whole and not (is_whole and since):
        return None
    return LogNews(_plain(whole), Position(start + len(whole), mark), is_whole)


def _plain(text: bytes) -> str:
    """Lines without what only a terminal understands, and without keys and addresses of people."""
    words = without_controls(text.decode("utf-8", "replace"))
    lines = (line.rpartition("\r")[2] for line in words.replace("\r\n", "\n").split("\n"))
    return without_secrets("\n".join(lines))
