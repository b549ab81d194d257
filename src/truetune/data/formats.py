"""A record into one of the guide's three formats, found from the row's own fields, row by row."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from truetune.data.chat import read_conversation, read_pair
from truetune.data.content import read_text_or_parts
from truetune.data.examples import Completion, Example, Instruction, Location, Note, Record
from truetune.data.fields import ANSWERS, Format, Reading, find_round, no_answer, read_fields, renamed, unknown_format
from truetune.data.json_text import kind_of
from truetune.data.rules import RowError
from truetune.data.turns import ROLES
from truetune.data.values import decode_list, is_null, is_number, read_text, read_weight

__all__ = ["ROLES", "Format", "expand_record", "parse_example"]


def parse_example(record: Record, *, format: Format = "auto", columns: Mapping[str, str] | None = None) -> Example:
    """The row as a Conversation, an Instruction or a Completion.

    `columns` renames fields first: {"body": "text"}. A number or a boolean in a text field becomes its JSON
    text and is noted. Raises RowError for a row that has no such form, or no answer to learn.
    """
    fields = record.fields
    absent: tuple[str, ...] = ()
    if columns:
        absent = tuple(name for name in columns if name not in fields)
        fields = renamed(fields, columns)
    reading = read_fields(fields, wanted=format, columns=columns or {}, absent=absent)
    match reading.form:
        case "instruction":
            return _instruction(fields, reading, record.where)
        case "chat":
            return read_conversation(fields, reading, record.where)
        case "text":
            return _text(fields, reading, record.where)
        case _:
            return _pair(fields, reading, record.where, wanted=format)


def expand_record(record: Record) -> Iterator[Record]:
    """The rows that a record holds: itself, or one for each of its `instances` (the form of Self-Instruct)."""
    if "instances" not in record.fields:
        yield record
        return
    instances = record.fields["instances"]
    with suppress(RowError):
        instances = decode_list(instances, "instances", expected="a list")
    nested = isinstance(instances, list | tuple) and any(map(_is_instance, instances))
    if not nested:
        yield record
        return
    others = {name: value for name, value in record.fields.items() if name != "instances"}
    for index, instance in enumerate(instances):
        inner = instance if isinstance(instance, Mapping) else {f"instances[{index}]": instance}
        yield Record({**others, **inner}, record.where)


def _is_instance(value: Any) -> bool:
    return isinstance(value, Mapping) and any(name in value for name in ANSWERS)


# --- instruction ------------------------------------------------------------------------------------------


def _instruction(fields: Mapping[str, Any], reading: Reading, where: Location) -> Instruction:
    names = reading.names
    if "answer" not in names:
        raise no_answer(fields)
    question, answer, input_ = names["question"], names["answer"], names.get("input")
    return Instruction(
        _filled(fields[question], question, rule="empty-prompt"),
        read_text(fields[input_], input_) if input_ else "",
        _filled(fields[answer], answer, rule="empty-answer"),
        _system(fields, names),
        where,
        _history(fields[names["history"]], names["history"]) if "history" in names else (),
        _weight(fields, names),
        reading.label,
        _notes(fields, reading, (question, input_, answer)),
    )


def _history(value: Any, name: str) -> tuple[tuple[str, str], ...]:
    """The earlier rounds, each a question and its answer."""
    rounds = decode_list(value, name, expected="a list of rounds") if value else ()
    if not isinstance(rounds, list | tuple):
        raise RowError("wrong-type", f"{name} must be a list of rounds, found {kind_of(rounds)}", field=name)
    return tuple(_round(each, f"{name}[{index}]") for index, each in enumerate(rounds))


def _round(value: Any, place: str) -> tuple[str, str]:
    match value:
        case [asked, said]:
            return read_text(asked, f"{place}[0]"), read_text(said, f"{place}[1]")
        case Mapping() if names := find_round(value):
            asked, said = names
            return read_text(value[asked], f"{place}.{asked}"), read_text(value[said], f"{place}.{said}")
    raise RowError(
        "wrong-type",
        f'a round of history must be [question, answer] or {{"prompt": …, "response": …}}, found {kind_of(value)}',
        field=place,
    )


# --- completion -------------------------------------------------------------------------------------------


def _text(fields: Mapping[str, Any], reading: Reading, where: Location) -> Completion:
    name = reading.names["text"]
    text = _filled(fields[name], name, rule="empty-answer")
    weight = _weight(fields, reading.names)
    return Completion("", text, where, "", weight, reading.label, _notes(fields, reading, (name,)))


def _pair(fields: Mapping[str, Any], reading: Reading, where: Location, *, wanted: Format) -> Example:
    names = reading.names
    prompt, completion = names["prompt"], names.get("completion")
    if completion and isinstance(fields[prompt], list | tuple):
        return read_pair(fields, reading, where)
    if wanted == "chat":
        raise unknown_format(fields, wanted)
    if completion is None:
        raise RowError("no-answer", "the row has a prompt but no completion", field="completion")
    return Completion(
        _filled(fields[prompt], prompt, rule="empty-prompt"),
        _filled(fields[completion], completion, rule="empty-answer"),
        where,
        _system(fields, names),
        _weight(fields, names),
        reading.label,
        (*_notes(fields, reading, (prompt, completion)), *_toolless(fields, names)),
    )


# --- values -----------------------------------------------------------------------------------------------


def _filled(value: Any, name: str, *, rule: str) -> str:
    """The field's text, which must not be blank."""
    text = read_text(value, name)
    if not text or text.isspace():
        raise RowError(rule, f"{name} is {'null' if is_null(value) else 'empty'}", field=name)
    return text


def _system(fields: Mapping[str, Any], names: Mapping[str, str]) -> str:
    name = names.get("system")
    return read_text_or_parts(fields[name], name) if name else ""


def _weight(fields: Mapping[str, Any], names: Mapping[str, str]) -> float:
    name = names.get("weight")
    return read_weight(fields[name], name) if name else 1.0


def _toolless(fields: Mapping[str, Any], names: Mapping[str, str]) -> tuple[Note, ...]:
    """Tools are for conversations."""
    name = names.get("tools")
    return (Note("not-rendered", name),) if name and fields[name] else ()


def _notes(fields: Mapping[str, Any], reading: Reading, used: Sequence[str | None]) -> tuple[Note, ...]:
    """What is told of a row: numbers read as text, known fields that nothing renders."""
    for name in used:
        if name and is_number(fields[name]):
            return (Note("number-as-text"), *reading.notes)
    return reading.notes
