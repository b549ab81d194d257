"""The part of Go's text/template that our Modelfiles are written in, evaluated: what Ollama makes of a conversation.

https://pkg.go.dev/text/template: if, else if, else, range over a list, variables, and the functions in _FUNCTIONS.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

_ACTION = re.compile(r"(\s*)\{\{(- )?\s*(.*?)\s*( -)?\}\}(\s*)", re.DOTALL)
_WORD = re.compile(r'"(?:[^"\\]|\\.)*"|\(|\)|:=|=|,|[^\s()",=:]+')


class GoTemplateError(ValueError):
    """A template that is none, or more of Go than is evaluated here."""


def render_go(template: str, data: Mapping[str, Any]) -> str:
    """The text that the template makes of `data`, whose keys are fields: {"System": …, "Messages": [{"Role": …}]}."""
    pieces = list(_pieces(template))
    body, rest = _parse(pieces)
    if rest:
        raise GoTemplateError(f"{rest[0]} stands alone")
    return "".join(_evaluate(body, _Scope(data, data, {})))


@dataclass(frozen=True, slots=True)
class _Action:
    words: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Block:
    """An `if` or a `range`, with what is done otherwise."""

    words: tuple[str, ...]
    body: Sequence[Any]
    otherwise: Sequence[Any]


@dataclass(slots=True)
class _Scope:
    dot: Any
    root: Any
    variables: dict[str, Any] = field(default_factory=dict)


def _pieces(template: str) -> Iterator[str | _Action]:
    """Texts and actions; `{{- ` and ` -}}` take the blanks beside them."""
    place = 0
    while found := _ACTION.search(template, place):
        yield template[place : found.start()] + ("" if found[2] else found[1])
        yield _Action(tuple(_WORD.findall(found[3])))
        place = found.end() if found[4] else found.start(5)
    yield template[place:]


def _parse(pieces: list[Any]) -> tuple[list[Any], list[Any]]:
    """The pieces up to an `else` or `end` that belongs to who asks, and the rest from there on."""
    body: list[Any] = []
    while pieces:
        piece, pieces = pieces[0], pieces[1:]
        match piece:
            case _Action(words=("if" | "range", *_)):
                block, pieces = _block(piece.words, pieces)
                body.append(block)
            case _Action(words=("else" | "end", *_)):
                return body, [piece, *pieces]
            case _:
                body.append(piece)
    return body, []


def _block(words: tuple[str, ...], pieces: list[Any]) -> tuple[_Block, list[Any]]:
    body, rest = _parse(pieces)
    otherwise: list[Any] = []
    if rest and rest[0].words[:2] == ("else", "if"):
        nested, rest = _block(rest[0].words[1:], rest[1:])
        return _Block(words, body, [nested]), rest
    if rest and rest[0].words == ("else",):
        otherwise, rest = _parse(rest[1:])
    if not rest or rest[0].words != ("end",):
        raise GoTemplateError(f"{' '.join(words)} has no end")
    return _Block(words, body, otherwise), rest[1:]


def _evaluate(body: Sequence[Any], scope: _Scope) -> Iterator[str]:
    for piece in body:
        match piece:
            case str():
                yield piece
            case _Block(words=("if", *condition)):
                taken = piece.body if _value(condition, scope) else piece.otherwise
                yield from _evaluate(taken, scope)
            case _Block(words=("range", *words)):
                yield from _repeated(piece, words, scope)
            case _Action(words=(name, ":=" | "=", *words)):
                scope.variables[name] = _value(words, scope)
            case _Action(words=words):
                yield str(_value(list(words), scope))


def _repeated(block: _Block, words: Sequence[str], scope: _Scope) -> Iterator[str]:
    names: Sequence[str] = ()
    if ":=" in words:
        place = list(words).index(":=")
        names, words = [word for word in words[:place] if word != ","], words[place + 1 :]
    for index, item in enumerate(_value(list(words), scope)):
        # Variables of the outside stay the same ones: `$first = false` is seen by the next round.
        scope.variables.update(zip(names, (index, item), strict=False))
        inner = _Scope(item, scope.root, scope.variables)
        yield from _evaluate(block.body, inner)


def _value(words: Sequence[str], scope: _Scope) -> Any:
    values, rest = _operands(list(words), scope)
    if rest:
        raise GoTemplateError(f"cannot read {' '.join(words)}")
    first, *others = values
    return first(*others) if callable(first) else first


def _operands(words: list[str], scope: _Scope) -> tuple[list[Any], list[str]]:
    values: list[Any] = []
    while words and words[0] != ")":
        word, words = words[0], words[1:]
        if word == "(":
            inner, words = _operands(words, scope)
            values.append(inner[0](*inner[1:]) if callable(inner[0]) else inner[0])
            words = words[1:]
        else:
            values.append(_operand(word, scope))
    return values, words


def _operand(word: str, scope: _Scope) -> Any:
    if word.startswith('"'):
        return json.loads(word)
    if word.lstrip("-").isdigit():
        return int(word)
    if word in ("true", "false"):
        return word == "true"
    if word in _FUNCTIONS:
        return _FUNCTIONS[word]
    if not word.startswith((".", "$")):
        raise GoTemplateError(f"{word} is not known here")
    start, *fields = word.split(".")
    value = scope.dot if start == "" else scope.root if start == "$" else scope.variables[start]
    for name in filter(None, fields):
        value = value[name]
    return value


_FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "eq": lambda left, *right: left in right,
    "ne": lambda left, right: left != right,
    "gt": lambda left, right: left > right,
    "and": lambda *values: next((value for value in values if not value), values[-1]),
    "or": lambda *values: next((value for value in values if value), values[-1]),
    "not": lambda value: not value,
    "len": len,
    "slice": lambda values, start: values[start:],
}
