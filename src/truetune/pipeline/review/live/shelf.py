"""The runs that are served: found in their folders, and read again only where a file of theirs has changed."""

import hashlib
import os
import stat
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from truetune.errors import CheckpointError
from truetune.runs.directory import RunDirectory
from truetune.runs.ledger import RunEntry, read_run, run_folders

_LARGEST = 16_000_000
"""Bytes of a run.json that are read: those of trainings have some ten thousand."""
_REST = 10
"""Looking for runs takes at most one part in so many of the time: ten thousand of them take half a second."""

_Stamp = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Shelved:
    """A run: its `id`, which stands for its directory in addresses, its name beneath the folders, what it tells."""

    id: str
    name: str
    entry: RunEntry

    @property
    def directory(self) -> RunDirectory:
        return RunDirectory(self.entry.path)


class Shelf:
    """The runs of these folders. Any number of threads may ask it.

    A request can only name an id of what was found here, so that no request can name a path. CheckpointError for a
    folder that is none.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        for folder in folders:
            if not folder.is_dir():
                raise CheckpointError(f"no such folder: {folder}", hint="name a run, or a folder that holds runs")
        self.folders = tuple(folders)
        self._lock = threading.Lock()
        self._found: dict[str, Shelved] = {}
        self._stamps: dict[str, _Stamp] = {}
        self._next = 0.0

    def runs(self) -> Mapping[str, Shelved]:
        """All runs by id, as they are now, or were a moment ago; the same object where a run has not changed."""
        with self._lock:
            if time.monotonic() >= self._next:
                began = time.monotonic()
                self._look()
                ended = time.monotonic()
                self._next = ended + min(_REST * (ended - began), 60.0)
            return self._found

    def run(self, id: str) -> Shelved | None:
        """The run with this id, as it is now; None where there is none, or no longer."""
        shelved = self._found.get(id) or self.runs().get(id)
        if shelved is None:
            return None
        with self._lock:
            now = self._read(str(shelved.entry.path), shelved.name)
            if now is not None and now is not shelved:
                # Whoever goes through the runs meanwhile has a mapping that stays as it is.
                self._found = {**self._found, id: now}
            return now

    def _look(self) -> None:
        found: dict[str, Shelved] = {}
        for folder in self.folders:
            for path in run_folders(str(folder)):
                if _id(path) not in found and (shelved := self._read(path, self._name(folder, path))) is not None:
                    found[shelved.id] = shelved
        self._stamps = {id: stamp for id, stamp in self._stamps.items() if id in found}
        self._found = found

    def _name(self, folder: Path, path: str) -> str:
        """A run's path beneath the folder that it was found in; its own name where it is that folder."""
        inside = os.path.relpath(path, folder)
        if inside == os.curdir:
            return os.path.basename(os.path.abspath(path))
        return inside if len(self.folders) == 1 else os.path.join(folder.name, inside)

    def _read(self, path: str, name: str) -> Shelved | None:
        """The run in a directory, read anew if it may have changed; None where it is gone."""
        id = _id(path)
        kept = self._found.get(id)
        try:
            stamp = _stamp(path)
        except FileNotFoundError:
            return None
        except OSError as error:
            stamp, problem = (), f"run.json cannot be read: {error}"
        else:
            problem = ""
        if kept is not None and stamp and self._stamps.get(id) == stamp and kept.entry.status != "running":
            return kept
        entry = RunEntry(Path(path), "unreadable", problem=problem) if problem else read_run(path)
        self._stamps[id] = stamp
        shelved = Shelved(id, name, entry)
        # The same run is the same object, so that whoever has shown it can tell.
        return kept if kept == shelved else shelved


def _id(path: str) -> str:
    return hashlib.sha256(os.fsencode(os.path.abspath(path))).hexdigest()[:16]


def _stamp(path: str) -> _Stamp:
    """What changes when a run's files do. OSError where one of them is none: a link, a pipe, a folder."""
    record = os.lstat(os.path.join(path, "run.json"))
    if not stat.S_ISREG(record.st_mode) or record.st_size > _LARGEST:
        raise OSError("it is no file of a run")
    try:
        metrics = os.lstat(os.path.join(path, "metrics.jsonl"))
    except FileNotFoundError:
        return record.st_ino, record.st_size, record.st_mtime_ns
    if not stat.S_ISREG(metrics.st_mode):
        raise OSError("metrics.jsonl beside it is no file of a run")
    return (
        *(record.st_ino, record.st_size, record.st_mtime_ns),
        *(metrics.st_ino, metrics.st_size, metrics.st_mtime_ns),
    )
