"""What a turn says: text, or a list of typed parts (of OpenAI, Anthropic, Bedrock, Gemini, LLaMA-Factory)."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from truetune.data.calls import read_calls
from truetune.data.examples import Message
from truetune.data.fields import media_row
from truetune.data.json_text import kind_of
from truetune.data.rules import RowError
from truetune.data.values import is_number, json_text, read_text

Kind = Literal["thought", "text", "call", "result"]

_TYPES: Mapping[str, Kind] = {
    **dict.fromkeys(("text", "input_text", "output_text", "refusal"), "text"),
    **dict.fromkeys(("reasoning", "thinking", "thought"), "thought"),
    **dict.fromkeys(("tool_call", "tool_use", "function_call"), "call"),
    **dict.fromkeys(("tool_result", "tool_response", "function_response"), "result"),
}
_UNTYPED: Mapping[str, str] = {
    "functionCall": "call",
    "function_call": "call",
    "toolUse": "call",
    "functionResponse": "result",
    "function_response": "result",
    "toolResult": "result",
    "inlineData": "image",
    "inline_data": "image",
    "fileData": "image",
    "file_data": "image",
    "image": "image",
    "image_url": "image",
    "audio": "audio",
    "video": "video",
    "json": "json",
    "text": "text",
}
"""What a part without a type is, by the key that it has."""

TEXTS = ("text", "value", "content", "thinking", "reasoning", "refusal", "output")
_HOLDERS = ("value", "tool_call", "functionCall", "function_call", "toolUse")
RESULT_HOLDERS = ("functionResponse", "function_response", "toolResult")
RESULTS = ("content", "response", "value", "output", "result", "text")
_RESULT_NAMES = {"name": ("name",), "tool_call_id": ("tool_call_id", "tool_use_id", "toolUseId", "call_id", "id")}


class Part(NamedTuple):
    """A stretch of a turn: its text, its calls (a list), or a tool's result (a Message)."""

    kind: Kind
    value: Any
    is_number: bool = False


def read_parts(value: Sequence[Any], place: str) -> list[Part]:
    """The parts in their order. RowError for a picture, and for a part of an unknown type."""
    return [_part(part, f"{place}[{index}]") for index, part in enumerate(value)]


def read_text_or_parts(value: Any, place: str) -> str:
    """The text of a value that may hold nothing else: a system message, a tool's result."""
    if isinstance(value, Mapping) and isinstance(value.get("parts"), list | tuple):
        value, place = value["parts"], f"{place}.parts"
    if not isinstance(value, list | tuple):
        return read_text(value, place)
    parts = read_parts(value, place)
    other = next((part.kind for part in parts if part.kind != "text"), None)
    if other is not None:
        raise RowError("wrong-type", f"must hold text only, found a part with a {other}", field=place)
    return "".join(part.value for part in parts)


def _part(part: Any, place: str) -> Part:
    if isinstance(part, str):
        return Part("text", read_text(part, place))
    if not isinstance(part, Mapping):
        raise RowError("wrong-type", f"a part must be an object, found {kind_of(part)}", field=place)
    match kind_of_part(part, place):
        case "call":
            return Part("call", read_calls(_held(part, _HOLDERS), place))
        case "result":
            return Part("result", _result(_held(part, RESULT_HOLDERS), place))
        case "json":
            return Part("text", json_text(part["json"], place))
        case "thought":
            return _text_part("thought", part, place)
        case _:
            return _text_part("text", part, place)


def kind_of_part(part: Mapping[str, Any], place: str) -> str:
    """What the part is, by its type or, without one, by its keys."""
    named = part.get("type")
    if named is None:
        kind = next((kind for key, kind in _UNTYPED.items() if part.get(key) is not None), "text")
        is_thought = kind == "text" and part.get("thought") is True
    else:
        kind = _TYPES.get(str(named), str(named))
        is_thought = False
    for medium in ("image", "audio", "video"):
        if medium in kind:
            raise media_row(medium, place)
    if named is not None and str(named) not in _TYPES:
        accepted = ", ".join(_TYPES)
        found = repr(named[:60]) if isinstance(named, str) else kind_of(named)
        raise RowError("wrong-type", f"unknown type {found} of a part; accepted: {accepted}", field=f"{place}.type")
    return "thought" if is_thought else kind


def _text_part(kind: Kind, part: Mapping[str, Any], place: str) -> Part:
    key = next((key for key in TEXTS if part.get(key) is not None), None)
    if key is None:
        if not any(key in part for key in TEXTS):
            raise RowError("wrong-type", "a part of text must have text, value or content", field=place)
        return Part(kind, "")
    return Part(kind, read_text(part[key], f"{place}.{key}"), is_number(part[key]))


def _held(part: Mapping[str, Any], holders: Sequence[str]) -> Any:
    """What a part wraps, or the part itself."""
    return next((part[key] for key in holders if isinstance(part.get(key), Mapping | list | str)), part)


def _result(value: Any, place: str) -> Message:
    """A tool's turn; a result that is no text is written as JSON."""
    if not isinstance(value, Mapping):
        return Message("tool", read_text_or_parts(value, place))
    found = next((value[key] for key in RESULTS if value.get(key) is not None), None)
    text = json_text(found, place) if isinstance(found, Mapping) else read_text_or_parts(found, place)
    named = {name: _text_key(value, keys) for name, keys in _RESULT_NAMES.items()}
    return Message(
        "tool", text, {name: read_text(value[key], f"{place}.{key}") for name, key in named.items() if key}
    )


def _text_key(value: Mapping[str, Any], keys: Sequence[str]) -> str | None:
    return next((key for key in keys if isinstance(value.get(key), str)), None)
