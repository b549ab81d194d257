"""Settings written into a config file that a person wrote: its comments, order and other settings stay."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml.tokens import CommentToken

from truetune.config.document import document_of, yaml_text
from truetune.config.names import ALIASES
from truetune.config.schema import SECTIONS, setting_names

_BY_LEAF = {name.rpartition(".")[2]: name for name in setting_names()}


def with_settings(path: Path, settings: Mapping[str, Any]) -> str:
    """The file's text with these settings, by dotted name, in place of those it has for them under any name."""
    document: Any = document_of(path)
    for name, value in settings.items():
        _set(document, name, value)
    if path.suffix == ".json":
        return json.dumps(document, indent=2, ensure_ascii=False) + "\n"
    return yaml_text(document)


def _set(document: Any, name: str, value: Any) -> None:
    """Where the file has it, under our name; else in its section. Gone from every other place."""
    section, _, leaf = name.rpartition(".")
    own = document.get(section)
    own = own if isinstance(own, Mapping) else None
    places = sorted(_places(document, name), key=lambda place: place[1] not in (leaf, name))
    kept = next((place for place in places if place[0] is document or place[0] is own), None)
    for place in places:
        if place is not kept:
            del place[0][place[1]]
    if kept is not None:
        mapping, key = kept
        _replace(mapping, key, name if "." in str(key) else leaf, value)
    elif own is not None:
        _append(own, leaf, value)
    else:
        document[name] = value


def _places(document: Any, name: str) -> Iterator[tuple[Any, Any]]:
    """The mappings and the keys under which the file has the setting."""
    sections = {each: document[each] for each in SECTIONS if isinstance(document.get(each), Mapping)}
    for mapping in (document, *sections.values()):
        for key in mapping:
            if _target(key) == name and not (mapping is document and key in sections):
                yield mapping, key


def _target(key: Any) -> str | None:
    """The setting that a key names, dotted, bare or by another tool's name."""
    leaf = str(key).rpartition(".")[2]
    alias = ALIASES.get(leaf)
    return alias.target if alias else _BY_LEAF.get(leaf)


def _replace(mapping: Any, key: Any, name: str, value: Any) -> None:
    """Another value, and our name, in the same line with its comment."""
    if key != name:
        place, comment = list(mapping).index(key), mapping.ca.items.pop(key, None)
        del mapping[key]
        mapping.insert(place, name, value)
        if comment is not None:
            mapping.ca.items[name] = comment
    mapping[name] = value


def _append(mapping: Any, name: str, value: Any) -> None:
    """At the end of a section: what stands behind its last line, of the next section, stays behind it."""
    last = next(reversed(mapping), None)
    mapping[name] = value
    token = (mapping.ca.items.get(last) or [None] * 3)[2]
    if token is not None and not mapping.fa.flow_style():
        own, newline, behind = token.value.partition("\n")
        if behind:
            token.value = own + newline
            mapping.ca.items[name] = [None, None, CommentToken(newline + behind, token.start_mark), None]
