"""The values of a row's fields: texts, and what stands in texts as JSON; all else is refused by place and kind."""

import ast
import contextlib
import json
import math
import warnings
from collections.abc import Mapping
from typing import Any

from truetune.data.json_text import kind_of, parse_line
from truetune.data.rules import RowError
from truetune.errors import DataError

HALF_A_PAIR = "half of a surrogate pair (\\ud800…\\udfff)"
"""What a text may not hold: JSON can spell it, no tokenizer can read it."""
_HUGE = 1e300  # An integer of JSON may be too large for a float.


def read_text(value: Any, place: str) -> str:
    """The value as text: null (and NaN, which is pandas' null) is empty, numbers and booleans are their JSON text."""
    if isinstance(value, str):
        if not value.isascii():
            require_unicode(value, place)
        return value
    if value is None:
        return ""
    if isinstance(value, bool | int | float):
        return _number_text(value, place)
    raise RowError("wrong-type", f"{_last(place)} must be text, found {kind_of(value)}", field=place)


def is_number(value: Any) -> bool:
    """True for what read_text turns into text: a number or a boolean."""
    return isinstance(value, bool | int | float) and not is_null(value)


def is_null(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _number_text(value: float, place: str) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if is_null(value):
        return ""
    try:
        text = str(value)
    except ValueError:  # Python writes no integer of more than 4,300 digits.
        text = "inf"
    if text.endswith("inf"):
        raise RowError("wrong-type", f"{_last(place)} is a number that JSON cannot write", field=place)
    return text


def json_text(value: Any, place: str) -> str:
    """What is not text (a tool's result, as a rule) as JSON."""
    try:
        return read_text(json.dumps(value, ensure_ascii=False, default=str), place)
    except (RecursionError, TypeError, ValueError) as error:
        raise RowError("wrong-type", "is nested too deeply, or no JSON", field=place) from error


def decode_json(value: Any, place: str, *, expected: str) -> Any:
    """The value, also when it is stored as JSON text."""
    if not isinstance(value, str):
        return value
    try:
        return parse_line(value, name=place, line=1)
    except DataError as error:
        raise RowError(
            "broken-json", f"{_last(place)} holds text that is not valid JSON ({expected} is expected)", field=place
        ) from error


def decode_list(value: Any, place: str, *, expected: str) -> Any:
    """The value, also when it is stored as JSON text, or as Python writes it (as pandas does, into CSV)."""
    try:
        return decode_json(value, place, expected=expected)
    except RowError:
        literal = _python_literal(value)
        if literal is None:
            raise
        return literal


def _python_literal(text: str) -> Any:
    """The list or object that the text is in Python's spelling; None if it is none."""
    if "'" not in text or not text.lstrip().startswith(("[", "{")):
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # "\d" in a text.
            value = ast.literal_eval(text.strip())
            return value if _is_json(value) else None
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None


def _is_json(value: Any) -> bool:
    """False for what only Python spells: bytes, sets, complex numbers, tuples as keys."""
    match value:
        case dict():
            return all(isinstance(key, str | int | float | None) for key in value) and all(
                map(_is_json, value.values())
            )
        case list() | tuple():
            return all(map(_is_json, value))
        case _:
            return value is None or isinstance(value, str | int | float)


def require_unicode(value: Any, place: str) -> None:
    """Refuses half of a surrogate pair in any text of the value."""
    waiting = [value]
    while waiting:
        match waiting.pop():
            case str(text):
                _require_whole(text, place)
            case Mapping() as fields:
                waiting += fields.keys()
                waiting += fields.values()
            case list() | tuple() as values:
                waiting += values


def _require_whole(text: str, place: str) -> None:
    if not is_whole(text):
        raise RowError("broken-text", f"holds {HALF_A_PAIR}", field=place)


def is_whole(text: str) -> bool:
    """False for a text with half of a surrogate pair in it."""
    if text.isascii():  # Known without reading it.
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _last(place: str) -> str:
    """`content` of `messages[3].content`."""
    return place.rpartition(".")[2]


def read_weight(value: Any, place: str) -> float:
    """The weight of a row's loss: a positive number, 1 where there is none."""
    if value is None or value == "":
        return 1.0
    number = value
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            number = float(value)
    if isinstance(number, bool) or not isinstance(number, int | float) or not 0 <= number < _HUGE:
        shown = number if is_number(number) and abs(number) < _HUGE else kind_of(value)
        raise RowError(
            "wrong-type",
            f"weight must be a positive number, found {shown}",
            field=place,
            hint=f"it scales the row's loss; a {place} of another meaning must be named otherwise",
        )
    if number == 0:
        raise RowError("zero-weight", "the row's weight is 0", field=place)
    return float(number)
