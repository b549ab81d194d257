"""A config file of another tool: its values as Python's own, and the line of each key."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml.comments import CommentedMap, CommentedSeq

from truetune.config.document import parse_yaml, plain, read_text
from truetune.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Document:
    """The values under their keys, and at which line each stands: {"datasets[0].path": 7}."""

    values: Mapping[str, Any]
    lines: Mapping[str, int]


def read_document(path: Path) -> Document:
    """A YAML or JSON file whose keys are settings. ConfigError with file and line for one that is none."""
    loaded = parse_yaml(read_text(path), path)
    if not isinstance(loaded, Mapping) or not loaded:
        found = "nothing" if not loaded else f"a {type(loaded).__name__}"
        raise ConfigError(f"{path}: expected a tool's settings, found {found}")
    return Document(plain(loaded, other=str), dict(_lines(loaded, "")))


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
