"""From settings under our names to a Config; every wrong value and every contradiction is a problem of its own."""

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from truetune.config.contradictions import contradictions
from truetune.config.document import MAPPING, NOWHERE, Problem, file_place
from truetune.config.names import REFUSED_VALUES
from truetune.config.resolve import Named
from truetune.config.schema import SECTIONS, Config
from truetune.config.words import choices, description, keys, kind_at, type_words

_BRIEF = 100

Source = str | Path | Mapping[str, Any] | None


def validated(
    values: Mapping[str, Named], problems: list[Problem], *, source: Source, may_miss: bool
) -> Config | None:
    """The Config, or None with a problem for each wrong value; also one for each contradiction of right values."""
    document = {name: named.value for name, named in values.items()}
    try:
        config = Config.model_validate(_nested(document))
    except ValidationError as error:
        wrong = _by_setting(error)
        problems += [problem for name in wrong if name in values for problem in _wrong(values[name], wrong[name])]
        problems += [missing(name, source) for name in wrong if name not in values and not may_miss]
        right = {name: value for name, value in document.items() if name not in wrong}
        rest = Config.model_validate(_nested({"model.name_or_path": "unknown", **right}))
        # A contradiction with the default that stands in for a wrong value is none.
        problems += _contradicting(rest, values, blind=wrong.keys() & values.keys())
        return None
    problems += _contradicting(config, values)
    return config


def _contradicting(config: Config, values: Mapping[str, Named], *, blind: Iterable[str] = ()) -> Iterator[Problem]:
    """Each contradiction where the last of its settings was given; none that the blind ones have part in."""
    for found in contradictions(config):
        if not set(found.names) & set(blind):
            places = [values[name].given.place for name in found.names if name in values]
            yield Problem(max(places, default=MAPPING), found.text)


def _nested(values: Mapping[str, Any]) -> dict[str, Any]:
    document: dict[str, Any] = {}
    for name, value in values.items():
        section, _, leaf = name.rpartition(".")
        (document.setdefault(section, {}) if section else document)[leaf] = value
    return document


def _by_setting(error: ValidationError) -> dict[str, list[ErrorDetails]]:
    wrong: dict[str, list[ErrorDetails]] = {}
    for detail in error.errors():
        wrong.setdefault(_location(detail["loc"]), []).append(detail)
    return wrong


def _location(loc: tuple[int | str, ...]) -> str:
    return ".".join(map(str, loc[: 2 if loc[0] in SECTIONS else 1]))


def missing(name: str, source: Source) -> Problem:
    """The problem of a setting that must be given, told of the file where there is one."""
    setting = "model.name_or_path" if name == "model" else name
    place = file_place(source) if isinstance(source, str | Path) else NOWHERE
    return Problem(place, f"{setting} is missing: {description(setting)}")


def _wrong(named: Named, details: Sequence[ErrorDetails]) -> Iterator[Problem]:
    """A problem for each part of a value that is wrong: for the whole, or for entries of a list or a mapping."""
    given, name = named.given, named.target
    if reason := REFUSED_VALUES.get(name, {}).get(str(named.value).lower()):
        yield Problem(given.place, f"{name}: {str(named.value).lower()} {reason}")
        return
    for path, error in _parts(named, details).items():
        label = name + "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)
        yield Problem(given.place_of(path), f"{label}{_fault(named, path, error)}")


def _parts(named: Named, details: Sequence[ErrorDetails]) -> dict[tuple[int | str, ...], str]:
    """Where in the value something is wrong, with pydantic's name of the error; the innermost places alone."""
    depth = named.target.count(".") + 1
    found = {_path(named.value, detail["loc"][depth:], detail["type"]): detail["type"] for detail in details}
    return {
        path: error
        for path, error in found.items()
        if not any(other[: len(path)] == path and other != path for other in found)
    }


def _path(value: Any, loc: Iterable[int | str], error: str) -> tuple[int | str, ...]:
    """The indices and keys of an error's location that exist in the value: the rest name types."""
    path: list[int | str] = []
    steps = list(loc)
    for step in steps:
        match value:
            case list() | tuple() if isinstance(step, int) and step < len(value):
                value = value[step]
            case Mapping() if step in value:
                value = value[step]
            case _:
                continue
        path.append(step)
    return (*path, steps[-1]) if error == "missing" else tuple(path)


def _fault(named: Named, path: tuple[int | str, ...], error: str) -> str:
    """What is wrong with a part of a value, as its name goes on."""
    match error:
        case "missing":
            return " is missing"
        case "extra_forbidden":
            known = keys(kind_at(named.target, path[:-1]))
            close = difflib.get_close_matches(str(path[-1]), known, n=1)
            return f": unknown setting ({f'did you mean {close[0]}?' if close else ', '.join(known)})"
        case _:
            kind, value = kind_at(named.target, path), _part(named, path)
            return f" must be {type_words(kind)} (got {_brief(value)}){_suggestion(kind, value)}"


def _brief(value: Any) -> str:
    """As Python writes it, in less than a line: rows and data sets are given in the place of paths, too."""
    text = repr(value)
    return text if len(text) <= _BRIEF else f"{text[:_BRIEF]}…"


def _part(named: Named, path: Iterable[int | str]) -> Any:
    """An entry of the value; without a path, the value as the user wrote it."""
    value = named.value if path else named.given.value
    for step in path:
        value = value[step]
    return value


def _suggestion(kind: Any, value: Any) -> str:
    if isinstance(value, str) and "number" in type_words(kind) and _is_number(value):
        return "; write it without quotes"
    close = difflib.get_close_matches(str(value), choices(kind), n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
