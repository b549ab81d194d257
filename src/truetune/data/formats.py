"""A record into one of the guide's three formats, found from the row's own fields, row by row."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

from truetune.data.examples import Completion, Conversation, Example, Instruction, Message, Record
from truetune.data.read import kind_of
from truetune.data.rules import RowError

Format = Literal["auto", "instruction", "chat", "completion"]

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "function_call": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
}
"""Every spelling of a role, and the role it means."""

_CHAT = ("messages", "conversations")
_INSTRUCTION = ("instruction", "question", "query")
_INPUT = ("input", "context")
_OUTPUT = ("output", "response", "answer")
_PREFERENCE = ({"chosen", "rejected"}, {"chosen_messages", "rejected_messages"}, {"preferred_output"})
_WEIGHTS = ("weight", "loss_weight", "train")
_MESSAGE_FIELDS = {"from": "role", "value": "content"}
_KNOWN_FORMS = (
    "messages (chat)",
    "instruction + output (instruction)",
    "text, or prompt + completion (completion)",
)


def parse_example(record: Record, *, format: Format = "auto", columns: Mapping[str, str] | None = None) -> Example:
    """The row as a Conversation, an Instruction or a Completion.

    `columns` renames fields first: {"body": "text"}. A number or a boolean in a text field becomes its JSON
    text and is noted. Raises RowError for a row that has no such form, or no answer to learn.
    """
    fields = _renamed(record.fields, columns or {})
    match _form(fields, format):
        case "chat":
            return _conversation(fields, record)
        case "instruction":
            return _instruction(fields, record)
        case _:
            return _completion(fields, record)


def _renamed(fields: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """The fields under their new names; a renamed one stands above a field that had the name before."""
    kept = {name: value for name, value in fields.items() if name not in columns}
    return {**kept, **{columns[name]: value for name, value in fields.items() if name in columns}}


def _form(fields: Mapping[str, Any], wanted: Format) -> str:
    """The first form, of those wanted, whose question field the row has."""
    if any(names <= fields.keys() for names in _PREFERENCE):
        raise RowError(
            "preference-row",
            "a preference row (chosen and rejected answers) cannot be trained on as it is",
            hint="keep the chosen answer only, as output or as the last assistant turn",
        )
    forms = {"chat": _CHAT, "instruction": _INSTRUCTION, "completion": ("text", "prompt")}
    present = [form for form, names in forms.items() if wanted in ("auto", form) and _first(fields, names)]
    # Tables give every row all columns: a field that is null is not what makes a row's format.
    filled = [form for form in present if fields[cast(str, _first(fields, forms[form]))] is not None]
    if present:
        return (filled or present)[0]
    found = ", ".join(fields) or "none"
    expected = " or ".join(_KNOWN_FORMS) if wanted == "auto" else f"the {wanted} format"
    raise RowError(
        "unknown-format",
        f"fields are {found}; expected {expected}",
        hint="name the fields with data.columns, for example data.columns='{body: text}'",
    )


def _first(fields: Mapping[str, Any], names: Sequence[str]) -> str | None:
    """The first of the names that the row has, one with a value before one that is null."""
    present = [name for name in names if name in fields]
    return next((name for name in present if fields[name] is not None), present[0] if present else None)


# --- instruction ------------------------------------------------------------------------------------------


def _instruction(fields: Mapping[str, Any], record: Record) -> Instruction:
    answer = _first(fields, _OUTPUT)
    if answer is None:
        raise RowError("no-answer", f"no answer: the row has none of {', '.join(_OUTPUT)}", field="output")
    question, context = _first(fields, _INSTRUCTION), _first(fields, _INPUT)
    used = [name for name in (question, context, answer, "system") if name and name in fields]
    return Instruction(
        instruction=_filled(fields, cast(str, question), code="empty-prompt"),
        input=_text(fields, context) if context else "",
        output=_filled(fields, answer, code="empty-answer"),
        system=_text(fields, "system") if "system" in fields else "",
        where=record.where,
        notes=_notes(fields, used),
    )


# --- completion -------------------------------------------------------------------------------------------


def _completion(fields: Mapping[str, Any], record: Record) -> Completion:
    if "prompt" not in fields:
        text = _filled(fields, "text", code="empty-answer")
        return Completion("", text, record.where, _notes(fields, ["text"]))
    if "completion" not in fields:
        raise RowError("no-answer", "the row has a prompt but no completion", field="completion")
    return Completion(
        prompt=_filled(fields, "prompt", code="empty-prompt"),
        completion=_filled(fields, "completion", code="empty-answer"),
        where=record.where,
        notes=_notes(fields, ["prompt", "completion"]),
    )


# --- chat -------------------------------------------------------------------------------------------------


def _conversation(fields: Mapping[str, Any], record: Record) -> Conversation:
    name = cast(str, _first(fields, _CHAT))
    turns = _turns(fields[name], name)
    messages = tuple(_message(turn, f"{name}[{index}]") for index, turn in enumerate(turns))
    if not any(message.role == "assistant" for message in messages):
        raise RowError("no-answer", "no assistant turn to learn from", field=name)
    tools = _decoded(fields.get("tools") or "[]", "tools", expected="a list")
    if not isinstance(tools, list | tuple):
        raise RowError("wrong-type", f"tools must be a list, found {kind_of(tools)}", field="tools")
    _require_unicode(tools, "tools")
    numbers = any(isinstance(turn.get(key), bool | int | float) for turn in turns for key in ("content", "value"))
    notes = (*(["number-as-text"] if numbers else []), *_unused(fields, ()), *_unheeded_weights(messages))
    return Conversation(messages, record.where, tuple(tools), notes)


def _unheeded_weights(messages: Sequence[Message]) -> tuple[str, ...]:
    """Notes answers that the data asks to leave out of the loss (OpenAI's `weight: 0`), which are learned as any."""
    answers = [message.extra for message in messages if message.role == "assistant"]
    return tuple(f"not-rendered:{name}" for name in _WEIGHTS if not all(extra.get(name, True) for extra in answers))


def _turns(value: Any, name: str) -> list[Any]:
    """The list of turns, also when it is stored as JSON text."""
    turns = _decoded(value, name, expected="a list")
    if not isinstance(turns, list | tuple) or not turns:
        raise RowError("wrong-type", f"must be a list of messages, found {kind_of(turns)}", field=name)
    return list(turns)


def _message(turn: Any, place: str) -> Message:
    if not isinstance(turn, Mapping):
        raise RowError("wrong-type", f"a message must be an object, found {kind_of(turn)}", field=place)
    fields = {_MESSAGE_FIELDS.get(key, str(key)): value for key, value in turn.items()}
    role = ROLES.get(str(fields.pop("role", None)))
    if role is None:
        found = turn.get("role", turn.get("from"))
        accepted = ", ".join(ROLES)
        raise RowError("unknown-role", f"unknown role {found!r}; accepted: {accepted}", field=place)
    content = _text(fields, "content", place=f"{place}.content")
    fields.pop("content", None)
    extra = {key: value for key, value in fields.items() if value is not None}
    _require_unicode(extra, place)
    if extra.get("tool_calls"):
        extra["tool_calls"] = [_tool_call(call, place) for call in extra["tool_calls"]]
    if role == "assistant" and not content.strip() and not extra.get("tool_calls"):
        raise RowError("empty-answer", "the assistant's turn is empty", field=f"{place}.content")
    return Message(cast(Any, role), content, extra)


def _tool_call(call: Any, place: str) -> Any:
    """The call with its arguments as an object: templates print text arguments with their quotes escaped."""
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise RowError(
            "wrong-type", "a tool call must be an object with a function and its name", field=f"{place}.tool_calls"
        )
    arguments = _decoded(function.get("arguments"), f"{place}.tool_calls.arguments", expected="an object")
    return {**call, "function": {**function, "arguments": arguments}}


# --- values -----------------------------------------------------------------------------------------------


def _decoded(value: Any, place: str, *, expected: str) -> Any:
    """The value, also when it is stored as JSON text."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise RowError(
            "broken-json", f"{place} holds text that is not valid JSON ({expected} is expected)", field=place
        ) from error


def _filled(fields: Mapping[str, Any], name: str, *, code: str) -> str:
    """The field's text, which must not be blank."""
    text = _text(fields, name)
    if not text.strip():
        state = "null" if fields[name] is None else "empty"
        raise RowError(code, f"{name} is {state}", field=name)
    return text


def _text(fields: Mapping[str, Any], name: str, *, place: str | None = None) -> str:
    """The field as text: null and absent are empty, numbers and booleans their JSON text."""
    match fields.get(name):
        case None:
            return ""
        case str(text):
            _require_unicode(text, place or name)
            return text
        case bool(value):
            return "true" if value else "false"
        case int() | float() as value:
            return str(value)
        case value:
            raise RowError("wrong-type", f"{name} must be text, found {kind_of(value)}", field=place or name)


def _require_unicode(value: Any, place: str) -> None:
    """Refuses a lone surrogate, which JSON can spell (`\\ud800`) and no tokenizer can read."""
    if not value:
        return
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RowError("broken-text", "holds half of a surrogate pair (\\ud800…\\udfff)", field=place) from error


def _notes(fields: Mapping[str, Any], used: Sequence[str]) -> tuple[str, ...]:
    """What the report counts of a row: numbers read as text, known fields that nothing renders."""
    converted = any(isinstance(fields[name], bool | int | float) for name in used)
    return (*(["number-as-text"] if converted else []), *_unused(fields, used))


def _unused(fields: Mapping[str, Any], used: Sequence[str]) -> tuple[str, ...]:
    known = ("system", "history", "input", "context")
    return tuple(f"not-rendered:{name}" for name in known if fields.get(name) and name not in used)
