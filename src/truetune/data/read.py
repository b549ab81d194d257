"""Files and Python rows into records, changing nothing: no type is guessed, no value rewritten.

Rows are read here and not by `datasets`, whose loaders give a column one type and so turn "007" into 7 and
date-like text into dates.
"""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from truetune.data.examples import Location, Record
from truetune.errors import DataError

_LONGEST_FIELD = 2**31 - 1  # What every platform's C long holds.
_BOMS = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16", b"\xef\xbb\xbf": "utf-8-sig"}


class SourceFloat(float):
    """A JSON number that remembers how the file spells it: `1.10` stays "1.10" as text."""

    source: str

    def __new__(cls, source: str) -> "SourceFloat":
        number = super().__new__(cls, source)
        number.source = source
        return number

    def __str__(self) -> str:
        return self.source


def read_records(source: str | Path | Iterable[Mapping[str, Any]]) -> Iterator[Record]:
    """The rows of a .json, .jsonl or .csv file, or of Python (mappings, or a `datasets.Dataset`), one by one.

    Raises DataError, naming file and line, for a file that is missing, unreadable or broken.
    """
    if isinstance(source, str | Path):
        yield from _read_file(Path(source))
        return
    for number, row in enumerate(source, start=1):
        where = Location("data", number, "row")
        if not isinstance(row, Mapping):
            raise DataError(
                f"{where}: a row must be a mapping of fields, found {kind_of(row)}",
                hint='give a list of rows such as {"instruction": "…", "output": "…"}',
            )
        yield Record(row, where)


def require_readable(path: Path) -> None:
    """DataError if there is no such file, or its kind is not read: known before any work begins."""
    if not path.exists():
        raise DataError(
            f"data file not found: {path}", hint="give the path of a .json, .jsonl or .csv file that exists"
        )
    if path.is_dir():
        raise DataError(f"{path} is a folder", hint="give one .json, .jsonl or .csv file")
    if path.suffix.lower() not in _READERS:
        raise DataError(
            f"{path}: files ending in {path.suffix or 'nothing'} are not read",
            hint="use .json (an array of objects), .jsonl (an object a line) or .csv (with a header)",
        )


def _read_file(path: Path) -> Iterator[Record]:
    require_readable(path)
    yield from _READERS[path.suffix.lower()](path)


def _read_jsonl(path: Path) -> Iterator[Record]:
    """An object a line; a file that starts with `[` holds an array under the wrong name."""
    lines = ((number, line) for number, line in _lines(path) if line.strip())
    for index, (number, line) in enumerate(lines):
        if index == 0 and line.lstrip().startswith("["):
            yield from _read_array(path)
            return
        yield _record(_parse(line, path=path, line=number), Location(str(path), number))


def _read_json(path: Path) -> Iterator[Record]:
    """An array of objects; JSON Lines under the name .json are read as such."""
    first = next((line for _, line in _lines(path) if line.strip()), "")
    if first.lstrip().startswith("{") and _is_json(first):
        yield from _read_jsonl(path)
    else:
        yield from _read_array(path)


def _read_array(path: Path) -> Iterator[Record]:
    document = _parse(_text(path), path=path, line=1)
    if not isinstance(document, list):
        raise DataError(
            f"{path}: expected an array of objects, found {kind_of(document)}",
            hint="write [{…}, {…}], or one object a line in a .jsonl file",
        )
    for number, row in enumerate(document, start=1):
        yield _record(row, Location(str(path), number, "record"))


def _read_csv(path: Path) -> Iterator[Record]:
    """Records under a header; every value is text, exactly as it stands; an empty cell is an empty text."""
    csv.field_size_limit(_LONGEST_FIELD)
    reader = csv.reader(io.StringIO(_text(path), newline=""), strict=True)
    rows = filter(None, reader)
    try:
        header = _header(next(rows, []), path)
        for number, row in enumerate(rows, start=1):
            where = Location(str(path), number, "record")
            if len(row) != len(header):
                raise DataError(
                    f"{where} (ends on line {reader.line_num}): {len(row)} values under {len(header)} columns",
                    hint='a value that holds a comma or a line break must stand in double quotes: "a, b"',
                )
            yield Record(dict(zip(header, row, strict=True)), where)
    except csv.Error as error:
        raise DataError(
            f"{path}, line {reader.line_num}: {error}",
            hint='a value in double quotes must end with one; a double quote inside it is written twice: "a ""b"""',
        ) from error


def _header(names: list[str], path: Path) -> list[str]:
    if not names:
        raise DataError(f"{path}: the file is empty", hint="the first line must name the columns")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(
            f"{path}, line 1: two columns are named {twice[0]!r}, so one of them would be lost",
            hint="give every column a name of its own",
        )
    return names


_READERS = {".jsonl": _read_jsonl, ".ndjson": _read_jsonl, ".json": _read_json, ".csv": _read_csv}


def _record(row: Any, where: Location) -> Record:
    if not isinstance(row, dict):
        raise DataError(f"{where}: expected an object, found {kind_of(row)}", hint='a row looks like {"text": "…"}')
    return Record(row, where)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines, split at line feeds only: U+2028 and the like are part of a text."""
    encoding = _encoding(path)
    if encoding == "utf-16":
        yield from enumerate(_text(path).split("\n"), start=1)
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            yield number, _decode(line.rstrip(b"\r\n"), encoding if number == 1 else "utf-8", path=path, line=number)


def _text(path: Path) -> str:
    return _decode(path.read_bytes(), _encoding(path), path=path, line=1)


def _encoding(path: Path) -> str:
    with path.open("rb") as file:
        start = file.read(3)
    return next((name for bom, name in _BOMS.items() if start.startswith(bom)), "utf-8")


def _decode(data: bytes, encoding: str, *, path: Path, line: int) -> str:
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        line += data.count(b"\n", 0, error.start)
        name = encoding.removesuffix("-sig").upper()
        raise DataError(
            f"{path}, line {line}: not valid {name} (byte 0x{data[error.start]:02x})",
            hint="save the file as UTF-8",
        ) from error


def _parse(text: str, *, path: Path, line: int) -> Any:
    try:
        return json.loads(text, parse_float=SourceFloat, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        place = f"{path}, line {line + error.lineno - 1}, column {error.colno}"
        raise DataError(f"{place}: not valid JSON: {error.msg}", hint=_json_hint(text)) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}, line {line}: not valid JSON: {error}", hint=_json_hint(text)) from error


def _json_hint(text: str) -> str:
    if "\0" in text:
        return "the file looks like UTF-16 without a byte order mark: save it as UTF-8"
    return "a .json file holds one array of objects, a .jsonl file one whole object a line"


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON value")


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def kind_of(value: Any) -> str:
    """The JSON name of a value's type, for messages."""
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case int() | float():
            return "a number"
        case str():
            return "text"
        case Mapping():
            return "an object"
        case list() | tuple():
            return "a list"
        case _:
            return type(value).__name__
