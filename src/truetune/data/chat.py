"""A conversation: its turns, with the row's system text, tools and weight."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from truetune.data.calls import read_tools, split_calls, split_results
from truetune.data.catalog import RULES
from truetune.data.content import read_text_or_parts
from truetune.data.examples import Conversation, Location, Message, Note
from truetune.data.fields import Reading
from truetune.data.rules import RowError
from truetune.data.turns import read_turns, spelling, turn_list
from truetune.data.values import read_weight


def read_conversation(fields: Mapping[str, Any], reading: Reading, where: Location) -> Conversation:
    """The row whose field in the slot `chat` holds the turns."""
    name = reading.names["chat"]
    turns, notes = turn_list(fields[name], name), list(reading.notes)
    messages = read_turns(turns, name, notes)
    return _conversation(messages, notes, fields, reading, where, form=f"{reading.label} ({spelling(turns[0])})")


def read_pair(fields: Mapping[str, Any], reading: Reading, where: Location) -> Conversation:
    """TRL's conversational prompt and completion as one conversation: answers inside the prompt are not learned."""
    prompt, completion, notes = reading.names["prompt"], reading.names["completion"], list(reading.notes)
    asked = read_turns(fields[prompt], prompt, notes)
    given = [replace(turn, is_learned=False) if turn.role == "assistant" else turn for turn in asked]
    messages = [*given, *read_turns(_said(fields[completion]), completion, notes)]
    form = f"chat{reading.label.removeprefix('completion')}"
    return _conversation(messages, notes, fields, reading, where, form=form)


def _said(completion: Any) -> Any:
    """The turns of a completion that may be one of them, or a text."""
    match completion:
        case list() | tuple():
            return completion
        case Mapping():
            return [completion]
        case _:
            return [{"role": "assistant", "content": completion}]


def _conversation(
    messages: list[Message],
    notes: list[Note],
    fields: Mapping[str, Any],
    reading: Reading,
    where: Location,
    *,
    form: str,
) -> Conversation:
    names = reading.names
    if "system" in names:
        messages = _with_system(messages, fields[names["system"]], names["system"])
    tools = read_tools(fields[names["tools"]], names["tools"]) if "tools" in names else ()
    if tools:
        tools, messages = _with_tools(tools, messages)
    _require_answer(messages, names.get("chat") or names["completion"])
    if "parallel" in names and fields[names["parallel"]] is False:
        notes += _parallel(messages)
    weight = read_weight(fields[names["weight"]], names["weight"]) if "weight" in names else 1.0
    told = _told(notes, fields, messages) if notes else ()
    return Conversation(tuple(messages), where, tools, weight, form, told)


def _require_answer(messages: Sequence[Message], name: str) -> None:
    answers = [message.is_learned for message in messages if message.role == "assistant"]
    if not answers:
        raise RowError("no-answer", "no assistant turn to learn from", field=name)
    if not any(answers):
        raise RowError(
            "no-answer",
            "no assistant turn is left to learn from: the data leaves each out of the loss",
            field=name,
            hint="correct the turns' weight (or train, loss_weight), or take the row out",
        )


def _with_system(messages: list[Message], value: Any, name: str) -> list[Message]:
    """The turns behind the row's system text, unless they begin with the same."""
    text = read_text_or_parts(value, name)
    if not text.strip():
        return messages
    if messages[0].role != "system":
        return [Message("system", text), *messages]
    if messages[0].content == text:
        return messages
    raise RowError(
        "two-systems",
        f"{name} and the first message give two different system texts",
        field=name,
        hint=f"keep one of them; data.columns='{{{name}: unused}}' leaves out the field",
    )


def _with_tools(tools: tuple[Any, ...], messages: list[Message]) -> tuple[tuple[Any, ...], list[Message]]:
    """Tools beside calls as objects; or, where a system message describes the tools, all of it as text."""
    if any("<tools>" in message.content for message in messages if message.role == "system"):
        return (), messages
    return tools, [each for message in messages for each in _hermes(message)]


def _hermes(message: Message) -> Iterator[Message]:
    """The message with the calls, or the results, that its text spells as models of the Hermes kind do."""
    match message.role:
        case "assistant" if "<tool_call>" in message.content and "tool_calls" not in message.extra:
            if found := split_calls(message.content, "content"):
                text, calls = found
                yield replace(message, content=text, extra={**message.extra, "tool_calls": calls})
                return
        case "tool" if "<tool_response>" in message.content:
            if results := split_results(message.content):
                yield from (replace(message, content=result) for result in results)
                return
    yield message


def _parallel(messages: Sequence[Message]) -> list[Note]:
    several = sum(len(message.extra.get("tool_calls", ())) > 1 for message in messages)
    return [Note("parallel-calls", count=several)] if several else []


def _told(notes: Sequence[Note], fields: Mapping[str, Any], messages: Sequence[Message]) -> tuple[Note, ...]:
    """Each kind of note once, in turns where its rule counts them."""
    counts: dict[tuple[str, str | None], int] = {}
    for note in notes:
        if not _is_said(note, fields, messages):
            counts[note.rule, note.field] = counts.get((note.rule, note.field), 0) + note.count
    return tuple(Note(rule, name, n if RULES[rule].counts_turns else 1) for (rule, name), n in counts.items())


def _is_said(note: Note, fields: Mapping[str, Any], messages: Sequence[Message]) -> bool:
    """True of a field that seems unused and is what a message says: ultrachat has its first question as `prompt`."""
    said = fields.get(note.field) if note.rule == "not-rendered" and note.field else None
    return said is not None and any(message.content == said for message in messages)
