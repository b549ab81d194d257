"""Settings as they were given, each with its place: in YAML and JSON files, in mappings, as `key=value`."""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path, PurePath
from types import NoneType
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.constructor import RoundTripConstructor
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from truetune.config.schema import SECTIONS
from truetune.errors import ConfigError, first_line

_EDITORS_KEY = "$schema"
"""What an editor reads of a JSON file, and truetune does not."""

_MOST = 100_000
"""Values that a document may have: a few lines of aliases can stand for billions, or for themselves."""
_DEEPEST = 100
_BRACKETS = re.compile(r"[\[\]{}]")
_UNFIT = (ArithmeticError, AssertionError, AttributeError, LookupError, NotImplementedError, TypeError, ValueError)
"""What ruamel.yaml (0.18) raises, besides its own errors, for what a tag does not fit: `!!int x`, `<<: 5`."""


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """Where something was said. Places are ordered: by layer, then by line, what has no line last."""

    layer: int
    line: float
    source: str

    def __str__(self) -> str:
        """What a message begins with: `run.yaml:7: `, `command line: `, or nothing."""
        if math.isfinite(self.line):
            return f"{self.source}{self.line:g}: "
        return f"{self.source} " if self.source else ""


_FILE, _SETTINGS, _COMMAND_LINE, _NOWHERE = range(4)
MAPPING = Place(_FILE, math.inf, "")
SETTINGS = Place(_SETTINGS, math.inf, "setting")
COMMAND_LINE = Place(_COMMAND_LINE, math.inf, "command line:")
NOWHERE = Place(_NOWHERE, math.inf, "")


def file_place(path: str | Path, line: float = math.inf) -> Place:
    """A line of a file, counted from 1; without one, the file."""
    return Place(_FILE, line, f"{path}:")


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake, and where it was made."""

    place: Place
    text: str

    def __str__(self) -> str:
        return f"{self.place}{self.text}"


@dataclass(frozen=True, slots=True)
class Given:
    """One setting as it was given. `written` is the value as the file's reader has it, which knows its lines."""

    name: str
    value: Any
    place: Place
    written: Any = None

    def place_of(self, path: Sequence[int | str]) -> Place:
        """Where a part of the value stands: `path` leads there through lists and mappings."""
        place, node = self.place, self.written
        for step in path:
            place = _at(node, step, place)
            node = node[step] if _has(node, step) else None
        return place


def read_mapping(settings: Mapping[str, Any], place: Place) -> Iterator[Given]:
    """Each setting of a mapping with one level of sections; a YAML mapping knows its lines."""
    for key, value in settings.items():
        name, there = str(key), _at(settings, key, place)
        if name in SECTIONS and isinstance(value, Mapping):
            yield from (
                Given(f"{name}.{leaf}", plain(inner), _at(value, leaf, there), inner) for leaf, inner in value.items()
            )
        elif name not in SECTIONS or value is not None:
            yield Given(name, plain(value), there, value)


def read_file(path: Path, *, name: str) -> list[Given]:
    """The settings of a YAML or JSON file, which messages call `name`. Raises ConfigError with the line."""
    document = document_of(path)
    settings = read_mapping(document, file_place(name))
    return [given for given in settings if given.name != _EDITORS_KEY or not isinstance(given.value, str)]


def read_overrides(overrides: Sequence[str], problems: list[Problem]) -> Iterator[Given]:
    """The settings that "key=value" texts say, where they say one."""
    for text in overrides:
        name, equals, value = text.partition("=")
        if not equals or not name.strip() or not value.strip():
            problems.append(Problem(COMMAND_LINE, f"{text}: expected key=value"))
            continue
        try:
            found = plain(_loaded(value))
        except (YAMLError, RecursionError, *_UNFIT):
            problems.append(Problem(COMMAND_LINE, f"{text}: the value is not valid YAML; quote it"))
            continue
        if found is None and value.strip().lower() not in ("null", "~"):
            problems.append(Problem(COMMAND_LINE, f"{text}: to YAML this is a comment; quote it"))
            continue
        yield Given(name.strip(), found, COMMAND_LINE)


def yaml_text(document: Mapping[str, Any]) -> str:
    """The document as YAML that read_file reads back to an equal one."""
    text = StringIO()
    _yaml().dump(document, text)
    return text.getvalue()


def read_text(path: Path, *, what: str = "file") -> str:
    """The file's text. ConfigError, which calls it `what`, if there is none, or it is not text."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"{what} not found: {path}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not valid UTF-8", hint="save the file as UTF-8") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error


def parse_yaml(text: str, path: Path) -> Any:
    """What the text of a YAML or JSON file holds, with its comments and lines. ConfigError with the line."""
    try:
        return _loaded(text)
    except MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        reason = (error.problem or str(error)).splitlines()[0]
        raise ConfigError(f"{path}{line}: not valid YAML: {reason}") from error
    except YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {str(error).splitlines()[0]}") from error
    except RecursionError:
        raise ConfigError(f"{path}: not valid YAML: nested too deeply") from None
    except _UNFIT as error:
        raise ConfigError(f"{path}: not valid YAML: {first_line(error)}") from error


def _loaded(text: str) -> Any:
    """What ruamel.yaml makes of the text, which takes minutes over some thousand open brackets."""
    depth = 0
    for bracket in _BRACKETS.findall(text):
        depth += 1 if bracket in "[{" else -1
        if depth > _DEEPEST:
            raise RecursionError
    return _not_too_large(_yaml().load(text))


def _not_too_large(document: Any) -> Any:
    """The document. ValueError if it has more values than a person writes."""
    waiting, count = [document], 0
    while waiting:
        count += 1
        if count > _MOST:
            raise ValueError(f"more than {_MOST:,} values; does an alias (*) stand for itself?")
        match waiting.pop():
            case Mapping() as fields:
                waiting += fields.values()
            case list() as values:
                waiting += values
    return document


def document_of(path: Path) -> Mapping[str, Any]:
    """The file's mapping, with its comments and lines. ConfigError if it holds none."""
    document = parse_yaml(read_text(path, what="config file"), path)
    if not isinstance(document, Mapping):
        found = "nothing" if document is None else f"a {type(document).__name__}"
        raise ConfigError(f"{path}: expected settings, found {found}", hint="write model: {name_or_path: …}")
    return document


def _at(node: Any, key: Any, place: Place) -> Place:
    """Where an entry of a YAML mapping or list stands, if that is known; else `place`."""
    # A key that a YAML merge (<<) brought in has no line of its own.
    if not isinstance(node, CommentedMap | CommentedSeq) or not _has(node.lc.data or {}, key):
        return place
    return Place(place.layer, node.lc.data[key][0] + 1, place.source)


def _has(node: Any, key: Any) -> bool:
    match node:
        case Mapping():
            return key in node
        case list():
            return isinstance(key, int) and key < len(node)
        case _:
            return False


def plain(value: Any, *, other: Callable[[Any], Any] = lambda value: value) -> Any:
    """ruamel's types, which remember quotes and comments, as Python's own; `other` makes something of the rest."""
    match value:
        case Mapping():
            return {str(key): plain(inner, other=other) for key, inner in value.items()}
        case list():
            return [plain(inner, other=other) for inner in value]
        case PurePath():
            return str(value)
        case bool() | None:
            return value
        case int():
            return int(value)
        case float():
            return float(value)
        case str():
            # JSON writes a character beyond 16 bits as two escapes, which YAML reads as two characters.
            return str(value).encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")
        case _:
            return other(value)


class _Constructor(RoundTripConstructor):
    """YAML 1.2 has no dates: `2024-01-01` is text."""


_Constructor.add_constructor("tag:yaml.org,2002:timestamp", RoundTripConstructor.construct_yaml_str)


def _yaml() -> YAML:
    yaml = YAML()
    yaml.Constructor = _Constructor
    yaml.version = None
    yaml.default_flow_style = False
    yaml.width = 4096
    yaml.representer.add_representer(
        NoneType, lambda dumper, _: dumper.represent_scalar("tag:yaml.org,2002:null", "null")
    )
    return yaml
