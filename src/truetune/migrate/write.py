"""A translation as a run.yaml that explains itself, and as JSON."""

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from truetune.migrate.translation import Translation, Untranslated, shown

_COLUMN = 52
_PLAIN = set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_./-")
_WORDS = {"true", "false", "null", "yes", "no", "on", "off", "none", "auto"}


def as_yaml(translation: Translation, *, source: str) -> str:
    """The settings by section, what each comes from behind it, and at the end what was not translated."""
    return "\n".join((*_head(translation, source), *_body(translation), *_foot(translation))) + "\n"


def as_json(
    translation: Translation, *, source: str, because: Iterable[str], lines: Mapping[str, int]
) -> dict[str, Any]:
    """Everything that was found, for scripts."""
    return {
        "source": source,
        "tool": translation.tool,
        "because": list(because),
        "settings": dict(translation.settings),
        "translated": [
            {"key": each.key, "line": _line(each.key, lines), "name": each.name, "value": each.value}
            for each in translation.translated
        ],
        "defaults": [
            {"name": each.name, "value": each.value, "reason": each.reason} for each in translation.defaults
        ],
        "untranslated": [
            {
                "key": each.key,
                "line": _line(each.key, lines),
                "value": shown(each.key, each.value),
                "reason": each.reason,
                "matters": each.matters,
            }
            for each in translation.untranslated
        ],
        "notes": list(translation.notes),
    }


def _line(key: str, lines: Mapping[str, int]) -> int | None:
    return lines.get(key)


def _head(translation: Translation, source: str) -> Iterator[str]:
    yield f"# From {source} ({translation.tool}), by truetune import. Behind each setting: the key that says so."
    for note in translation.notes:
        yield from _comment(f"Note: {note}")


def _body(translation: Translation) -> Iterator[str]:
    origins = _origins(translation)
    section = ""
    for name, value in translation.settings.items():
        above, _, leaf = name.rpartition(".")
        if above and above != section:
            yield f"{above}:"
        section = above
        line = f"{'  ' if above else ''}{leaf}: {scalar(value)}"
        yield f"{line:<{_COLUMN}}  # {origins[name]}" if name in origins else line


def _origins(translation: Translation) -> dict[str, str]:
    keys: dict[str, list[str]] = {}
    for each in translation.translated:
        keys.setdefault(each.name, []).append(each.key)
    told = {name: ", ".join(dict.fromkeys(named)) for name, named in keys.items()}
    return told | {each.name: _one_line(each.reason) for each in translation.defaults}


def _foot(translation: Translation) -> Iterator[str]:
    lost = [each for each in translation.untranslated if each.matters]
    idle = [each for each in translation.untranslated if not each.matters]
    if lost:
        yield "# Not translated:"
        for each in lost:
            yield from _comment(f"  {_told(each)}")
    if idle:
        yield "# Nothing is lost by these:"
        for each in idle:
            yield from _comment(f"  {_told(each)}")


def _told(each: Untranslated) -> str:
    value = shown(each.key, each.value)
    text = "" if value is None else f" {_short(scalar(value))}"
    return f"{each.key}:{text}  ({each.reason})"


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}…"


def _comment(text: str) -> Iterator[str]:
    yield f"# {_one_line(text)}"


def _one_line(text: str) -> str:
    return "".join(mark if mark.isprintable() else " " for mark in text)


def scalar(value: Any) -> str:
    """The value as YAML of one line, which a reader of YAML 1.2 reads back as it was."""
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case str() if value and set(value) <= _PLAIN and value[0] not in "-." and not _means_more(value):
            return value
        case list() | tuple():
            return f"[{', '.join(map(scalar, value))}]"
        case dict():
            return "{" + ", ".join(f"{scalar(str(key))}: {scalar(inner)}" for key, inner in value.items()) + "}"
        case str():
            # JSON's text is YAML's, in double quotes; marks that YAML would fold or refuse are escaped.
            is_plain = all(mark.isprintable() or mark in "\n\t\r" for mark in value)
            return json.dumps(value, ensure_ascii=not is_plain)
        case int() | float():
            return repr(value)
        case _:
            return json.dumps(str(value), ensure_ascii=False)


def _means_more(text: str) -> bool:
    """Whether YAML could read a number or a truth value where text is meant."""
    return text.lower() in _WORDS - {"auto", "none", "no"} or text[0].isdigit()
