"""JSON that is read as it is written: numbers keep their spelling, no key is lost, memory stays flat."""

import json
import re
from collections.abc import Iterator, Mapping
from typing import IO, Any

from truetune.data.remedies import json_remedy
from truetune.errors import DataError

_WINDOW = 1 << 18
_LONGEST_TOKEN = 12
"""No JSON token that may be cut in two, apart from a string, is longer: `-Infinity`, half a surrogate pair."""

_SPACE = re.compile(r"[ \t\n\r]*")


class SourceFloat(float):
    """A JSON number that remembers how the file spells it: `1.10` stays "1.10" as text."""

    source: str

    def __new__(cls, source: str) -> "SourceFloat":
        number = super().__new__(cls, source)
        number.source = source
        return number

    def __str__(self) -> str:
        return self.source


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


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of which no key is lost. Costs 10 to 30 % of the parsing."""
    fields = dict(pairs)
    if len(fields) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} stands twice in one object, so one of its values would be lost")
    return fields


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON value")


_DECODER = json.JSONDecoder(parse_float=SourceFloat, parse_constant=_refuse_constant, object_pairs_hook=_object)


def parse_line(text: str, *, name: str, line: int) -> Any:
    """The one JSON value of a line. DataError, with the column, if it is not one."""
    start = 0 if text.startswith("{") else _end_of_space(text, 0)
    try:
        value, end = _DECODER.raw_decode(text, start)
        rest = _end_of_space(text, end)
        if rest == len(text):
            return value
        error = json.JSONDecodeError("Extra data", text, rest)
    except json.JSONDecodeError as found:
        error = found
    except (ValueError, RecursionError) as found:
        hint = json_remedy(text, start, str(found))
        raise DataError(f"{name}, line {line}: not valid JSON: {found}", hint=hint) from found
    place = f"{name}, line {line}, column {error.pos + 1}"
    raise DataError(
        f"{place}: not valid JSON: {error.msg.removesuffix(' at')}", hint=json_remedy(text, error.pos, error.msg)
    ) from error


class JsonText:
    """A JSON text read value by value, only a window of it in memory at a time.

    `array` and `members` stop at each element or value, and the caller reads it before going on. Every error is a
    DataError with the line and column in the whole file; a text that is cut off is one.
    """

    def __init__(self, file: IO[str], name: str) -> None:
        self._file = file
        self._name = name
        self._text = ""
        self._at = 0
        self._line = 1  # The place of the window's first character.
        self._column = 1
        self._has_more = True

    @property
    def line(self) -> int:
        """The physical line of what was read last."""
        return self._place(self._at)[0]

    def peek(self) -> str:
        """The next character that is no space; empty at the end."""
        while True:
            self._at = _end_of_space(self._text, self._at)
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                return ""

    def value(self) -> Any:
        """The next value whole."""
        self.peek()
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                if self._may_be_cut(error) and self._more():
                    continue
                raise self._error(error.msg, error.pos) from error
            except (ValueError, RecursionError) as error:
                raise self._error(str(error), self._at) from error
            if isinstance(value, int | float) and end + len("e+") >= len(self._text) and self._more():
                continue  # It may go on.
            self._at = end
            return value

    def skip(self) -> None:
        """Passes over the next value, a list element by element."""
        if self.peek() == "[":
            for _ in self.array():
                self.value()
        else:
            self.value()

    def array(self) -> Iterator[None]:
        """Stops at each element of the list that comes next."""
        self._take("[")
        if self.peek() == "]":
            self._take("]")
            return
        while True:
            yield
            if self.peek() == "]":
                self._take("]")
                return
            self._take(",")

    def members(self) -> Iterator[str]:
        """Stops at the value of each key of the object that comes next."""
        self._take("{")
        if self.peek() == "}":
            self._take("}")
            return
        seen: set[str] = set()
        while True:
            yield self._key(seen)
            if self.peek() == "}":
                self._take("}")
                return
            self._take(",")

    def _key(self, seen: set[str]) -> str:
        if self.peek() != '"':
            raise self._error("Expecting property name enclosed in double quotes", self._at)
        start, key = self._place(self._at), str(self.value())
        if key in seen:
            raise self._error(f"the key {key!r} stands twice in one object", self._at, place=start)
        seen.add(key)
        self._take(":")
        return key

    def _take(self, character: str) -> None:
        if self.peek() != character:
            raise self._error(f"Expecting {character!r}", self._at)
        self._at += 1

    def _more(self) -> bool:
        """Reads on, twice as much as is kept, so that a long value is not tried too often."""
        more = self._file.read(max(_WINDOW, len(self._text) - self._at)) if self._has_more else ""
        self._has_more = bool(more)
        if more:
            self._line, self._column = self._place(self._at)
            self._text = self._text[self._at :] + more
            self._at = 0
        return self._has_more

    def _may_be_cut(self, error: json.JSONDecodeError) -> bool:
        return error.msg.startswith("Unterminated string") or error.pos >= len(self._text) - _LONGEST_TOKEN

    def _place(self, at: int) -> tuple[int, int]:
        line_feeds = self._text.count("\n", 0, at)
        if not line_feeds:
            return self._line, self._column + at
        return self._line + line_feeds, at - self._text.rindex("\n", 0, at)

    def _error(self, message: str, at: int, *, place: tuple[int, int] | None = None) -> DataError:
        line, column = place or self._place(at)
        hint = json_remedy(self._text, at, message)
        return DataError(f"{self._name}, line {line}, column {column}: not valid JSON: {message}", hint=hint)


def _end_of_space(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at
