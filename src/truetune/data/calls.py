"""Tools and the calls of them, in every spelling, into the one that chat templates read (OpenAI's)."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from truetune.data.json_text import kind_of
from truetune.data.rules import RowError
from truetune.data.values import decode_json, decode_list, require_unicode

_ARGUMENTS = ("arguments", "args", "input", "parameters")
_IDS = ("id", "call_id", "tool_use_id", "toolUseId")
_CALL_KEYS = {"type", "name", *_ARGUMENTS, *_IDS}
_CALL_TEXT = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)
_RESULT_TEXT = re.compile(r"<tool_response>(.*?)</tool_response>", re.DOTALL)


# --- calls ------------------------------------------------------------------------------------------------


def read_calls(value: Any, place: str) -> list[dict[str, Any]]:
    """The calls of a turn: a list of them, one alone, or either as JSON text."""
    calls = decode_list(value, place, expected="a list of calls")
    if isinstance(calls, Mapping):
        calls = [calls]
    if not isinstance(calls, list | tuple):
        raise RowError("wrong-type", f"tool calls must be a list, found {kind_of(calls)}", field=place)
    return [_read_call(call, place) for call in calls]


def _read_call(value: Any, place: str) -> dict[str, Any]:
    """The call with its arguments as an object: templates print text arguments with their quotes escaped."""
    call = decode_json(value, place, expected="an object")
    function = (call.get("function") or call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise RowError("wrong-type", "a tool call must be an object with a function and its name", field=place)
    key = next((key for key in _ARGUMENTS if function.get(key) is not None), "arguments")
    arguments = _arguments(function.get(key), f"{place}.arguments")
    if function is not call:
        kind = {"type": "function"} if "type" in call else {}
        return {**call, **kind, "function": {**_without(function, key), "arguments": arguments}}
    name = next((call[key] for key in _IDS if call.get(key) is not None), None)
    named = {} if name is None else {"id": name}
    return {**named, "type": "function", "function": {"name": call["name"], "arguments": arguments}}


def _without(function: Mapping[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in function.items() if name != key or name == "arguments"}


def _arguments(value: Any, place: str) -> Any:
    """The arguments as an object; none at all are an empty one."""
    arguments = decode_json(value or {}, place, expected="an object")
    if not isinstance(arguments, Mapping):
        raise RowError("wrong-type", f"arguments must be an object, found {kind_of(arguments)}", field=place)
    return arguments


def calls_of_text(text: str, place: str) -> list[dict[str, Any]] | None:
    """The calls that the text is as JSON: {"name", "arguments"}, or a list of such. None if it is something else."""
    try:
        value = decode_list(text, place, expected="a call")
    except RowError:
        return None
    calls = value if isinstance(value, list | tuple) else [value]
    return [_read_call(call, place) for call in calls] if calls and all(map(_is_call, calls)) else None


def _is_call(value: Any) -> bool:
    return isinstance(value, Mapping) and isinstance(value.get("name"), str) and value.keys() <= _CALL_KEYS


def split_calls(text: str, place: str) -> tuple[str, list[dict[str, Any]]] | None:
    """What a turn of the Hermes kind says, and the calls at its end. None if anything there is not a call."""
    blocks = _last_blocks(_CALL_TEXT, text)
    calls = [calls_of_text(block[1].strip(), place) for block in blocks]
    if not blocks or not all(calls):
        return None
    return text[: blocks[0].start()].rstrip(), [call for found in calls for call in found or ()]


def split_results(text: str) -> list[str] | None:
    """The results in a tool's turn of the Hermes kind. None if it holds anything else."""
    blocks = _last_blocks(_RESULT_TEXT, text)
    if not blocks or text[: blocks[0].start()].strip():
        return None
    return [block[1].strip() for block in blocks]


def _last_blocks(pattern: re.Pattern[str], text: str) -> list[re.Match[str]]:
    """All the blocks of the text, if nothing but space stands between and behind them."""
    blocks = list(pattern.finditer(text))
    if not blocks:
        return []
    ends = [block.end() for block in blocks]
    starts = [*(block.start() for block in blocks[1:]), len(text)]
    return blocks if not any(text[end:start].strip() for end, start in zip(ends, starts, strict=True)) else []


# --- tools ------------------------------------------------------------------------------------------------


def read_tools(value: Any, place: str) -> tuple[Any, ...]:
    """The tools of a row, each as {"type": "function", "function": {…}}."""
    if not value:
        return ()
    tools = decode_list(value, place, expected="a list")
    if tools is None:
        return ()
    if not isinstance(tools, list | tuple):
        raise RowError("wrong-type", f"{place} must be a list, found {kind_of(tools)}", field=place)
    require_unicode(tools, place)
    return tuple(tool for index, each in enumerate(tools) for tool in _read_tool(each, f"{place}[{index}]"))


def _read_tool(value: Any, place: str) -> Iterator[Any]:
    tool = decode_json(value, place, expected="an object")
    declared = next((tool[key] for key in _DECLARED if key in tool), None) if isinstance(tool, Mapping) else None
    if isinstance(declared, list | tuple):
        for index, each in enumerate(declared):
            yield from _read_tool(each, f"{place}[{index}]")
    elif isinstance(tool, Mapping) and isinstance(tool.get("function"), Mapping):
        yield tool
    elif isinstance(tool, Mapping) and isinstance(tool.get("name"), str):
        function = {_TOOL_KEYS.get(key, key): value for key, value in tool.items() if key != "type"}
        yield {"type": "function", "function": function}
    else:
        raise RowError("wrong-type", "a tool must be an object with a function or a name", field=place)


_DECLARED = ("functionDeclarations", "function_declarations")
_TOOL_KEYS = {"input_schema": "parameters"}
