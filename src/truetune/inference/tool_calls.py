"""Tool calls in answers, and whether they are the expected ones, as BFCL's AST check decides it.

Source: the Berkeley Function Calling Leaderboard (Patil et al., ICML 2025), `ast_checker`: the function's name, its
required arguments, and each value by type, strings without case, blanks and , . / - _ * ^.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from truetune.data.calls import calls_of_text
from truetune.data.rules import RowError


@dataclass(frozen=True, slots=True)
class Call:
    """A call of a tool."""

    name: str
    arguments: Mapping[str, Any]


def calls_of_turn(calls: Sequence[Mapping[str, Any]]) -> tuple[Call, ...]:
    """The calls of a message, in OpenAI's form."""
    return tuple(Call(call["function"]["name"], call["function"].get("arguments") or {}) for call in calls)


def called_tools(text: str) -> tuple[Mapping[str, Any], ...]:
    """The calls that an answer holds as JSON, in OpenAI's form: alone or in lists, whatever markup is around them."""
    return tuple(call for piece in _json_pieces(text) for call in _calls(piece))


def calls_in(text: str) -> tuple[Call, ...]:
    """The same calls, to compare them."""
    return calls_of_turn(called_tools(text))


def _calls(piece: str) -> list[dict[str, Any]]:
    try:
        return calls_of_text(piece, "answer") or []
    except RowError:
        return []


def _json_pieces(text: str) -> Iterator[str]:
    """Each object or array of the text that is whole, the outermost ones."""
    decoder, place = json.JSONDecoder(), 0
    while found := re.compile(r"[{\[]").search(text, place):
        try:
            _, place = decoder.raw_decode(text, found.start())
            yield text[found.start() : place]
        except (ValueError, RecursionError):
            place = found.start() + 1


def calls_match(found: Sequence[Call], expected: Sequence[Call], *, tools: Sequence[Any] = ()) -> bool:
    """True if each expected call is among those found, once, and there is no other; their order is free."""
    if len(found) != len(expected):
        return False
    left = list(found)
    for wanted in expected:
        place = next((index for index, call in enumerate(left) if _is_same(call, wanted, tools)), None)
        if place is None:
            return False
        del left[place]
    return True


def _is_same(found: Call, wanted: Call, tools: Sequence[Any]) -> bool:
    if found.name != wanted.name or not found.arguments.keys() <= wanted.arguments.keys():
        return False
    schema = _parameters(wanted.name, tools)
    return all(
        _equal(found.arguments[name], value) if name in found.arguments else _may_lack(name, value, schema)
        for name, value in wanted.arguments.items()
    )


def _parameters(name: str, tools: Sequence[Any]) -> Mapping[str, Any]:
    """The schema of a tool's arguments; empty where nothing declares it."""
    functions = [tool.get("function") or tool for tool in tools if isinstance(tool, Mapping)]
    found = next((each.get("parameters") for each in functions if each.get("name") == name), None)
    return found if isinstance(found, Mapping) else {}


def _may_lack(name: str, value: Any, schema: Mapping[str, Any]) -> bool:
    """An optional argument may be left out where its default is what was expected."""
    declared = (schema.get("properties") or {}).get(name)
    if not isinstance(declared, Mapping) or name in (schema.get("required") or ()):
        return False
    return "default" in declared and _equal(declared["default"], value)


def _equal(found: Any, wanted: Any) -> bool:
    match found, wanted:
        case bool(), _:
            return found is wanted
        case _, bool():
            return False
        case (int() | float(), int() | float()):
            return found == wanted
        case str(), str():
            return _plain(found) == _plain(wanted)
        case Mapping(), Mapping():
            return found.keys() == wanted.keys() and all(_equal(found[name], wanted[name]) for name in wanted)
        case (list() | tuple(), list() | tuple()):
            return len(found) == len(wanted) and all(map(_equal, found, wanted))
        case _:
            return found is None and wanted is None


def _plain(text: str) -> str:
    return re.sub(r"[ ,./\-_*^]", "", text).lower().replace("'", '"')
