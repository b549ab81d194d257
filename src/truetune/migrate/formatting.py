"""A script's formatting function as data.template: which text it puts around a row's fields, read and not run."""

import ast
import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from truetune.migrate.outcomes import Leave, Note, Outcome, Set
from truetune.migrate.values import called_name

_REMEDY = (
    "write it as a text with {instruction}, {input} and {output} in data.template, or pass formatting= in Python"
)
_ROWS = "write such rows to a file, or pass formatting= in Python"
_ALPACA = "Below is an instruction that describes a task"
_SLOTS: Mapping[str, tuple[str, ...]] = {
    "instruction": ("instruction", "question", "query"),
    "input": ("input", "context"),
    "output": ("output", "response", "answer", "target"),
}
"""Fields that are read as each slot by themselves (data/fields.py)."""


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of the text: as it stands, a row's field, a special token, or a rendered chat."""

    kind: Literal["text", "field", "eos", "bos", "chat"]
    value: str = ""


Parts = tuple[Part, ...]


@dataclass(slots=True)
class _Reading:
    """A function as it is read: what its names hold, and the texts it makes."""

    row: str
    constants: Mapping[str, Any]
    names: dict[str, Parts] = field(default_factory=dict)
    lists: dict[str, list[Parts | None]] = field(default_factory=dict)
    made: list[Parts | None] = field(default_factory=list)
    keys: set[str] = field(default_factory=set)


def template_of_function(function: ast.FunctionDef | ast.Lambda, constants: Mapping[str, Any]) -> Iterator[Outcome]:
    """What a formatting function says in our words: a template and the fields it reads, or why it cannot be read."""
    if not function.args.args:
        yield Leave(f"the function takes no row: {_REMEDY}")
        return
    reading = _Reading(function.args.args[0].arg, constants)
    if isinstance(function, ast.Lambda):
        _returned(function.body, reading)
    else:
        _read(function.body, reading)
    if reading.keys - {"text"}:
        yield Leave(f"it makes the fields {', '.join(sorted(reading.keys))}: {_ROWS}")
        return
    texts = list(dict.fromkeys(reading.made))
    if not texts or any(made is None for made in texts):
        yield Leave(f"the function cannot be read: {_REMEDY}")
        return
    yield from _template([made for made in texts if made is not None])


# --- from code to parts -----------------------------------------------------------------------------------


def _read(body: Sequence[ast.stmt], reading: _Reading) -> None:
    for statement in body:
        match statement:
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                _assign(name, value, reading)
            case ast.AugAssign(target=ast.Name(id=name), op=ast.Add(), value=value) if name in reading.names:
                _add(name, value, reading)
            case ast.For(target=target, iter=source, body=inner):
                _bind(target, source, reading)
                _read(inner, reading)
            case ast.If(body=inner, orelse=other):
                before = dict(reading.names)
                _read(inner, reading)
                reading.names = before
                _read(other, reading)
            case ast.Expr(value=ast.Call(func=ast.Attribute(value=ast.Name(id=name), attr="append"), args=[value])):
                reading.lists.setdefault(name, []).append(_parts(value, reading))
            case ast.Return(value=ast.expr() as value):
                _returned(value, reading)


def _assign(name: str, value: ast.expr, reading: _Reading) -> None:
    if isinstance(value, ast.List) and not value.elts:
        reading.lists[name] = []
    elif isinstance(value, ast.ListComp):
        reading.lists[name] = _comprehension(value, reading)
    elif (found := _parts(value, reading)) is not None:
        # A name that two branches give a text of their own keeps both until it is returned.
        reading.names[name] = found
        reading.lists.setdefault(name, []).append(found) if _has_text(found) else None
    else:
        reading.names.pop(name, None)
        reading.lists.setdefault(name, []).append(None)


def _has_text(parts: Parts) -> bool:
    return any(part.kind in ("text", "chat") for part in parts)


def _add(name: str, value: ast.expr, reading: _Reading) -> None:
    more = _parts(value, reading)
    reading.lists[name] = [
        made + more if made is not None and more is not None else None for made in reading.lists.get(name, [])
    ]
    if more is not None:
        reading.names[name] += more


def _bind(target: ast.expr, source: ast.expr, reading: _Reading) -> None:
    """The names of a loop over columns: each is the field that its column is."""
    match target, source:
        case ast.Tuple(elts=names), ast.Call(args=columns) if called_name(source) == "zip":
            for name, column in zip(names, columns, strict=False):
                _bind(name, column, reading)
        case ast.Name(id=name), _ if (found := _parts(source, reading)) is not None:
            reading.names[name] = found


def _comprehension(node: ast.ListComp, reading: _Reading) -> list[Parts | None]:
    _bind(node.generators[0].target, node.generators[0].iter, reading)
    return [_parts(node.elt, reading)]


def _returned(node: ast.expr, reading: _Reading) -> None:
    match node:
        case ast.Dict(keys=keys, values=values):
            for key, value in zip(keys, values, strict=True):
                named = str(key.value) if isinstance(key, ast.Constant) else "?"
                reading.keys.add(named)
                if named == "text":
                    _returned(value, reading)
        case ast.Name(id=name) if reading.lists.get(name):
            reading.made += reading.lists[name]
        case ast.List(elts=[inner]):
            _returned(inner, reading)
        case ast.ListComp():
            reading.made += _comprehension(node, reading)
        case _:
            reading.made.append(_parts(node, reading))


def _parts(node: ast.expr, reading: _Reading) -> Parts | None:
    """The pieces of a text; None if it is no text that can be read."""
    match node:
        case ast.Constant(value=str(text)):
            return (Part("text", text),)
        case ast.Name(id=name):
            return reading.names.get(name) or _constant(name, reading)
        case ast.JoinedStr(values=inner):
            return _joined([each.value if isinstance(each, ast.FormattedValue) else each for each in inner], reading)
        case ast.BinOp(op=ast.Add(), left=left, right=right):
            return _joined([left, right], reading)
        case ast.Subscript(value=ast.Name(id=name), slice=ast.Constant(value=str(column))) if name == reading.row:
            return (Part("field", column),)
        case ast.Subscript(value=base, slice=ast.Name()):
            return _parts(base, reading)
        case ast.Attribute(attr="eos_token" | "bos_token" as token):
            return (Part("eos" if token == "eos_token" else "bos"),)
        case ast.Call():
            return _call(node, reading)
        case _:
            return None


def _constant(name: str, reading: _Reading) -> Parts | None:
    value = reading.constants.get(name)
    if isinstance(value, str):
        return (Part("text", value),)
    return (Part("eos"),) if str(value).endswith(".eos_token") else None


def _joined(nodes: Sequence[ast.expr], reading: _Reading) -> Parts | None:
    found = [_parts(node, reading) for node in nodes]
    if any(parts is None for parts in found):
        return None
    return tuple(part for parts in found if parts is not None for part in parts)


def _call(node: ast.Call, reading: _Reading) -> Parts | None:
    match node:
        case ast.Call(func=ast.Attribute(attr="apply_chat_template")):
            return (Part("chat"),)
        case ast.Call(
            func=ast.Attribute(value=ast.Name(id=name), attr="get"), args=[ast.Constant(value=str(column)), *_]
        ):
            return (Part("field", column),) if name == reading.row else None
        case ast.Call(func=ast.Attribute(value=base, attr="strip" | "rstrip" | "lstrip"), args=[]):
            return _parts(base, reading)
        case ast.Call(func=ast.Name(id="str"), args=[inner]):
            return _parts(inner, reading)
        case ast.Call(func=ast.Attribute(value=base, attr="format"), args=args, keywords=keywords):
            return _formatted(_parts(base, reading), args, keywords, reading)
        case _:
            return None


def _formatted(
    base: Parts | None, args: Sequence[ast.expr], keywords: Sequence[ast.keyword], reading: _Reading
) -> Parts | None:
    """`"…{}…{name}…".format(…)`: the text with the arguments' pieces in its places."""
    if base is None or any(part.kind != "text" for part in base):
        return None
    named = {word.arg: word.value for word in keywords if word.arg}
    waiting, made = list(args), list[Part]()
    try:
        pieces = list(string.Formatter().parse("".join(part.value for part in base)))
    except ValueError:
        return None
    for literal, place, _, _ in pieces:
        made.append(Part("text", literal))
        if place is None:
            continue
        index = int(place) if place.isdigit() else None
        source = named.get(place) or (args[index] if index is not None and index < len(args) else None)
        if place == "" and waiting:
            source = waiting.pop(0)
        if source is None or (inner := _parts(source, reading)) is None:
            return None
        made += inner
    return tuple(part for part in made if part.kind != "text" or part.value)


# --- from parts to a template -----------------------------------------------------------------------------


def _template(texts: Sequence[Parts]) -> Iterator[Outcome]:
    if all(part.kind in ("chat", "eos", "bos") for made in texts for part in made):
        yield Set("data.template", "model")
    elif len(texts) > 1:
        if all(made[0].value.lstrip().startswith(_ALPACA) for made in texts):
            yield Set("data.template", "alpaca")
            yield Note("its texts begin as Alpaca's prompts: data.template: alpaca has these to the letter")
        else:
            yield Leave(f"the function makes {len(texts)} texts, and a template is one: {_REMEDY}")
    else:
        yield from _one(texts[0])


def _one(made: Parts) -> Iterator[Outcome]:
    names = list(dict.fromkeys(part.value for part in made if part.kind == "field"))
    slots = _slots(names)
    if slots is None or any(part.kind == "chat" for part in made):
        yield Leave(
            f"a template has an instruction, an input and an output; it reads {', '.join(names) or 'none'}: {_REMEDY}"
        )
        return
    text = "".join(f"{{{slots[part.value]}}}" if part.kind == "field" else part.value for part in made)
    yield Set("data.template", text)
    if renamed := {name: slot for name, slot in slots.items() if name not in _SLOTS[slot]}:
        yield Set("data.columns", renamed)
    if not any(part.kind == "eos" for part in made):
        yield Note(
            "the script's text ends without an end-of-sequence token; here each answer is learned with its stop token"
        )


def _slots(names: Sequence[str]) -> dict[str, str] | None:
    """Which field is the instruction, which the input, which the output: by name, else by their order."""
    by_name = {name: slot for name in names for slot, known in _SLOTS.items() if name.lower() in known}
    if (
        len(by_name) == len(names)
        and {"instruction", "output"} <= set(by_name.values())
        and len(set(by_name.values())) == len(names)
    ):
        return by_name
    match names:
        case [question, answer]:
            return {question: "instruction", answer: "output"}
        case [question, given, answer]:
            return {question: "instruction", given: "input", answer: "output"}
        case _:
            return None
