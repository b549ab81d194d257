"""Rows into a file, of the kind that its suffix names, as they were read: types, spellings and the order of keys.

Rows are written as they come. A table must know all its columns before its first row, so that its rows wait on the
disk for the last one.
"""

import csv
import gzip
import io
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from itertools import islice
from math import isfinite
from pathlib import Path
from typing import IO, Any, Protocol

from truetune.data.json_text import SourceFloat, parse_line
from truetune.data.rules import RowError
from truetune.data.streams import is_compressed, suffix_of
from truetune.data.values import require_unicode
from truetune.errors import ConfigError, DataError
from truetune.files import named_refusals, staged_file

WRITTEN_KINDS = ".jsonl, .json, .csv, .tsv (also .gz) or .parquet"

_BATCH = 1_000


class RowFile(Protocol):
    """A file that rows are written into. `as_text` names the columns that had to become text: see `_Parquet`."""

    @property
    def as_text(self) -> Sequence[str]: ...

    def write(self, fields: Mapping[str, Any]) -> None:
        """One more row."""

    def finish(self) -> None:
        """There are no more rows."""


def require_writable(path: Path) -> None:
    """ConfigError if the suffix names no kind that is written."""
    suffix, is_gzipped = suffix_of(path), path.suffix.lower() == ".gz"
    plain = suffix in _TEXT_FILES and (is_gzipped or not is_compressed(path))
    if not plain and not (suffix == ".parquet" and not is_compressed(path)):
        raise ConfigError(
            f"{path}: files ending in {path.suffix or 'nothing'} are not written", hint=f"use {WRITTEN_KINDS}"
        )


@contextmanager
def row_file(path: Path) -> Iterator[RowFile]:
    """A file that stands under its name, whole, when the block ends well; otherwise nothing is written.

    Raises DataError if the disk refuses.
    """
    with (
        named_refusals(path),
        staged_file(path) as staged,
        tempfile.TemporaryFile("w+", dir=path.parent, encoding="utf-8") as waiting,
        _opened(staged, waiting, path) as rows,
    ):
        yield rows
        rows.finish()


@contextmanager
def _opened(staged: Path, waiting: IO[str], path: Path) -> Iterator[RowFile]:
    if suffix_of(path) == ".parquet":
        yield _Parquet(staged, waiting, path)
        return
    with _open_text(staged, is_gzipped=path.suffix.lower() == ".gz") as file:
        yield _TEXT_FILES[suffix_of(path)](file, waiting, path)


@contextmanager
def _open_text(path: Path, *, is_gzipped: bool) -> Iterator[IO[str]]:
    with path.open("wb") as raw:
        # Without a name and a time, equal rows are equal bytes.
        packed = gzip.GzipFile("", "wb", fileobj=raw, mtime=0) if is_gzipped else raw
        with io.TextIOWrapper(packed, encoding="utf-8", newline="") as text:
            yield text


# --- text -------------------------------------------------------------------------------------------------


def to_json(value: Any) -> str:
    """The value as JSON, each number as its file spells it. What has no JSON type becomes its text."""
    match value:
        case str():
            return _quoted(value)
        case Mapping():
            return "{" + ", ".join(f"{_quoted(str(key))}: {to_json(each)}" for key, each in value.items()) + "}"
        case list() | tuple():
            return "[" + ", ".join(map(to_json, value)) + "]"
        case SourceFloat():
            return value.source
        case float():
            return json.dumps(value) if isfinite(value) else "null"
        case None | bool() | int():
            return json.dumps(value)
        case _:
            return _quoted(str(value))


def _quoted(text: str) -> str:
    quoted = json.dumps(text, ensure_ascii=False)
    try:
        quoted.encode()
    except UnicodeEncodeError:  # Half of a surrogate pair: only its escape can be written.
        return json.dumps(text)
    return quoted


def _cell(value: Any) -> str:
    """The value in a cell of text: null is empty, what is no text is its JSON."""
    match value:
        case None:
            return ""
        case str():
            return value
        case _:
            return to_json(value)


class _JsonLines:
    as_text: Sequence[str] = ()

    def __init__(self, file: IO[str], waiting: IO[str], path: Path) -> None:
        self._file = file

    def write(self, fields: Mapping[str, Any]) -> None:
        self._file.write(f"{to_json(fields)}\n")

    def finish(self) -> None:
        pass


class _JsonArray:
    as_text: Sequence[str] = ()

    def __init__(self, file: IO[str], waiting: IO[str], path: Path) -> None:
        self._file = file
        self._before = "[\n"

    def write(self, fields: Mapping[str, Any]) -> None:
        self._file.write(f"{self._before}{to_json(fields)}")
        self._before = ",\n"

    def finish(self) -> None:
        self._file.write("[]\n" if self._before == "[\n" else "\n]\n")


# --- tables -----------------------------------------------------------------------------------------------


class _Waiting:
    """Rows that wait on the disk until the columns of all of them are known."""

    def __init__(self, file: IO[str], path: Path) -> None:
        self._file = file
        self._path = path
        self.count = 0

    def add(self, fields: Mapping[str, Any]) -> None:
        self.count += 1
        try:
            require_unicode(fields, "row")
        except RowError as error:
            raise DataError(
                f"{self._path}: row {self.count} {error.message}, which only JSON can spell",
                hint="write a .jsonl file, or leave such rows out (TT201)",
            ) from error
        self._file.write(f"{to_json(fields)}\n")

    def __iter__(self) -> Iterator[dict[str, Any]]:
        self._file.seek(0)
        for number, line in enumerate(self._file, start=1):
            yield parse_line(line, name=str(self._path), line=number)


class _Csv:
    """Records under a header with every field that a row has; a field that a row lacks is empty."""

    as_text: Sequence[str] = ()
    delimiter = ","

    def __init__(self, file: IO[str], waiting: IO[str], path: Path) -> None:
        self._file = file
        self._rows = _Waiting(waiting, path)
        self._names: dict[str, None] = {}

    def write(self, fields: Mapping[str, Any]) -> None:
        self._rows.add(fields)
        self._names.update(dict.fromkeys(map(str, fields)))

    def finish(self) -> None:
        # \r\n is RFC 4180's; with it, a lone \r in a value is quoted by every Python.
        writer = csv.writer(self._file, delimiter=self.delimiter, lineterminator="\r\n")
        if self._names:
            writer.writerow(self._names)
        for row in self._rows:
            writer.writerow([_cell(row.get(name)) for name in self._names])


class _Tsv(_Csv):
    delimiter = "\t"


@dataclass(frozen=True, slots=True)
class _List:
    item: "_Kind"


@dataclass(frozen=True, slots=True)
class _Struct:
    fields: Mapping[str, "_Kind"]


_Kind = str | _List | _Struct | None
"""The type of a column: pyarrow's name for it, or what it is made of; None of one that has only nulls."""


class _MixedError(Exception):
    """No type of a column holds such values exactly."""


class _Parquet:
    """A column has one type. One whose values have several, or none that holds them exactly, is written as text."""

    def __init__(self, staged: Path, waiting: IO[str], path: Path) -> None:
        self._staged = staged
        self._rows = _Waiting(waiting, path)
        self._kinds: dict[str, _Kind] = {}
        self._mixed: dict[str, None] = {}

    @property
    def as_text(self) -> Sequence[str]:
        return tuple(self._mixed)

    def write(self, fields: Mapping[str, Any]) -> None:
        self._rows.add(fields)
        for name, value in fields.items():
            known = self._kinds.setdefault(str(name), None)
            try:
                self._kinds[str(name)] = _merged(known, _kind(value))
            except _MixedError:
                self._mixed[str(name)] = None

    def finish(self) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        kinds = {name: "string" if name in self._mixed else kind for name, kind in self._kinds.items()}
        schema = pa.schema([(name, _arrow_type(kind)) for name, kind in kinds.items()])
        with pq.ParquetWriter(self._staged, schema) as writer:
            rows = iter(self._rows)
            while batch := list(islice(rows, _BATCH)):
                writer.write_batch(self._batch(batch, schema))

    def _batch(self, rows: Sequence[Mapping[str, Any]], schema: Any) -> Any:
        import pyarrow as pa

        columns = [pa.array(self._column(rows, field.name), field.type) for field in schema]
        return pa.record_batch(columns, schema=schema)

    def _column(self, rows: Sequence[Mapping[str, Any]], name: str) -> list[Any]:
        values = [row.get(name) for row in rows]
        if name not in self._mixed:
            return values
        return [None if value is None else _cell(value) for value in values]


def _kind(value: Any) -> _Kind:
    match value:
        case None:
            return None
        case str():
            return "string"
        case bool():
            return "bool"
        case int() if -(2**63) <= value < 2**63:
            return "int64"
        case float() if str(value) == repr(float(value)):  # 1.10 would be read again as 1.1.
            return "float64"
        case list() | tuple():
            return _List(reduce(_merged, map(_kind, value), None))
        case Mapping() if value:  # Parquet has no object without keys.
            return _Struct({str(key): _kind(each) for key, each in value.items()})
        case _:
            raise _MixedError


def _merged(one: _Kind, other: _Kind) -> _Kind:
    match one, other:
        case None, _:
            return other
        case _, None:
            return one
        case _List(), _List():
            return _List(_merged(one.item, other.item))
        case _Struct(), _Struct():
            names = {**one.fields, **other.fields}
            return _Struct({name: _merged(one.fields.get(name), other.fields.get(name)) for name in names})
        case _ if one == other:
            return one
        case _:
            raise _MixedError


def _arrow_type(kind: _Kind) -> Any:
    import pyarrow as pa

    match kind:
        case _List(item):
            return pa.list_(_arrow_type(item))
        case _Struct(fields):
            return pa.struct([(name, _arrow_type(each)) for name, each in fields.items()])
        case None:
            return pa.string()
        case name:
            return pa.type_for_alias(name)


_TEXT_FILES: Mapping[str, type[_JsonLines | _JsonArray | _Csv]] = {
    ".jsonl": _JsonLines,
    ".ndjson": _JsonLines,
    ".json": _JsonArray,
    ".csv": _Csv,
    ".tsv": _Tsv,
}
