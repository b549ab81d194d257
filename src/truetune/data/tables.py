"""The rows of .parquet and .arrow files (and of `datasets.Dataset`), batch by batch.

A column has one type and a struct one set of keys, so that nested objects come back with the keys of every other row,
as nulls: those are taken out again. What has no JSON type becomes its exact text.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from itertools import accumulate
from typing import Any

from truetune.data.examples import Location, Record
from truetune.data.json_text import SourceFloat, parse_line
from truetune.data.sources import SourceFile
from truetune.data.streams import is_compressed, open_bytes, reading
from truetune.errors import DataError, first_line

_BATCH = 1_000
_IPC_FILE = b"ARROW1"
_OLD_FEATHER = b"FEA1"
_END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"

_Convert = Callable[[Any], Any]


def read_parquet(file: SourceFile, *, skip: int = 0) -> Iterator[Record]:
    """The rows of a Parquet file, by record batches; without the row groups that end within the first `skip` rows."""
    import pyarrow.parquet as pq

    with _reading(file), closing(pq.ParquetFile(_source(file))) as parquet:
        sizes = [parquet.metadata.row_group(number).num_rows for number in range(parquet.num_row_groups)]
        ends = list(accumulate(sizes))
        first = bisect_right(ends, skip)
        batches = parquet.iter_batches(batch_size=_BATCH, row_groups=range(first, len(sizes)))
        yield from _records(batches, file.name, number=ends[first - 1] if first else 0)


def parquet_rows(file: SourceFile) -> int:
    """How many rows a Parquet file says that it has."""
    import pyarrow.parquet as pq

    with _reading(file):
        return int(pq.read_metadata(str(file.path)).num_rows)


def read_arrow(file: SourceFile) -> Iterator[Record]:
    """The rows of an Arrow file or stream, Feather and the files of `datasets` among them."""
    with _reading(file):
        yield from _records(_arrow_batches(file), file.name)


def batch_rows(batch: Any, *, place: str) -> list[dict[str, Any]]:
    """The rows of a pyarrow RecordBatch."""
    names = batch.schema.names
    require_distinct(names, place)
    columns = [_values(column, name, place) for name, column in zip(names, batch.columns, strict=True)]
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def require_distinct(names: list[str], place: str) -> None:
    """DataError if two columns have one name."""
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"{place}: two columns are named {twice!r}", hint="give every column a name of its own")


def _records(batches: Iterable[Any], name: str, *, number: int = 0) -> Iterator[Record]:
    for batch in batches:
        for start in range(0, batch.num_rows, _BATCH):
            for row in batch_rows(batch.slice(start, _BATCH), place=name):
                number += 1
                yield Record(row, Location(name, number, "record"))


def _arrow_batches(file: SourceFile) -> Iterator[Any]:
    import pyarrow as pa

    with open_bytes(file.path) as start:
        magic = start.read(len(_IPC_FILE))
    if magic.startswith(_OLD_FEATHER):
        raise DataError(f"{file.name}: the first version of Feather is not read", hint="write it anew as .parquet")
    if magic == _IPC_FILE:
        with pa.ipc.open_file(_source(file)) as table:
            for number in range(table.num_record_batches):
                yield _sound(table.get_batch(number))
        return
    _require_end_mark(file)
    with open_bytes(file.path) as stream, pa.ipc.open_stream(stream) as table:
        yield from map(_sound, table)


def _sound(batch: Any) -> Any:
    """The batch, of which nothing leads out of it: of a damaged file pyarrow would read memory that is another's."""
    batch.validate(full=True)
    return batch


def _require_end_mark(file: SourceFile) -> None:
    """pyarrow takes a stream that is cut off between two batches for one that ends there."""
    tail = b""
    with open_bytes(file.path) as stream:
        if stream.seekable() and not is_compressed(file.path):
            stream.seek(max(0, file.path.stat().st_size - len(_END_OF_STREAM)))
        while block := stream.read(1 << 20):
            tail = (tail + block)[-len(_END_OF_STREAM) :]
    if tail != _END_OF_STREAM:
        raise DataError(
            f"{file.name}: not an Arrow file, or one that is cut off: its end is missing", hint="write it anew"
        )


def _source(file: SourceFile) -> Any:
    """What pyarrow reads a table from: the file, or its decompressed bytes, since a table is not read in order."""
    import pyarrow as pa

    if is_compressed(file.path):
        with open_bytes(file.path) as stream:
            return pa.BufferReader(stream.read())
    return str(file.path)


@contextmanager
def _reading(file: SourceFile) -> Iterator[None]:
    import pyarrow as pa

    try:
        with reading(file.path, file.name):
            try:
                yield
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"a text in it is not valid UTF-8 (byte 0x{error.object[error.start]:02x})"
                ) from error
    except MemoryError as error:
        reason = f" ({first_line(error)})" if str(error) else ""
        raise DataError(
            f"{file.name}: cannot be read: it takes more memory than there is{reason}",
            hint="the file is broken, or should be written anew in smaller batches of rows",
        ) from error
    except (pa.ArrowException, ValueError, OverflowError) as error:
        raise DataError(
            f"{file.name}: cannot be read: {error}", hint="the file is broken, or not what its name says"
        ) from error


def _values(column: Any, name: str, place: str) -> list[Any]:
    convert = _conversion(column.type, f"{place}, column {name!r}")
    values: list[Any] = column.to_pylist()
    return values if convert is None else [None if value is None else convert(value) for value in values]


def _conversion(kind: Any, place: str) -> _Convert | None:
    """What makes a value of an Arrow type one that JSON has; None for a type whose values stay as they are."""
    from pyarrow import types

    if isinstance(kind, _extension_types()):
        return _extension(kind, place)
    if types.is_struct(kind):
        return _struct({field.name: _conversion(field.type, place) for field in kind})
    if types.is_map(kind):
        return _map(_conversion(kind.key_type, place), _conversion(kind.item_type, place), place)
    if types.is_dictionary(kind) or types.is_run_end_encoded(kind) or _is_list(kind):
        inner = _conversion(kind.value_type, place)
        return _each(inner) if inner and _is_list(kind) else inner
    if types.is_float16(kind) or types.is_float32(kind):
        return _short_float
    if types.is_float64(kind):
        return _number
    if types.is_decimal(kind):
        return _decimal
    if types.is_temporal(kind):
        return _time
    return None


def _is_list(kind: Any) -> bool:
    from pyarrow import types

    tests = (
        types.is_list,
        types.is_large_list,
        types.is_fixed_size_list,
        types.is_list_view,
        types.is_large_list_view,
    )
    return any(test(kind) for test in tests)


def _extension_types() -> tuple[type, ...]:
    import pyarrow as pa

    return (pa.BaseExtensionType,)


def _extension(kind: Any, place: str) -> _Convert | None:
    """JSON kept as text (`datasets.Json`) is read as JSON is; a UUID becomes its text."""
    match kind.extension_name:
        case "arrow.json":
            return lambda text: parse_line(text, name=place, line=1)
        case "arrow.uuid":
            return str
        case _:
            return _conversion(kind.storage_type, place)


def _struct(fields: Mapping[str, _Convert | None]) -> _Convert:
    """An object without the keys that are null: an absent key is stored as one."""

    def convert(value: Mapping[str, Any]) -> dict[str, Any]:
        kept = {name: each for name, each in value.items() if each is not None}
        for name, inner in converted:
            if name in kept:
                kept[name] = inner(kept[name])
        return kept

    converted = [(name, inner) for name, inner in fields.items() if inner is not None]
    return convert


def _map(key: _Convert | None, item: _Convert | None, place: str) -> _Convert:
    def convert(pairs: Iterable[tuple[Any, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in pairs:
            text = str(key(name) if key else name)
            if text in found:
                raise DataError(f"{place}: the key {text!r} stands twice in a map", hint="keep one of them")
            found[text] = item(value) if item and value is not None else value
        return found

    return convert


def _each(convert: _Convert) -> _Convert:
    return lambda values: [None if value is None else convert(value) for value in values]


def _short_float(value: Any) -> float | None:
    """0.1 in 32 bits, not the 0.10000000149011612 that it is in 64."""
    import numpy as np

    number = np.float32(value)
    return None if np.isnan(number) else SourceFloat(str(number))


def _number(value: float) -> float | None:
    """A missing number is stored as NaN."""
    return value if value == value else None


def _decimal(value: Any) -> str:
    return format(value, "f")


def _time(value: Any) -> str:
    """The ISO 8601 text of a date or a time; a duration as Python spells it."""
    return str(value.isoformat()) if hasattr(value, "isoformat") else str(value)
