"""Which runs there are, read from their directories each time: no database, so that nothing can go stale.

Little is read, so that ten thousand runs are listed in a second or two: run.json, and the end of metrics.jsonl where
a run has not written there how it ended.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from truetune.errors import CheckpointError, ConfigError, first_line
from truetune.runs.directory import RunDirectory
from truetune.runs.documents import at_once, last_lines

LedgerStatus = Literal["running", "finished", "stopped", "failed", "dead", "unreadable"]
STATUSES: tuple[LedgerStatus, ...] = get_args(LedgerStatus)

SHOWN_SETTINGS = (
    "training.learning_rate",
    "adapter.method",
    "adapter.r",
    "training.num_train_epochs",
    "training.max_steps",
    "data.max_length",
    "training.seed",
)
"""The settings that a list of runs has of each."""

_REASONS, _END = b'\n  "settings": [\n', b"\n  ]"
_PIECE = 32_768
_LARGEST = 1e100
"""Beyond it a figure is a damaged one."""
_Found = TypeVar("_Found")


@dataclass(frozen=True, slots=True)
class RunEntry:
    """A run as its directory tells it; what that does not tell is None.

    `status` is run.json's, but `dead` of a run that says `running` and that no process works at, and `unreadable`
    where run.json cannot be read. `problem` says why it is that, or why the run failed. `steps`, losses and rate of a
    run that has not come to its end are those that it logged last. `seconds` are those of training.
    """

    path: Path
    status: LedgerStatus
    model: str | None = None
    data: str | None = None
    data_fingerprint: str | None = None
    started: str | None = None
    ended: str | None = None
    steps: int | None = None
    total_steps: int | None = None
    effective_batch_size: int | None = None
    final_loss: float | None = None
    eval_loss: float | None = None
    best_eval_loss: float | None = None
    tokens_per_second: float | None = None
    seconds: float | None = None
    peak_memory_bytes: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    problem: str | None = None

    def as_json(self) -> dict[str, Any]:
        """As `truetune runs --json` has it."""
        return {**{name: getattr(self, name) for name in self.__slots__}, "path": str(self.path)}


# --- reading ----------------------------------------------------------------------------------------------


def find_runs(folders: Iterable[str | Path], *, settings: Sequence[str] = ()) -> list[RunEntry]:
    """The runs in these folders and beneath them, by name, each once; links are not followed.

    `settings` are dotted names that are read besides SHOWN_SETTINGS. CheckpointError for a folder that is none.
    """
    found: dict[str, RunEntry] = {}
    names = (*SHOWN_SETTINGS, *settings)
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise CheckpointError(f"no such folder: {folder}", hint="name a run, or a folder that holds runs")
        beginning, whole = len(str(folder)), os.path.abspath(folder)
        texts: Iterator[tuple[str, bytes | OSError]] = _walk(str(folder), _text_of)
        for path, text in texts:
            if (place := whole + path[beginning:]) not in found:
                found[place] = _read(path, text, names)
    return list(found.values())


def run_folders(folder: str) -> Iterator[str]:
    """Each folder with a run.json, by name, the folder itself or below it; what lies in a run is no other run."""
    return (path for path, _ in _walk(folder, _is_there))


def _walk(folder: str, look: Callable[[str], _Found | None]) -> Iterator[tuple[str, _Found]]:
    """The folders that hold a run, with what `look` finds of their run.json: None where there is none."""
    if (found := look(os.path.join(folder, "run.json"))) is not None:
        yield folder, found
    else:
        yield from _walk_below(folder, look)


def _walk_below(folder: str, look: Callable[[str], _Found | None]) -> Iterator[tuple[str, _Found]]:
    try:
        with os.scandir(folder) as entries:
            below = sorted(each.name for each in entries if each.is_dir(follow_symlinks=False))
    except OSError:
        return  # What may not be looked into holds no run of ours.
    for name in below:
        if name.startswith("."):
            continue
        path = os.path.join(folder, name)
        if (found := look(f"{path}{os.sep}run.json")) is not None:
            yield path, found
        else:
            yield from _walk_below(path, look)


def _is_there(file: str) -> bool | None:
    try:
        os.lstat(file)
    except FileNotFoundError:
        return None
    except OSError:
        return True  # It is there, and reading it will tell why it cannot be read.
    return True


def _text_of(file: str) -> bytes | OSError | None:
    """What a file holds, or why it cannot be read; None where there is none."""
    try:
        return _bytes(file)
    except FileNotFoundError as error:
        return error if os.path.islink(file) else None
    except OSError as error:
        return error


def _bytes(file: str) -> bytes:
    """A file's bytes, by as few calls of the system as it takes: Python's own reader makes three times as many.

    What gives less than it is asked for is at its end, or a pipe.
    """
    number = at_once(file, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    try:
        pieces = [os.read(number, _PIECE)]
        while len(pieces[-1]) == _PIECE:
            pieces.append(os.read(number, _PIECE))
    finally:
        os.close(number)
    return b"".join(pieces)


def read_run(path: str | Path, *, settings: Sequence[str] = ()) -> RunEntry:
    """The run in a directory. What cannot be read is told in the entry, and never raised."""
    try:
        text: bytes | OSError = _bytes(os.path.join(path, "run.json"))
    except OSError as error:
        text = error
    return _read(str(path), text, (*SHOWN_SETTINGS, *settings))


def _read(path: str, text: bytes | OSError, names: Sequence[str]) -> RunEntry:
    try:
        if isinstance(text, OSError):
            raise text
        return _entry(Path(path), _parsed(_without_reasons(text)), names)
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        return RunEntry(Path(path), "unreadable", problem=f"run.json cannot be read: {first_line(error)}")


def _without_reasons(text: bytes) -> bytes:
    """A record without the list of settings with their reasons, which is most of what there is to parse.

    Files are written with two spaces of indent, and no text in JSON holds a line break: what begins and ends so is
    that list. A file that was written otherwise stays whole.
    """
    start = text.find(_REASONS)
    end = text.find(_END, start)
    return text if start < 0 or end < 0 else text[: start + len(_REASONS)] + text[end + 3 :]


def _parsed(text: bytes) -> Any:
    """What JSON holds, in half the time that Python's own parser takes; that one says what is wrong, in its words."""
    from pydantic_core import from_json

    try:
        return from_json(text)
    except ValueError:
        return json.loads(text)


def _entry(path: Path, record: Mapping[str, Any], names: Sequence[str]) -> RunEntry:
    status: Any = record.get("status")
    if status not in STATUSES:
        raise ValueError(f"its status is {status!r}")
    if status == "running" and not RunDirectory(path).is_at_work():
        status = "dead"
    model, data = record.get("model") or {}, record.get("data") or {}
    result = record if "steps" in record else _logged(path)
    return RunEntry(
        path=path,
        status=status,
        model=_text(model.get("name_or_path")),
        data=_places(data.get("path")),
        data_fingerprint=_text(data.get("fingerprint")),
        started=_text(record.get("started")),
        ended=_text(record.get("ended")),
        steps=_whole(result.get("steps")),
        total_steps=_whole(record.get("total_steps")),
        effective_batch_size=_whole(record.get("effective_batch_size")),
        final_loss=_number(result.get("final_loss")),
        eval_loss=_number(result.get("eval_loss")),
        best_eval_loss=_number(result.get("best_eval_loss")),
        tokens_per_second=_number(result.get("tokens_per_second")),
        seconds=_number(result.get("seconds")),
        peak_memory_bytes=_whole(result.get("peak_memory_bytes")),
        settings=_settings(record.get("config") or {}, names),
        problem=_text(record.get("error")),
    )


def _logged(folder: Path) -> dict[str, Any]:
    """How far a run has come, by the last lines of its metrics, whose file is read from its end."""
    with suppress(FileNotFoundError), open(RunDirectory(folder).metrics, "rb", opener=at_once) as file:
        tail = last_lines(file)
        trained, evaluated = _newest(tail, "loss"), _newest(tail, "eval_loss")
        steps = [line["step"] for line in (trained, evaluated) if "step" in line]
        return {
            "steps": max(steps, default=None),
            "final_loss": trained.get("loss"),
            "eval_loss": evaluated.get("eval_loss"),
            "tokens_per_second": trained.get("tokens_per_second"),
        }
    return {}


def _newest(lines: bytes, name: str) -> dict[str, Any]:
    """The last line that has a value of this name."""
    place = lines.rfind(f'"{name}": '.encode())
    start, end = lines.rfind(b"\n", 0, max(place, 0)) + 1, lines.find(b"\n", place)
    with suppress(ValueError):
        found = json.loads(lines[start:end]) if place >= 0 else {}
        return found if isinstance(found, dict) else {}
    return {}


def _settings(config: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    found = {}
    for name, section, leaf in _places_of(tuple(names)):
        values = config.get(section) or {} if section else config
        if leaf in values:
            found[name] = values[leaf]
    return found


@cache
def _places_of(names: tuple[str, ...]) -> list[tuple[str, str, str]]:
    """Each setting's dotted name, its section and its own name in that."""
    split = ((name, name.rpartition(".")) for name in names)
    return [(name, section, leaf) for name, (section, _, leaf) in split]


def _places(value: Any) -> str | None:
    """The paths of a run's data, as one text."""
    match value:
        case list():
            paths = [each.get("path") if isinstance(each, dict) else each for each in value]
            return ", ".join(map(str, paths))
        case _:
            return _text(value)


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _number(value: Any) -> float | None:
    """A figure that a training can come to: neither infinite nor none."""
    is_number = type(value) is float or type(value) is int
    return value if is_number and -_LARGEST < value < _LARGEST else None


def _whole(value: Any) -> int | None:
    return value if type(value) is int and -_LARGEST < value < _LARGEST else None


# --- choosing and ordering --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which runs are asked for: of one of the statuses, with these words in the names of model and data.

    `settings` are by dotted name; a run that does not tell a setting has another value of it.
    """

    statuses: Sequence[str] = ()
    model: str | None = None
    data: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for status in self.statuses:
            if status not in STATUSES:
                raise ConfigError(f"there is no status {status}", hint=f"statuses: {', '.join(STATUSES)}")

    def matches(self, entry: RunEntry) -> bool:
        return (
            (not self.statuses or entry.status in self.statuses)
            and _holds(entry.model, self.model)
            and _holds(entry.data, self.data)
            and all(name in entry.settings and entry.settings[name] == value for name, value in self.settings.items())
        )


def _holds(text: str | None, word: str | None) -> bool:
    return word is None or word.lower() in (text or "").lower()


_ORDERS: Mapping[str, tuple[Callable[[RunEntry], Any], bool]] = {
    "started": (lambda entry: entry.started, True),
    "loss": (lambda entry: entry.final_loss, False),
    "eval_loss": (lambda entry: entry.eval_loss, False),
    "steps": (lambda entry: entry.steps, True),
    "speed": (lambda entry: entry.tokens_per_second, True),
    "seconds": (lambda entry: entry.seconds, False),
    "memory": (lambda entry: entry.peak_memory_bytes, False),
    "name": (lambda entry: str(entry.path), False),
}
ORDERS = tuple(_ORDERS)
"""What runs can be sorted by: the newest, the lowest loss, the most steps, the fastest … first."""


def in_order(entries: Sequence[RunEntry], order: str, *, reverse: bool = False) -> list[RunEntry]:
    """The runs by one of ORDERS; those that do not have the figure come last, either way round."""
    value, is_falling = _ORDERS[order]
    known = [entry for entry in entries if value(entry) is not None]
    unknown = [entry for entry in entries if value(entry) is None]
    return sorted(known, key=value, reverse=is_falling != reverse) + unknown
