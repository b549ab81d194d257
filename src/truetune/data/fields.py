"""The names of a row's fields into the form that they spell: which field is the question, which the answer …"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

from truetune.data.examples import Note
from truetune.data.misnamed import close_name, columns_remedy
from truetune.data.rules import RowError

Format = Literal["auto", "instruction", "chat", "completion"]
Form = Literal["chat", "instruction", "pair", "text"]

QUESTIONS = ("instruction", "question", "query")
INPUTS = ("input", "context")
ANSWERS = ("output", "response", "answer", "target", "targets", "output_text", "answers")
_LONE_INPUTS = ("input", "inputs", "input_text", "context")
"""Questions where nothing else is one and there is an answer: {"input", "output"}."""

_OFTEN_TEXT = ("conversation", "dialog", "dialogue", "chat")
"""Conversations only if a list stands in them: these names are given to plain text, too."""

_ASKED = (*QUESTIONS, "prompt", "user", "human", "input")
_SAID = (*ANSWERS, "completion", "assistant", "bot")

_SLOTS: Mapping[str, Sequence[str]] = {
    "chat": ("messages", "conversations", *_OFTEN_TEXT, "contents"),
    "question": QUESTIONS,
    "answer": ANSWERS,
    "prompt": ("prompt",),
    "completion": ("completion", *ANSWERS),
    "text": ("text",),
    "input": INPUTS,
    "system": ("system", "system_prompt", "systeminstruction", "system_instruction"),
    "history": ("history",),
    "tools": ("tools", "functions"),
    "parallel": ("parallel_tool_calls",),
    "weight": ("weight",),
    "label": ("label",),
}
_NEEDED: Mapping[Form, Sequence[str]] = {
    "chat": ("chat",),
    "instruction": ("question", "answer"),
    "pair": ("prompt", "completion"),
    "text": ("text",),
}
_OPTIONAL: Mapping[Form, Sequence[str]] = {
    "chat": ("system", "tools", "parallel", "weight", "label"),
    "instruction": ("input", "system", "history", "weight"),
    "pair": ("system", "tools", "parallel", "weight", "label"),
    "text": ("weight",),
}
_WANTED: Mapping[Format, Sequence[Form]] = {
    "auto": ("chat", "instruction", "pair", "text"),
    "chat": ("chat", "pair"),
    "instruction": ("instruction",),
    "completion": ("pair", "text"),
}
_LABELS: Mapping[Form, tuple[str, Sequence[str]]] = {
    "chat": ("chat", ("chat",)),
    "instruction": ("instruction", ("question", "input", "answer")),
    "pair": ("completion", ("prompt", "completion")),
    "text": ("text", ("text",)),
}
_FORM_NAMES = {name for slots in _NEEDED.values() for slot in slots for name in _SLOTS[slot]}
_REPORTED = {
    *_FORM_NAMES,
    *(name for slot in ("input", "system", "history", "tools") for name in _SLOTS[slot]),
    *_LONE_INPUTS,
    *("choices", "options", "instances"),
    *("reasoning_content", "reasoning", "thinking", "thought", "thoughts"),
}
"""Fields that ask to be in the prompt: filled and unused, they are told of."""

_PREFERENCES = (
    {"chosen", "rejected"},
    {"chosen_messages", "rejected_messages"},
    {"preferred_output"},
    {"kto_tag"},
)
_MEDIA = {
    **dict.fromkeys(("image", "images"), "image"),
    **dict.fromkeys(("audio", "audios"), "audio"),
    **dict.fromkeys(("video", "videos"), "video"),
}
_KNOWN_FORMS = (
    "messages (chat)",
    "instruction + output (instruction)",
    "text, or prompt + completion (completion)",
)


@dataclass(frozen=True, slots=True)
class Reading:
    """How rows with these fields are read: the field in each slot, and what is told of the others."""

    form: Form
    names: Mapping[str, str]
    label: str
    notes: tuple[Note, ...]


def read_fields(
    fields: Mapping[str, Any], *, wanted: Format, columns: Mapping[str, str], absent: tuple[str, ...]
) -> Reading:
    """The reading of a row whose fields are already renamed. RowError if it has none, or is refused by name.

    `absent` names the fields of `columns` that the row lacks.
    """
    # NaN, which does not equal itself, is how pandas writes null.
    filled = tuple([name for name, value in fields.items() if (value or value == 0) and value == value])
    reading = _reading(tuple(fields), filled, wanted, tuple(columns.items()), absent)
    names = reading.names
    if "label" in names and isinstance(fields[names["label"]], bool):
        if reading.form == "pair":
            raise _preference()
        return replace(reading, notes=(*reading.notes, Note("not-rendered", names["label"])))
    if reading.form == "chat" and names["chat"].strip().lower() in _OFTEN_TEXT and _is_prose(fields[names["chat"]]):
        others = {name: value for name, value in fields.items() if name != names["chat"]}
        return read_fields(others, wanted=wanted, columns=columns, absent=absent)
    return reading


def renamed(fields: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """The fields under their new names; a renamed one stands above a field that had the name before."""
    kept = {name: value for name, value in fields.items() if name not in columns}
    return {**kept, **{columns[name]: value for name, value in fields.items() if name in columns}}


def find_round(fields: Mapping[str, Any]) -> tuple[str, str] | None:
    """The names of the question and of the answer in an object that is a round of a conversation."""
    asked = next((name for name in _ASKED if fields.get(name) is not None), None)
    said = next((name for name in _SAID if fields.get(name) is not None), None)
    return (asked, said) if asked and said else None


def _is_prose(value: Any) -> bool:
    return isinstance(value, str) and not value.lstrip().startswith("[")


@lru_cache(maxsize=1024)
def _reading(
    present: tuple[str, ...],
    filled: tuple[str, ...],
    wanted: Format,
    columns: tuple[tuple[str, str], ...],
    absent: tuple[str, ...],
) -> Reading:
    """Rows of one file have the same few sets of fields: found once, for all of them."""
    row = _Names(present, filled, columns)
    _refuse_by_name(row)
    slots = _slots(row)
    forms = [form for form in _WANTED[wanted] if _NEEDED[form][0] in slots]
    targets = {target for _, target in columns if target in _FORM_NAMES}
    if absent and targets and not targets & set(present):
        raise _unknown_column(absent[0], present)
    if not forms:
        raise _unknown_column(absent[0], present) if absent else unknown_format(present, wanted)
    form = min(forms, key=lambda form: _rank(form, slots, row))
    needed = _NEEDED[form]
    if absent and any(slot not in slots for slot in needed):
        raise _unknown_column(absent[0], present)
    names = {slot: slots[slot] for slot in (*needed, *_OPTIONAL[form]) if slot in slots}
    return Reading(form, names, _label(form, names, columns), _notes(row, names, absent, columns))


class _Names:
    """A row's field names by their usual spelling: those with a value before those without."""

    def __init__(self, present: Sequence[str], filled: Sequence[str], columns: Iterable[tuple[str, str]]) -> None:
        self.present = _by_spelling(present)
        self.filled = _by_spelling(filled)
        self.all_filled = filled
        self.targets = {target.strip().lower(): target for _, target in columns if target in present}

    def first(self, spellings: Iterable[str]) -> str | None:
        """The field with the first of these spellings: one that data.columns names, one with a value, any."""
        known = list(spellings)
        for fields in (self.targets, self.filled, self.present):
            for spelling in known:
                if spelling in fields:
                    return fields[spelling]
        return None


def _by_spelling(names: Sequence[str]) -> dict[str, str]:
    """{"output": "Output"}; of several fields that differ in case only, the one in lower case, or none."""
    spelled: dict[str, list[str]] = {}
    for name in names:
        spelled.setdefault(str(name).strip().lower(), []).append(name)
    return {
        spelling: spelling if spelling in those else those[0]
        for spelling, those in spelled.items()
        if len(those) == 1 or spelling in those
    }


def _slots(row: _Names) -> dict[str, str]:
    """The field of each slot that has one."""
    slots = {slot: name for slot, spellings in _SLOTS.items() if (name := row.first(spellings)) is not None}
    if "answer" in slots and not {"question", "prompt"} & slots.keys() and (lone := row.first(_LONE_INPUTS)):
        slots["question"] = lone
        slots.pop("input", None)
        if rest := row.first(name for name in INPUTS if row.present.get(name) != lone):
            slots["input"] = rest
    return slots


def _rank(form: Form, slots: Mapping[str, str], row: _Names) -> tuple[bool, ...]:
    """Lower is likelier: asked for by data.columns, with a value, not bare text, with an answer."""
    question, *answer = _NEEDED[form]
    is_asked = any(slots.get(slot) in row.targets.values() for slot in _NEEDED[form])
    # Tables give every row all columns: a field that is null is not what makes a row's form.
    return (
        not is_asked,
        slots[question] not in row.all_filled,
        form != "chat",
        form == "text",
        any(slot not in slots for slot in answer),
    )


def _refuse_by_name(row: _Names) -> None:
    if any(names <= row.present.keys() and names & row.filled.keys() for names in _PREFERENCES):
        raise _preference()
    for spelling, kind in _MEDIA.items():
        if spelling in row.filled:
            raise media_row(kind, row.filled[spelling])


def _preference() -> RowError:
    return RowError(
        "preference-row",
        "a preference row (chosen and rejected answers) cannot be trained on as it is",
        hint="keep the chosen answer only, as output or as the last assistant turn",
    )


def media_row(kind: str, place: str) -> RowError:
    """The refusal of a row with a picture, a sound or a film."""
    return RowError(
        f"{kind}-row",
        f"the row holds {kind} data, and only text is trained on",
        field=place,
        hint=f"take out the rows with {kind} data, or train on their text alone by taking the field out",
    )


def no_answer(fields: Iterable[str]) -> RowError:
    """The refusal of a row that has a question and no answer; a misspelt name is told."""
    return RowError(
        "no-answer",
        f"the row has a question but none of {', '.join(ANSWERS)}",
        field=ANSWERS[0],
        hint=_misspelt(tuple(map(str, fields)), ANSWERS),
    )


def unknown_format(names: Iterable[str], wanted: Format) -> RowError:
    present = tuple(map(str, names))
    found = ", ".join(present) or "none"
    expected = " or ".join(_KNOWN_FORMS) if wanted == "auto" else f"the {wanted} format"
    return RowError(
        "unknown-format",
        f"fields are {found}; expected {expected}",
        hint=_format_remedy(present) if wanted == "auto" else "leave data.format to auto",
    )


@lru_cache(maxsize=256)
def _format_remedy(present: tuple[str, ...]) -> str:
    """Misspelt names are to be corrected, others to be told."""
    remedy = f"name the fields with data.columns, for example {columns_remedy(present)}"
    return _misspelt(present, tuple(sorted(_FORM_NAMES))) or remedy


@lru_cache(maxsize=256)
def _misspelt(names: tuple[str, ...], known: tuple[str, ...]) -> str | None:
    """The remedy for the first of the names that is nearly a known one."""
    for name in names:
        if meant := close_name(name, known):
            return f'is "{name}" a misspelt {meant}? correct it in the rows'
    return None


def _unknown_column(name: str, present: Iterable[str]) -> RowError:
    found = ", ".join(map(str, present)) or "none"
    return RowError(
        "unknown-column",
        f'data.columns names the field "{name}", which the row does not have; its fields are {found}',
        field=name,
        hint="correct the name in data.columns",
    )


def _label(form: Form, names: Mapping[str, str], columns: Iterable[tuple[str, str]]) -> str:
    sources = {target: source for source, target in columns}
    word, slots = _LABELS[form]
    return f"{word} from {', '.join(sources.get(names[slot], names[slot]) for slot in slots if slot in names)}"


def _notes(
    row: _Names, names: Mapping[str, str], absent: Iterable[str], columns: Iterable[tuple[str, str]]
) -> tuple[Note, ...]:
    used = set(names.values())
    unused = [name for name in row.all_filled if name not in used and _asks_to_be_read(str(name))]
    targets = dict(columns)
    lacking = [name for name in absent if targets[name] not in row.present]
    return (
        *(Note("not-rendered", name) for name in unused),
        *(Note("unknown-column", name) for name in lacking),
    )


@lru_cache(maxsize=1024)
def _asks_to_be_read(name: str) -> bool:
    """True of a field that asks to be in the prompt, also where its name is misspelt."""
    return name.strip().lower() in _REPORTED or close_name(name, _REPORTED) is not None
