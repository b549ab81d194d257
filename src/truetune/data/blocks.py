"""Files read as a stream: from any place on, a block of rows at a time, pass after pass."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import dropwhile, islice
from pathlib import Path
from typing import Any

from truetune.data.examples import Record
from truetune.data.read import read_records
from truetune.data.sources import SourceFile
from truetune.data.streams import is_compressed, suffix_of
from truetune.data.tables import parquet_rows, read_parquet
from truetune.data.text_files import is_of_lines, read_lines_from

_END = 1 << 20
"""Bytes at both ends of a file by which it is known again; reading all of it would take as long as a pass."""
_COMPRESSION = 4
"""How much smaller compressed text is: a guess, for shares that are told as such."""


@dataclass(frozen=True, slots=True)
class Place:
    """A place between two rows of several files: so many lines (or records) of the file numbered `file` lie before.

    `offset` counts the bytes of lines, decompressed: from there a file of lines is read on without what lies before.
    """

    file: int = 0
    row: int = 0
    offset: int = 0


@dataclass(frozen=True, slots=True)
class BlockStart:
    """Where a block begins: in which pass over the files, as which of its blocks, at which place."""

    epoch: int = 0
    number: int = 0
    place: Place = Place()

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "BlockStart":
        """The start that `asdict` made this document of."""
        return cls(document["epoch"], document["number"], Place(**document["place"]))


BEGINNING = BlockStart()


@dataclass(frozen=True, slots=True)
class Block:
    """Rows one behind the other, each with its file's number; the block behind them begins at `next`."""

    start: BlockStart
    rows: Sequence[tuple[int, Record]]
    next: BlockStart


class BlockReader:
    """Reads files block by block, each of `size` rows, the last one of a pass of fewer."""

    def __init__(self, files: Sequence[SourceFile], *, size: int, start: BlockStart = BEGINNING) -> None:
        self._files = files
        self._size = size
        self._next = start
        self._records = records_from(files, start.place)

    def read(self) -> Block:
        """The next block; behind the last row, the first block of the next pass. Empty if there is no row."""
        taken = self._take()
        if not taken:
            self._start_over()
            taken = self._take()
        start = self._next
        if len(taken) < self._size:
            self._start_over()
        else:
            self._next = BlockStart(start.epoch, start.number + 1, taken[-1][0])
        return Block(start, [(place.file, record) for place, record in taken], self._next)

    def _take(self) -> list[tuple[Place, Record]]:
        return list(islice(self._records, self._size))

    def _start_over(self) -> None:
        self._next = BlockStart(self._next.epoch + 1)
        self._records = records_from(self._files, Place())


def records_from(files: Sequence[SourceFile], start: Place) -> Iterator[tuple[Place, Record]]:
    """The rows from `start` to the end of the last file, each with the place behind it. DataError as read_records."""
    for number in range(start.file, len(files)):
        at = start if number == start.file else Place(number)
        yield from _records(files[number], at)


def _records(file: SourceFile, at: Place) -> Iterator[tuple[Place, Record]]:
    if at.offset or is_of_lines(file):  # Of other files no offset is known.
        for row, offset, record in read_lines_from(file, row=at.row, offset=at.offset):
            yield Place(at.file, row, offset), record
        return
    for row, record in enumerate(_records_behind(file, at.row), start=at.row + 1):
        yield Place(at.file, row), record


def _records_behind(file: SourceFile, rows: int) -> Iterator[Record]:
    """The records behind the first so many; of a Parquet file, whole row groups are passed over unread."""
    if suffix_of(file.path) == ".parquet":
        return dropwhile(lambda record: record.where.line <= rows, read_parquet(file, skip=rows))
    return islice(read_records(file), rows, None)


# --- how far, and which files -----------------------------------------------------------------------------


def share_before(files: Sequence[SourceFile], place: Place) -> float:
    """The share of the files' bytes before a place; inside files that do not tell, that before the file."""
    sizes = [file.path.stat().st_size for file in files]
    if place.file >= len(files) or not sum(sizes):
        return 1.0
    within = _share_of(files[place.file], place) * sizes[place.file]
    return min(1.0, (sum(sizes[: place.file]) + within) / sum(sizes))


def _share_of(file: SourceFile, place: Place) -> float:
    if not place.row or is_compressed(file.path):
        return 0.0
    if suffix_of(file.path) == ".parquet":
        return place.row / max(1, parquet_rows(file))
    return place.offset / max(1, file.path.stat().st_size)


def about_share(files: Sequence[SourceFile], block: Block) -> float:
    """About what share of all rows a first block is: by its place, else by the bytes of its rows as JSON."""
    if block.next.epoch > block.start.epoch:
        return 1.0
    if share := share_before(files, block.next.place):
        return share
    read = sum(len(json.dumps(record.fields, default=str)) for _, record in block.rows)
    return min(1.0, read / max(1, sum(map(_about_bytes, files))))


def _about_bytes(file: SourceFile) -> int:
    is_small = is_compressed(file.path) or suffix_of(file.path) == ".parquet"
    return file.path.stat().st_size * (_COMPRESSION if is_small else 1)


def ends_digest(file: SourceFile) -> str:
    """A digest of a file by its name, without its folder, its size and both its ends: quick, however long it is."""
    size = file.path.stat().st_size
    found = hashlib.blake2b(f"{Path(file.name).name} {size} ".encode(errors="surrogateescape"))
    with file.path.open("rb") as stream:
        found.update(stream.read(_END))
        stream.seek(max(0, size - _END))
        found.update(stream.read(_END))
    return found.hexdigest()
