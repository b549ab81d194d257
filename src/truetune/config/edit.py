"""Settings written into a config file that a person wrote: its comments, order and other settings stay."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from truetune.config.document import document_of, yaml_text
from truetune.config.names import ALIASES
from truetune.config.schema import SECTIONS, setting_names

_BY_LEAF = {name.rpartition(".")[2]: name for name in setting_names()}


def with_settings(path: Path, settings: Mapping[str, Any]) -> str:
    """The file's text with these settings, by dotted name, in place of those it has for them under any name."""
    document: Any = document_of(path)
    for name, value in settings.items():
        _set(document, name, value)
    return yaml_text(document)


def _set(document: Any, name: str, value: Any) -> None:
    """In its place, where the file has it under our name; else in its section, and gone from where it was."""
    section, _, leaf = name.rpartition(".")
    sections = [document[each] for each in SECTIONS if isinstance(document.get(each), Mapping)]
    places = [(mapping, key) for mapping in (document, *sections) for key in mapping if _target(key) == name]
    kept = next(((mapping, key) for mapping, key in places if key in (leaf, name)), None)
    for mapping, key in places:
        if (mapping, key) != kept:
            del mapping[key]
    if kept is not None:
        kept[0][kept[1]] = value
    elif isinstance(document.get(section), Mapping):
        document[section][leaf] = value
    else:
        document[name] = value


def _target(key: Any) -> str | None:
    """The setting that a key names, dotted, bare or by another tool's name."""
    leaf = str(key).rpartition(".")[2]
    alias = ALIASES.get(leaf)
    return alias.target if alias else _BY_LEAF.get(leaf)
