"""A config file of another tool: its values as Python's own, and the line of each key."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from truetune.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Document:
    """The values under their keys, and at which line each stands: {"datasets[0].path": 7}."""

    values: Mapping[str, Any]
    lines: Mapping[str, int]


def read_text(path: Path) -> str:
    """The file's text. ConfigError if there is none, or it is not text."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"file not found: {path}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not valid UTF-8", hint="save the file as UTF-8") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error


def read_document(path: Path) -> Document:
    """A YAML or JSON file whose keys are settings. ConfigError with file and line for one that is none."""
    text = read_text(path)
    try:
        loaded = YAML().load(text)
    except MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{path}{line}: not valid YAML: {_first(error.problem or error)}") from error
    except YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {_first(error)}") from error
    except RecursionError:
        raise ConfigError(f"{path}: not valid YAML: nested too deeply") from None
    if not isinstance(loaded, Mapping) or not loaded:
        found = "nothing" if not loaded else f"a {type(loaded).__name__}"
        raise ConfigError(f"{path}: expected a tool's settings, found {found}")
    return Document({str(key): _plain(value) for key, value in loaded.items()}, dict(_lines(loaded, "")))


def _first(error: object) -> str:
    return (str(error).splitlines() or ["unreadable"])[0]


def _plain(value: Any) -> Any:
    """ruamel's types as Python's own; dates are text, as YAML 1.2 has it."""
    match value:
        case Mapping():
            return {str(key): _plain(inner) for key, inner in value.items()}
        case list():
            return [_plain(inner) for inner in value]
        case bool() | None:
            return value
        case int():
            return int(value)
        case float():
            return float(value)
        case _:
            return str(value)


def _lines(value: Any, above: str) -> Iterator[tuple[str, int]]:
    match value:
        case CommentedMap():
            for key, inner in value.items():
                place = f"{above}.{key}" if above else str(key)
                if found := (value.lc.data or {}).get(key):
                    yield place, found[0] + 1
                yield from _lines(inner, place)
        case CommentedSeq():
            for index, inner in enumerate(value):
                yield from _lines(inner, f"{above}[{index}]")
