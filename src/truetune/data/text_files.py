"""The rows of .json, .jsonl and .txt files, one by one, nothing guessed and nothing rewritten."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

from truetune.data.examples import Location, Record
from truetune.data.json_text import JsonText, kind_of, parse_line
from truetune.data.sources import SourceFile
from truetune.data.splits import is_train, split_word
from truetune.data.streams import encoding_of, not_decoded, open_bytes, open_text, pass_over, reading, suffix_of
from truetune.errors import DataError

_ROW_FIELDS = {"instruction", "prompt", "question", "query", "input", "text", "messages", "conversations", "turns"}
_LISTS_OF_ROWS = {"instances", "tools", "functions", "chosen", "rejected"}
"""A JSON object with such a text or conversation, or such a list of objects, is a row, whatever it holds beside."""

_LOOKED_AT, _NAMED = 100_000, 5
"""Lines that are read behind a broken one, and those of them that are named."""

_Path = tuple[str, ...]


def read_jsonl(file: SourceFile) -> Iterator[Record]:
    """An object (or a conversation as a bare list) a line. An array under this name is read as .json is."""
    if _is_document(file):
        yield from read_json(file)
    else:
        yield from _read_lines(file)


def read_json(file: SourceFile) -> Iterator[Record]:
    """An array of objects, one record, an object that wraps its rows, splits of rows, or a bare conversation.

    JSON Lines under this name, and objects one after another, are read as such.
    """
    layout = _layout(file)
    path = _path_to_rows(file, layout)
    if layout.kind == "lines" and not path:
        yield from _read_lines(file)
        return
    with reading(file.path, file.name), open_text(file.path, newline="") as text:
        document = JsonText(text, file.name)
        number = 0
        while document.peek():
            for row in _rows_at(document, path):
                number += 1
                yield _record(row, Location(file.name, number, "record"))


def read_txt(file: SourceFile) -> Iterator[Record]:
    """Each line that is not blank, as a text."""
    with reading(file.path, file.name), open_text(file.path, newline="\n") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield Record({"text": line.removesuffix("\n").removesuffix("\r")}, Location(file.name, number))


def _read_lines(file: SourceFile) -> Iterator[Record]:
    name = file.name
    with reading(file.path, name), open_text(file.path, newline="\n") as text:
        lines = enumerate(text, start=1)
        for number, line in lines:
            if line.isspace():
                continue
            try:
                value = parse_line(line, name=name, line=number)
            except DataError as error:
                raise _with_others(error, lines) from error.__cause__
            yield _record(value, Location(name, number))


def _with_others(error: DataError, lines: Iterable[tuple[int, str]]) -> DataError:
    """The error of a line, with the lines behind it that are no JSON either, so that all can be mended at once."""
    others: list[int] = []
    with suppress(UnicodeDecodeError):
        others += (number for number, line in islice(lines, _LOOKED_AT) if not line.isspace() and not _is_json(line))
    if not others:
        return error
    more = "1 more line" if len(others) == 1 else f"{len(others):,} more lines"
    shown = ", ".join(map(str, others[:_NAMED])) + (" …" if len(others) > _NAMED else "")
    return DataError(f"{error.message} (and {more} like it: {shown})", hint=error.hint)


def _is_json(line: str) -> bool:
    try:
        parse_line(line, name="", line=0)
    except DataError:
        return False
    return True


def is_of_lines(file: SourceFile) -> bool:
    """True if each line of the file is a row, in UTF-8: it can be read from any line on."""
    suffix = suffix_of(file.path)
    if suffix not in (".jsonl", ".ndjson", ".txt"):
        return False
    with reading(file.path, file.name):
        if not encoding_of(file.path).startswith("utf-8"):
            return False
    return suffix == ".txt" or not _is_document(file)


def read_lines_from(file: SourceFile, *, row: int, offset: int) -> Iterator[tuple[int, int, Record]]:
    """The rows of a file of lines behind so many lines and bytes, each with the lines and bytes as it ends."""
    is_text = suffix_of(file.path) == ".txt"
    with reading(file.path, file.name), open_bytes(file.path) as stream:
        pass_over(stream, offset)
        for raw in stream:
            row, offset = row + 1, offset + len(raw)
            line = _decoded(raw, file.path, file.name, row)
            if line.strip():
                yield row, offset, _record_of_line(line, Location(file.name, row), is_text=is_text)


def _record_of_line(line: str, where: Location, *, is_text: bool) -> Record:
    if is_text:
        return Record({"text": line.removesuffix("\n").removesuffix("\r")}, where)
    return _record(parse_line(line, name=where.path, line=where.line), where)


def _decoded(raw: bytes, path: Path, name: str, line: int) -> str:
    try:
        return raw.decode("utf-8-sig" if line == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise not_decoded(path, name, line, error) from error


def _is_document(file: SourceFile) -> bool:
    """True if what is named JSON Lines is one JSON text."""
    with reading(file.path, file.name), open_text(file.path, newline="\n") as lines:
        first = next((line for line in lines if not line.isspace()), "").strip()
    return first == "{" or (first.startswith("[") and _layout(file).kind != "lines")


def _record(row: Any, where: Location) -> Record:
    if isinstance(row, dict):
        return Record(row, where)
    if isinstance(row, list) and row and _is_turn(row[0]):
        return Record({"messages": row}, where)
    raise DataError(f"{where}: expected an object, found {kind_of(row)}", hint='a row looks like {"text": "…"}')


def _is_turn(value: Any) -> bool:
    """Whether a list that starts with this is a conversation."""
    if not isinstance(value, dict):
        return False
    if isinstance(value.get("role"), str):
        return not value.keys().isdisjoint(("content", "parts", "tool_calls", "reasoning_content"))
    return isinstance(value.get("from"), str) and "value" in value


class _Layout(NamedTuple):
    """How the values of a JSON text stand in it; for one object, what each of its keys holds.

    "lines": several, the first on one line; "values": an array, or several; "object": one object.
    """

    kind: Literal["lines", "values", "object"]
    members: Mapping[str, str]


def _layout(file: SourceFile) -> _Layout:
    """Reads as far as it takes to know: to the first element of an array, to the end of a first object."""
    with reading(file.path, file.name), open_text(file.path, newline="") as text:
        document = JsonText(text, file.name)
        start = document.peek()
        if start not in ("[", "{"):
            raise _neither_list_nor_object(document, file)
        first_line = document.line
        if start == "[" and not _skip_conversation(document):
            return _Layout("values", {})
        members = {key: _content(document) for key in document.members()} if start == "{" else {}
        is_one_line = document.line == first_line
        if document.peek():
            return _Layout("lines" if is_one_line else "values", {})
        return _Layout("object" if start == "{" else "values", members)


def _neither_list_nor_object(document: JsonText, file: SourceFile) -> DataError:
    found = kind_of(document.value())
    return DataError(
        f"{file.name}: expected an array of objects, found {found}",
        hint="write [{…}, {…}], or one object a line in a .jsonl file",
    )


def _skip_conversation(document: JsonText) -> bool:
    """Passes over a list of turns; False, after its first element, for another list."""
    elements = document.array()
    if next(elements, "none") is not None or not _is_turn(document.value()):
        return False
    for _ in elements:
        document.value()
    return True


def _content(document: JsonText) -> str:
    """What the next value is: "rows" for a list of objects or of conversations, else its kind."""
    if document.peek() != "[":
        return kind_of(document.value())
    content = "an empty list"
    for number, _ in enumerate(document.array()):
        element = document.value()
        if number == 0:
            content = "rows" if _are_rows(element) else "a list"
    return content


def _are_rows(element: Any) -> bool:
    if isinstance(element, list):
        return bool(element) and _is_turn(element[0])
    return isinstance(element, dict) and not _is_turn(element)


def _path_to_rows(file: SourceFile, layout: _Layout) -> _Path:
    """The keys that lead to the rows; none if the document is itself an array or one row."""
    if file.field:
        path = tuple(file.field.split("."))
        return path + _wrapped(file, _members_at(file, path))
    if layout.kind == "object":
        return _wrapped(file, layout.members)
    return _wrapped(file, {})


def _wrapped(file: SourceFile, members: Mapping[str, str]) -> _Path:
    """The key under which an object holds its rows; none if it is a row."""
    lists = [key for key, content in members.items() if content == "rows"]
    if lists and all(map(split_word, lists)):
        empty = [key for key, content in members.items() if content == "an empty list" and split_word(key)]
        return (_key_of_split([*lists, *empty], file),)
    if not is_train(file.split):
        raise DataError(f"{file.name}: no split {file.split!r}: the file holds no splits", hint="leave the split out")
    if not lists or _is_row(members):
        return ()
    if len(lists) == 1:
        return (lists[0],)
    raise DataError(
        f"{file.name}: several lists of objects: {', '.join(lists)}", hint=f"name the rows': data.field: {lists[0]}"
    )


def _is_row(members: Mapping[str, str]) -> bool:
    return any(members.get(name) in ("text", "a list") for name in _ROW_FIELDS) or not _LISTS_OF_ROWS.isdisjoint(
        members
    )


def _key_of_split(keys: list[str], file: SourceFile) -> str:
    split = file.split or "train"
    found = [key for key in keys if key == split] or [key for key in keys if split_word(key) == split_word(split)]
    if len(found) != 1:
        what = "several splits" if found else "no split"
        raise DataError(
            f"{file.name}: {what} {split!r}; there are {', '.join(keys)}", hint=f"name one: split: {keys[0]}"
        )
    return found[0]


def _members_at(file: SourceFile, path: _Path) -> Mapping[str, str]:
    """What the object at the end of `path` holds; nothing for a list. DataError if there is none."""
    with reading(file.path, file.name), open_text(file.path, newline="") as text:
        document = JsonText(text, file.name)
        for depth, part in enumerate(path):
            keys = []
            for key in document.members() if document.peek() == "{" else ():
                keys.append(key)
                if key == part:
                    break
                document.skip()
            else:
                raise _no_field(file, path[:depth], keys)
        if document.peek() == "[":
            return {}
        if document.peek() == "{":
            return {key: _content(document) for key in document.members()}
        raise DataError(f"{file.name}: field {file.field} holds {kind_of(document.value())}, not rows", hint=None)


def _no_field(file: SourceFile, parents: _Path, keys: list[str]) -> DataError:
    at = f"under {'.'.join(parents)}" if parents else "at the top"
    there = f"an object with {', '.join(keys)}" if keys else "no object"
    return DataError(
        f"{file.name}: no field {file.field}: {at} is {there}", hint="data.field names keys, joined by dots"
    )


def _rows_at(document: JsonText, path: _Path) -> Iterator[Any]:
    """The elements of the list (or the one value) at the end of `path`; the rest is read over, to its end."""
    if path:
        for key in document.members():
            if key == path[0]:
                yield from _rows_at(document, path[1:])
            else:
                document.skip()
    elif document.peek() == "[":
        yield from _elements(document)
    else:
        yield document.value()


def _elements(document: JsonText) -> Iterator[Any]:
    """The rows of a list; a list of turns is one row."""
    elements = document.array()
    for _ in elements:
        first = document.value()
        if _is_turn(first):
            yield [first, *(document.value() for _ in elements)]
            return
        yield first
        break
    for _ in elements:
        yield document.value()
