"""The turns of a conversation into messages: who speaks, what is said, thought and called, and what is learned."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, Literal

from truetune.data.calls import calls_of_text, read_calls
from truetune.data.content import Part, read_parts, read_text_or_parts
from truetune.data.examples import Message, Note
from truetune.data.fields import find_round
from truetune.data.json_text import kind_of
from truetune.data.misnamed import close_name
from truetune.data.rules import RowError
from truetune.data.values import decode_list, is_number, read_text, require_unicode

Role = Literal["system", "user", "assistant", "tool"]

ROLES: Mapping[str, Role] = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "model", "bot", "ai", "chatbot"), "assistant"),
    **dict.fromkeys(("chatgpt", "bing", "bard"), "assistant"),
    **dict.fromkeys(("function_call", "tool_call"), "assistant"),
    **dict.fromkeys(("tool", "function", "observation", "tool_response", "ipython", "environment"), "tool"),
}
"""Every spelling of a role, and the role it means; upper and lower case are one."""

CALLING = ("function_call", "tool_call")
ROLE_KEYS = ("role", "from", "speaker", "author", "sender")
CONTENT_KEYS = ("content", "value", "text", "message", "utterance", "parts")
REASONING = ("reasoning_content", "reasoning", "thinking", "thought", "thoughts")
_LEARNED = ("train", "weight", "loss_weight", "loss")
_TAKEN = {*_LEARNED, *REASONING, "mask", "tool_calls", "function_call"}
"""Keys of a turn that no template sees under their name."""

_ORDER = ("thought", "text", "call")


@dataclass(frozen=True, slots=True)
class _Turn:
    """A turn whose role and content are found: its other keys, where it and its content stand, what is told of it."""

    role: Role
    others: Mapping[str, Any]
    place: str
    content_place: str
    notes: list[Note]


def read_turns(value: Any, name: str, notes: list[Note]) -> list[Message]:
    """The messages of a list of turns, also when it is stored as text. What is told of them goes to `notes`."""
    messages: list[Message] = []
    for index, turn in enumerate(turn_list(value, name)):
        messages += _read_turn(turn, f"{name}[{index}]", notes)
    return messages


def turn_list(value: Any, name: str) -> Sequence[Any]:
    """The list of turns, which is not empty; stored as JSON text or as Python writes it, too."""
    turns = decode_list(value, name, expected="a list")
    if not isinstance(turns, list | tuple) or not turns:
        found = "an empty list" if isinstance(turns, list | tuple) else kind_of(turns)
        raise RowError("wrong-type", f"must be a list of messages, found {found}", field=name)
    return turns


def spelling(turn: Any) -> str:
    """The keys of a turn's role and content: "from/value"."""
    if not isinstance(turn, Mapping):
        return kind_of(turn)
    role, content = first_key(turn, ROLE_KEYS), first_key(turn, CONTENT_KEYS)
    return "/".join(filter(None, (role, content) if role or content else find_round(turn) or ()))


def _read_turn(turn: Any, place: str, notes: list[Note]) -> Sequence[Message]:
    """The message that a turn is; several for a round, and for tools' results among Anthropic's parts."""
    if not isinstance(turn, dict) and not isinstance(turn, Mapping):
        raise RowError("wrong-type", f"a message must be an object, found {kind_of(turn)}", field=place)
    role_key, content_key = first_key(turn, ROLE_KEYS), first_key(turn, CONTENT_KEYS)
    if role_key is None and (names := find_round(turn)):
        return _round(turn, names, place, notes)
    spelled = spelled_role(turn, role_key, content_key)
    role = ROLES.get(spelled)
    if role is None:
        raise _unknown_role(turn, role_key, place)
    value = turn[content_key] if content_key else None
    is_bare = len(turn) == 2 and role_key is not None and content_key is not None
    if is_bare and isinstance(value, str) and spelled not in CALLING and value and not value.isspace():
        return (Message(role, read_text(value, f"{place}.{content_key}")),)
    others = {} if is_bare else _others(turn, role_key, content_key)
    return _full_turn(value, spelled, _Turn(role, others, place, f"{place}.{content_key or 'content'}", notes))


def _full_turn(value: Any, spelled: str, turn: _Turn) -> Sequence[Message]:
    if isinstance(value, list | tuple):
        return _of_parts(read_parts(value, turn.content_place), turn)
    text = read_text(value, turn.content_place)
    if is_number(value):
        turn.notes.append(Note("number-as-text"))
    calls = calls_of_text(text, turn.content_place) if spelled in CALLING else None
    return (_message("" if calls else text, turn, calls=calls or ()),)


def _round(turn: Mapping[str, Any], names: tuple[str, str], place: str, notes: list[Note]) -> list[Message]:
    """XTuner's and Moss's turns, which hold a question and its answer (and a system text)."""
    roles: tuple[Role, Role, Role] = ("system", "user", "assistant")
    messages = []
    for role, name in zip(roles, ("system", *names), strict=True):
        text = read_text(turn.get(name), f"{place}.{name}")
        if text or role != "system":
            messages.append(_message(text, _Turn(role, {}, place, f"{place}.{name}", notes)))
    others = _Turn("assistant", _others(turn, *names), place, place, notes)
    return [*messages[:-1], replace(messages[-1], is_learned=_is_learned(others))]


def first_key(turn: Mapping[str, Any], keys: Sequence[str]) -> str | None:
    """The first of the keys with a value, or the first that is there."""
    for key in keys:
        if turn.get(key) is not None:
            return key
    return next((key for key in keys if key in turn), None)


def spelled_role(turn: Mapping[str, Any], role_key: str | None, content_key: str | None) -> str:
    if role_key is None:
        return "user" if content_key == "parts" else ""  # Gemini's users need no role.
    spelled = turn[role_key]
    if not isinstance(spelled, str):
        return ""
    return spelled if spelled in ROLES else spelled.strip().lower()


def _unknown_role(turn: Mapping[str, Any], role_key: str | None, place: str) -> RowError:
    accepted = ", ".join(ROLES)
    if role_key is None:
        keys = ", ".join(map(str, turn)) or "none"
        message = f"the turn has no role, its keys are {keys}; accepted: {accepted}"
        return RowError("unknown-role", message, field=place, hint=_misspelt_key(turn))
    role = turn[role_key]
    found = repr(role[:60]) if isinstance(role, str) else kind_of(role)
    message = f"unknown role {found}; accepted: {accepted}"
    meant = close_name(role, ROLES) if isinstance(role, str) else None
    rename = "rename it in the rows by who speaks: user, assistant, system or tool"
    hint = f"is it a misspelt {meant}?" if meant else rename
    return RowError("unknown-role", message, field=place, hint=hint)


def _misspelt_key(turn: Mapping[str, Any]) -> str | None:
    for key in map(str, turn):
        if meant := close_name(key, ROLE_KEYS):
            return f'is "{key}" a misspelt {meant}? correct it in the rows'
    return None


def _others(turn: Mapping[str, Any], *used: str | None) -> dict[str, Any]:
    """What else the turn has."""
    return {str(key): value for key, value in turn.items() if value is not None and key not in used}


# --- typed parts ------------------------------------------------------------------------------------------


def _of_parts(parts: list[Part], turn: _Turn) -> list[Message]:
    """The messages that a turn of typed parts is: each tool's result is one, the rest of the turn another."""
    if any(part.is_number for part in parts):
        turn.notes.append(Note("number-as-text"))
    messages: list[Message] = []
    for is_result, group in groupby(parts, key=lambda part: part.kind == "result"):
        if is_result:
            messages += (_result(part.value, turn) for part in group)
        else:
            messages.append(_of_own_parts(list(group), turn))
            turn = replace(turn, others={})
    return messages or [_message("", turn)]


def _result(result: Message, turn: _Turn) -> Message:
    outer = _extra(turn) if turn.role == "tool" else {}
    return replace(result, extra={**outer, **result.extra})


def _of_own_parts(parts: list[Part], turn: _Turn) -> Message:
    kinds = [_ORDER.index(part.kind) for part in parts]
    if kinds != sorted(kinds):
        turn.notes.append(Note("parts-reordered"))
    text = "".join(part.value for part in parts if part.kind == "text")
    thought = "".join(part.value for part in parts if part.kind == "thought")
    calls = [call for part in parts if part.kind == "call" for call in part.value]
    return _message(text, turn, calls=calls, thought=thought)


# --- what a template sees, and what it does not -----------------------------------------------------------


def _message(text: str, turn: _Turn, *, calls: Sequence[Any] = (), thought: str = "") -> Message:
    extra = _extra(turn)
    thoughts = list(dict.fromkeys(filter(str.strip, [*_thoughts(turn), thought])))
    calls = [*_calls(turn), *calls]
    is_learned = _is_learned(turn)
    require_unicode((extra, calls), turn.place)
    if turn.role != "assistant":
        if calls:
            raise RowError("wrong-type", "only an assistant's turn can call tools", field=f"{turn.place}.tool_calls")
        turn.notes.extend([Note("not-rendered", "reasoning")] if thoughts else [])
        return Message(turn.role, text, extra)
    if not calls and (not text or text.isspace()):
        raise RowError("empty-answer", "the assistant's turn is empty", field=turn.content_place)
    if thoughts:
        extra["reasoning_content"] = "\n\n".join(thoughts)
    if calls:
        extra["tool_calls"] = calls
    return Message(turn.role, text, extra, is_learned)


def _extra(turn: _Turn) -> dict[str, Any]:
    return {name: value for name, value in turn.others.items() if name not in _TAKEN}


def _thoughts(turn: _Turn) -> list[str]:
    """The texts of the turn's reasoning fields; a boolean there only says whether there was any."""
    found = [(name, turn.others[name]) for name in REASONING if name in turn.others]
    return [read_text_or_parts(value, f"{turn.place}.{name}") for name, value in found if not isinstance(value, bool)]


def _calls(turn: _Turn) -> list[dict[str, Any]]:
    """The calls in OpenAI's fields for them, the older one too."""
    names = [name for name in ("tool_calls", "function_call") if turn.others.get(name)]
    return [call for name in names for call in read_calls(turn.others[name], f"{turn.place}.{name}")]


def _is_learned(turn: _Turn) -> bool:
    """False if one of an answer's weights is 0; noted where another turn is asked to be learned."""
    weights = {name: turn.others[name] for name in _LEARNED if name in turn.others}
    if not isinstance(weights.get("loss", True), bool):
        del weights["loss"]  # A measurement, not a wish.
    asked = [name for name, value in weights.items() if value] if turn.role != "assistant" else []
    turn.notes.extend(Note("not-rendered", name) for name in [*asked, *(["mask"] if turn.others.get("mask") else [])])
    if turn.role != "assistant":
        return True
    for name, value in weights.items():
        if not isinstance(value, bool | int | float) or value not in (0, 1):
            raise _wrong_weight(name, value, turn.place)
    return all(weights.values())


def _wrong_weight(name: str, value: Any, place: str) -> RowError:
    shown = str(value) if is_number(value) else kind_of(value)
    return RowError(
        "wrong-type",
        f"{name} of a message must be 0 or 1 (or true, false), found {shown}",
        field=f"{place}.{name}",
        hint="a weight beside the messages scales a whole row",
    )
