"""What becomes of another tool's key, and the rules that say so."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

EMPTY = "empty: it asks for nothing"
OFF = "off: it asks for nothing"


@dataclass(frozen=True, slots=True)
class Set:
    """The key says `name: value` in our words; `key` where it is another one than the rule's own."""

    name: str
    value: Any
    key: str | None = None


@dataclass(frozen=True, slots=True)
class Leave:
    """The key has no translation; `matters` is false where the run is the same without it."""

    reason: str
    matters: bool = True
    key: str | None = None


@dataclass(frozen=True, slots=True)
class Note:
    """Where the other tool means something else by it."""

    text: str


Outcome = Set | Leave | Note
Rule = Callable[[Any, Mapping[str, Any]], Iterable[Outcome]]
"""From a key's value and the whole document to what becomes of it."""


@dataclass(frozen=True, slots=True)
class Default:
    """What the other tool does where its config says nothing; `reason` names the tool."""

    name: str
    value: Any
    reason: str


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool's own words: rules by key, its defaults, and the methods that truetune has not.

    `shares_names` lets the names that truetune's own config takes (config/names.py) answer where no rule does.
    """

    name: str
    title: str
    rules: Mapping[str, Rule]
    defaults: Callable[[Mapping[str, Any], Mapping[str, Any]], Iterable[Default]]
    refusals: Callable[[Mapping[str, Any]], Iterable[tuple[str, str]]]
    shares_names: bool = True


def to(name: str, *, convert: Callable[[Any], Any] = lambda value: value) -> Rule:
    """The value, converted; what `convert` refuses with a ValueError is left, with its reason."""

    def rule(value: Any, _: Mapping[str, Any]) -> Iterator[Outcome]:
        try:
            yield Set(name, convert(value))
        except ValueError as error:
            yield Leave(str(error))

    return rule


def left(reason: str, *, matters: bool = True) -> Rule:
    """No translation, for this reason; false and zero ask for nothing."""

    def rule(value: Any, _: Mapping[str, Any]) -> Iterator[Outcome]:
        is_off = value is False or value == 0 or value == "none"
        yield Leave(OFF, matters=False) if is_off else Leave(reason, matters=matters)

    return rule


def harmless(reason: str) -> Rule:
    """No translation, and none is needed."""
    return left(reason, matters=False)


def only(*wanted: Any, otherwise: str, reason: str = "it is so here too") -> Rule:
    """Nothing is lost for the `wanted` values; the others have no translation."""

    def rule(value: Any, _: Mapping[str, Any]) -> Iterator[Outcome]:
        yield Leave(reason, matters=False) if value in wanted else Leave(otherwise)

    return rule


def rules(*tables: Mapping[str, Rule], **groups: Rule) -> dict[str, Rule]:
    """Several tables as one; the later wins."""
    return {key: rule for table in (*tables, groups) for key, rule in table.items()}


def each(rule: Rule, *keys: str) -> dict[str, Rule]:
    """One rule for several keys."""
    return dict.fromkeys(keys, rule)


def leaves(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    """Every leaf below a key with its path: `datasets[0].path`. Lists of plain values are leaves."""
    match value:
        case Mapping() if value:
            for name, inner in value.items():
                yield from leaves(inner, f"{key}.{name}" if key else str(name))
        case list() if any(isinstance(inner, Mapping) for inner in value):
            for index, inner in enumerate(value):
                yield from leaves(inner, f"{key}[{index}]")
        case _:
            yield key, value
