"""What a setting takes: in words for messages and `init`, and part by part for lists and mappings."""

from collections.abc import Iterator, Sequence
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from truetune.config.schema import SECTIONS, Config, setting_names

_TYPES = {int: "a whole number", float: "a number", str: "text", bool: "true or false", NoneType: "null"}


def fields() -> Iterator[tuple[str, Any, str, str]]:
    """Each setting's dotted name, default, description and type in words."""
    for name in setting_names():
        field = _field(name)
        yield name, field.default, field.description or "", type_words(_kind(field))


def description(name: str) -> str:
    """What a setting is, in a line."""
    return _field(name).description or ""


def kind_at(name: str, path: Sequence[int | str] = ()) -> Any:
    """The type of a setting, or of what stands in it behind these indices and keys; None where nothing can."""
    kind = _kind(_field(name))
    for step in path:
        kinds = tuple(_entries(kind, step))
        kind = Union[kinds] if kinds else None  # noqa: UP007
    return kind


def type_words(kind: Any, metadata: Sequence[Any] = ()) -> str:
    """A type in words, bounds and all: `auto or a whole number of at least 1`."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        described = [item.description for item in arguments[1:] if getattr(item, "description", None)]
        return described[0] if described else type_words(arguments[0], arguments[1:])
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(type_words(argument) for argument in arguments))
    if origin is Literal:
        values = [str(value) for value in arguments]
        return values[0] if len(values) == 1 else f"one of {', '.join(values)}"
    if origin is tuple:
        return f"a list of {type_words(arguments[0])}"
    if origin is dict:
        return "a mapping of names"
    if issubclass(kind, BaseModel):
        return f"a mapping of {', '.join(kind.model_fields)}"
    return _TYPES[kind] + _bounds(metadata)


def choices(kind: Any) -> list[str]:
    """The words that a type takes as they are."""
    if get_origin(kind) is Literal:
        return [str(value) for value in get_args(kind)]
    return [choice for argument in get_args(kind) for choice in choices(argument)]


def keys(kind: Any) -> list[str]:
    """The names that a mapping of this type may have; none where any may."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return list(kind.model_fields)
    return [name for argument in get_args(kind) for name in keys(argument)]


def _field(name: str) -> FieldInfo:
    section, _, leaf = name.rpartition(".")
    return (SECTIONS[section] if section else Config).model_fields[leaf]


def _kind(field: FieldInfo) -> Any:
    return Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation


def _entries(kind: Any, step: int | str) -> Iterator[Any]:
    """The types of what can stand at an index or a key."""
    origin, arguments = get_origin(kind), get_args(kind)
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        yield from (_kind(field) for name, field in kind.model_fields.items() if name == step)
    elif origin is tuple and isinstance(step, int):
        yield arguments[0]
    elif origin is dict:
        yield arguments[1]
    elif origin in (Annotated, Union, UnionType):
        inner = arguments[:1] if origin is Annotated else arguments
        yield from (found for argument in inner for found in _entries(argument, step))


def _bounds(metadata: Sequence[Any]) -> str:
    """ " of at least 1", " above 0 and below 1" and the like."""
    words = {"ge": "of at least", "gt": "above", "lt": "below", "le": "of at most"}
    flat = [inner for item in metadata for inner in getattr(item, "metadata", [item])]
    found = [
        f"{text} {getattr(item, key):g}"
        for item in flat
        for key, text in words.items()
        if getattr(item, key, None) is not None
    ]
    return f" {' and '.join(found)}" if found else ""
