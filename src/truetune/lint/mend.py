"""What can be mended in a row without a judge: its fields anew, and every change that was made.

Only texts that are read, and the spelling of roles, are touched; all other fields, keys and types stay as they are,
in their order. Mending what is mended changes nothing.
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from truetune.data.content import RESULT_HOLDERS, RESULTS, TEXTS, kind_of_part
from truetune.data.examples import Record
from truetune.data.fields import Format, Reading, find_round, read_fields, renamed
from truetune.data.rules import RowError
from truetune.data.turns import CALLING, CONTENT_KEYS, REASONING, ROLE_KEYS, ROLES, first_key, spelled_role
from truetune.data.values import decode_list
from truetune.data.write import to_json
from truetune.lint.parts import Part
from truetune.lint.texts import mend_encoding, placeholders, without_edge_blanks

MENDED = ("unknown-role", "placeholder", "encoding-damage", "edge-blanks")
"""The rules whose findings are mended inside a row."""

_BOM = "\ufeff"
_FILLABLE = re.compile(r"\{\{\s*([A-Za-z_][\w .-]{0,40}?)\s*\}\}")


@dataclass(frozen=True, slots=True)
class Change:
    """A text (or role) before and after a rule's mending, whole."""

    rule: str
    field: str
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class Mended:
    """A row's fields (the same object where nothing changed), the changes, the placeholders that were filled."""

    fields: Mapping[str, Any]
    changes: tuple[Change, ...] = ()
    filled: frozenset[str] = frozenset()


def mend_record(
    record: Record,
    *,
    rules: frozenset[str],
    values: Mapping[str, str],
    format: Format = "auto",
    columns: Mapping[str, str] | None = None,
) -> Mended:
    """The row after `rules`; `values` fill its placeholders. A row of no known form stays as it is."""
    fields, columns = record.fields, columns or {}
    named = renamed(fields, columns) if columns else fields
    absent = tuple(name for name in columns if name not in fields)
    try:
        reading = read_fields(named, wanted=format, columns=columns, absent=absent)
    except RowError:
        return Mended(fields)
    sources = {target: source for source, target in columns.items() if source in fields}
    pen = _Pen(rules, values)
    mended = {}
    for slot, work in pen.works(reading, named).items():
        if slot in reading.names:
            name = sources.get(reading.names[slot], reading.names[slot])
            mended[name] = work(fields[name], name)
    return Mended(_with(fields, mended), tuple(pen.changes), frozenset(pen.filled))


def is_fillable(text: str) -> bool:
    """Whether a text holds a placeholder that a value could fill."""
    return _FILLABLE.search(text) is not None


def placeholders_left(parts: Sequence[Part]) -> Counter[str]:
    """The placeholders of a row that nothing filled, by name; none where the rule finds none."""
    if next(placeholders(parts), None) is None:
        return Counter()
    return Counter(match[1] for part in parts for match in _FILLABLE.finditer(part.text))


# --- texts ------------------------------------------------------------------------------------------------


class _Manner(NamedTuple):
    """How a text is mended: the edges that are stripped, with or without a completion's one space, and filling."""

    left: bool = False
    right: bool = False
    keeps_space: bool = False
    fills: bool = True


_PLAIN = _Manner()
_ANSWER = _Manner(left=True, right=True)
_COMPLETION = _Manner(left=True, right=True, keeps_space=True)
_CALL = _Manner(left=True, right=True, fills=False)  # A value's quotes would break the JSON of a call.

_Work = Callable[[Any, str], Any]


def _decoded(text: str) -> str:
    return mend_encoding(text.lstrip(_BOM)) if not text.isascii() else text


def _stripped(text: str, manner: _Manner) -> str:
    text = text.replace("\r\n", "\n")
    space = " " if manner.keeps_space and text.startswith(" ") else ""
    bare = text.removeprefix(space)
    if manner.left and manner.right:
        return space + without_edge_blanks(bare)
    if manner.left:
        return space + bare.lstrip()
    return space + bare.rstrip() if manner.right else text


class _Pen:
    """Mends the values of one row and notes each change. What stays as it is stays the same object."""

    def __init__(self, rules: frozenset[str], values: Mapping[str, str]) -> None:
        self._rules = rules
        self._values = values
        self.changes: list[Change] = []
        self.filled: set[str] = set()

    def works(self, reading: Reading, named: Mapping[str, Any]) -> Mapping[str, _Work]:
        """What is done to the field in each slot."""
        match reading.form:
            case "chat":
                return {"system": self._system, "chat": self._turns}
            case "instruction":
                asked = {"system": self._system, "question": self._text, "input": self._text}
                return {**asked, "answer": self._answer, "history": self._history}
            case "text":
                return {"text": self._text}
            case _ if isinstance(named[reading.names["prompt"]], list | tuple):
                return {"system": self._system, "prompt": self._turns, "completion": self._said}
            case _:
                return {"system": self._system, "prompt": self._text, "completion": self._completion}

    def _text(self, value: Any, place: str, manner: _Manner = _PLAIN) -> Any:
        if not isinstance(value, str):
            return value
        text = value
        while (mended := self._once(text, place, manner)) != text:
            text = mended  # What one rule did may give another something to do.
        return text

    def _once(self, text: str, place: str, manner: _Manner) -> str:
        if manner.fills and self._values and "{{" in text:
            text = self._changed("placeholder", place, text, self._fill)
        text = self._changed("encoding-damage", place, text, _decoded)
        return self._changed("edge-blanks", place, text, lambda text: _stripped(text, manner))

    def _changed(self, rule: str, place: str, text: str, mend: Callable[[str], str]) -> str:
        if rule not in self._rules or (mended := mend(text)) == text:
            return text
        self.changes.append(Change(rule, place, text, mended))
        return mended

    def _fill(self, text: str) -> str:
        return _FILLABLE.sub(self._value_of, text)

    def _value_of(self, match: re.Match[str]) -> str:
        if match[1] not in self._values:
            return match[0]
        self.filled.add(match[1])
        return self._values[match[1]]

    def _answer(self, value: Any, place: str) -> Any:
        return self._text(value, place, _ANSWER)

    def _completion(self, value: Any, place: str) -> Any:
        return self._text(value, place, _COMPLETION)

    def _system(self, value: Any, place: str) -> Any:
        if isinstance(value, Mapping) and isinstance(value.get("parts"), list | tuple):
            return _with(value, {"parts": self._content(value["parts"], f"{place}.parts", _PLAIN)})
        return self._content(value, place, _PLAIN)

    # --- conversations ------------------------------------------------------------------------------------

    def _turns(self, value: Any, place: str) -> Any:
        return self._list(value, place, self._turn)

    def _said(self, value: Any, place: str) -> Any:
        """TRL's completion of a conversation: turns, one of them, or a text."""
        match value:
            case list() | tuple():
                return self._turns(value, place)
            case Mapping():
                return self._turn(value, place)
            case _:
                return self._answer(value, place)

    def _history(self, value: Any, place: str) -> Any:
        return self._list(value, place, self._earlier) if value else value

    def _list(self, value: Any, place: str, work: _Work) -> Any:
        """A list with each element mended; one that is stored as text is stored as text again."""
        try:
            values = decode_list(value, place, expected="a list")
        except RowError:
            return value
        if not isinstance(values, list | tuple):
            return value
        mended = _each(values, place, work)
        if mended is values:
            return value
        return to_json(mended) if isinstance(value, str) else mended

    def _earlier(self, value: Any, place: str) -> Any:
        match value:
            case [asked, said]:
                mended = [self._text(asked, f"{place}[0]"), self._answer(said, f"{place}[1]")]
                return value if mended[0] is asked and mended[1] is said else mended
            case Mapping() if names := find_round(value):
                return self._round(value, names, place)
            case _:
                return value

    def _turn(self, turn: Any, place: str) -> Any:
        if not isinstance(turn, Mapping):
            return turn
        role_key, content_key = first_key(turn, ROLE_KEYS), first_key(turn, CONTENT_KEYS)
        if role_key is None and (names := find_round(turn)):
            return self._round(turn, names, place)
        manner = _manner(spelled_role(turn, role_key, content_key))
        mended = {name: self._content(turn[name], f"{place}.{name}", _PLAIN) for name in REASONING if name in turn}
        if role_key:
            # `from` belongs to ShareGPT and `parts` to Gemini: each has spellings of its own.
            is_common = role_key == "role" and content_key != "parts"
            mended[role_key] = self._role(turn[role_key], f"{place}.{role_key}", is_common=is_common)
        if content_key:
            mended[content_key] = self._content(turn[content_key], f"{place}.{content_key}", manner)
        return _with(turn, mended)

    def _role(self, value: Any, place: str, *, is_common: bool) -> Any:
        spelled = value.strip().lower() if isinstance(value, str) else ""
        if spelled not in ROLES:
            return value
        role = ROLES[spelled] if is_common and spelled not in CALLING else spelled
        return self._changed("unknown-role", place, value, lambda _: role)

    def _round(self, turn: Mapping[str, Any], names: tuple[str, str], place: str) -> Any:
        """A turn that holds a question and its answer."""
        asked, said = names
        plain = {name: self._text(turn[name], f"{place}.{name}") for name in ("system", asked) if name in turn}
        return _with(turn, {**plain, said: self._answer(turn[said], f"{place}.{said}")})

    def _content(self, value: Any, place: str, manner: _Manner) -> Any:
        if isinstance(value, list | tuple):
            return self._parts(value, place, manner)
        return self._text(value, place, manner)

    # --- typed parts --------------------------------------------------------------------------------------

    def _parts(self, parts: Sequence[Any], place: str, manner: _Manner) -> Any:
        """Typed parts: the texts among them are one text, whose edges may reach over blank parts."""
        filled = [number for number, part in enumerate(parts) if _text_of(part).strip()]
        first, last = (filled[0], filled[-1]) if filled else (len(parts), 0)
        mended = [
            self._part(
                part,
                f"{place}[{number}]",
                manner._replace(left=manner.left and number <= first, right=manner.right and number >= last),
            )
            for number, part in enumerate(parts)
        ]
        return _same(parts, mended)

    def _part(self, part: Any, place: str, manner: _Manner) -> Any:
        if not isinstance(part, Mapping):
            return self._text(part, place, manner)
        match _kind_of(part):
            case "text":
                return self._held(part, TEXTS, place, manner)
            case "thought":
                return self._held(part, TEXTS, place, _PLAIN)
            case "result":
                holder = next((key for key in RESULT_HOLDERS if isinstance(part.get(key), Mapping)), None)
                if holder is None:
                    return self._held(part, RESULTS, place, _PLAIN)
                return _with(part, {holder: self._held(part[holder], RESULTS, f"{place}.{holder}", _PLAIN)})
            case _:
                return part

    def _held(self, part: Mapping[str, Any], keys: Sequence[str], place: str, manner: _Manner) -> Any:
        """The part with its text, which stands under the first of the keys with a value."""
        key = next((key for key in keys if part.get(key) is not None), None)
        return part if key is None else _with(part, {key: self._content(part[key], f"{place}.{key}", manner)})


def _manner(spelled: str) -> _Manner:
    if spelled in CALLING:
        return _CALL
    return _ANSWER if ROLES.get(spelled) == "assistant" else _PLAIN


def _text_of(part: Any) -> str:
    """What a part adds to the text of its turn; nothing if it is no text."""
    if isinstance(part, Mapping):
        part = next((part[key] for key in TEXTS if part.get(key) is not None), "") if _kind_of(part) == "text" else ""
    return part if isinstance(part, str) else ""


def _kind_of(part: Mapping[str, Any]) -> str:
    try:
        return kind_of_part(part, "")
    except RowError:
        return ""


def _with(fields: Mapping[str, Any], mended: Mapping[str, Any]) -> Mapping[str, Any]:
    """The fields with the mended ones in their places; themselves if none differs."""
    changed = {name: value for name, value in mended.items() if value is not fields[name]}
    return {**fields, **changed} if changed else fields


def _each(values: Sequence[Any], place: str, work: _Work) -> Sequence[Any]:
    return _same(values, [work(value, f"{place}[{number}]") for number, value in enumerate(values)])


def _same(values: Sequence[Any], mended: list[Any]) -> Sequence[Any]:
    """The mended values; the ones from before if none differs."""
    return mended if any(new is not old for new, old in zip(mended, values, strict=True)) else values
