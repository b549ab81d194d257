"""The rows of .csv and .tsv files: every value is text, exactly as it stands."""

import csv
import re
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

from truetune.data.examples import Location, Record
from truetune.data.remedies import page_remedy
from truetune.data.sources import SourceFile
from truetune.data.streams import open_text, reading, suffix_of
from truetune.errors import DataError

_LONGEST_CELL = 2**31 - 1  # What every platform's C long holds.
_QUOTED = 'a value in double quotes must end with one; a double quote in it is written twice: "a ""b"""'
_SEPARATORS = ("\t", ";", ",", "|")
_FIRST_LINE = re.compile(r'"?sep=([^"\s\w]|\t)"?\s*')
"""By which Excel says what separates the values below."""


def read_csv(file: SourceFile) -> Iterator[Record]:
    """Records under a header; an empty cell is an empty text.

    Values are separated as the file's name says, unless its first line has them separated otherwise: Excel writes
    semicolons where the comma is the decimal sign.
    """
    csv.field_size_limit(_LONGEST_CELL)
    with reading(file.path, file.name):
        separator = _separator(file)
        with open_text(file.path, newline="") as text:
            reader = csv.reader(text, strict=True, delimiter=separator)
            try:
                yield from _read_cells(reader, file.name, separator)
            except csv.Error as error:
                raise DataError(f"{file.name}, line {reader.line_num}: {error}", hint=_QUOTED) from error


def _separator(file: SourceFile) -> str:
    """What stands between values: a header that is one name by the file's own separator may be several by another."""
    own = "\t" if suffix_of(file.path) == ".tsv" else ","
    with open_text(file.path, newline="") as text:
        first = text.readline()
        if said := _FIRST_LINE.fullmatch(first):
            return said[1]
        # Not strict: a quoted name before another separator would be an error.
        header = next(filter(None, csv.reader(chain([first], text), delimiter=own)), [])
    if len(header) != 1:
        return own
    return next((mark for mark in _SEPARATORS if mark in header[0]), own)


def _read_cells(reader: Any, name: str, separator: str) -> Iterator[Record]:
    rows = filter(None, reader)
    header: list[str] = next(rows, [])
    if header and header[0].startswith("sep=") and len(header) < 3:
        header = next(rows, [])
    named = _named_columns(header, name)
    is_whole = len(named) == len(header)
    for number, row in enumerate(rows, start=1):
        where = Location(name, number, "record")
        if len(row) != len(header):
            raise _wrong_count(f"{where} (ends on line {reader.line_num})", row, header, separator)
        if is_whole:
            yield Record(dict(zip(header, row, strict=True)), where)
            continue
        _require_empty(row, named, where)
        yield Record({header[place]: row[place] for place in named}, where)


def _named_columns(header: Sequence[str], file: str) -> Sequence[int]:
    """The places of the columns that are read: of several without a name, which spreadsheets write behind, none.

    DataError for a header that would lose a value.
    """
    if not header:
        raise DataError(f"{file}: the file is empty", hint="the first line must name the columns")
    if remedy := page_remedy(header[0]):
        raise DataError(f"{file}, line 1: no names of columns, but {header[0].strip()[:40]!r}", hint=remedy)
    named = [place for place, name in enumerate(header) if name.strip()]
    if len(header) - len(named) < 2:
        named = list(range(len(header)))
    names = [header[place] for place in named]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(
            f"{file}, line 1: two columns are named {twice[0]!r}, so one of them would be lost",
            hint="give every column a name of its own",
        )
    return named


def _require_empty(row: Sequence[str], named: Sequence[int], where: Location) -> None:
    for place in set(range(len(row))) - set(named):
        if row[place]:
            raise DataError(
                f"{where}: {row[place][:40]!r} stands in column {place + 1}, which has no name",
                hint="name the column in the first line, or empty it",
            )


def _wrong_count(place: str, row: Sequence[str], header: Sequence[str], separator: str) -> DataError:
    values = "1 value" if len(row) == 1 else f"{len(row)} values"
    shown = "a tab" if separator == "\t" else repr(separator)
    quoted = f'a value that holds {shown} or a line break must stand in double quotes: "a{separator} b"'
    lacking = "take it out if it is no row (a total, a note), or give it a value for each column"
    hint = quoted if len(row) > len(header) else f"{lacking}; {quoted}"
    return DataError(f"{place}: {values} under {len(header)} columns", hint=hint)
