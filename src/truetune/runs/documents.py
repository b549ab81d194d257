"""A run's files as they are found, for readers that must not fail: anybody may have written, moved or cut them."""

import json
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO


@dataclass(frozen=True, slots=True)
class Found:
    """What a file holds; `problem` says in a few words why it is not all that it should be."""

    value: Any
    problem: str | None = None


def own_file(folder: Path, path: Path) -> bool:
    """True for a file inside the folder. A link may show what its owner never meant to pass on."""
    return path.is_file() and path.resolve().is_relative_to(folder.resolve())


def at_once(path: str, flags: int) -> int:
    """Opens a file, and does not wait for a pipe that has its name."""
    # What Windows has not, it has no need of.
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def open_plain(path: Path) -> BinaryIO:
    """A file, opened to be read; OSError for a link, a pipe, a folder or a device in its place, not waited for."""
    careful = getattr(os, "O_NOFOLLOW", 0)
    file = open(path, "rb", opener=lambda name, flags: at_once(name, flags | careful))  # noqa: SIM115
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(f"{path.name} is no file")
    return file


def last_lines(file: BinaryIO, *, most: int = 65_536) -> bytes:
    """The whole lines among a file's last bytes, some 200 of metrics: a killed process leaves half of one."""
    start = max(0, file.seek(0, os.SEEK_END) - most)
    file.seek(start)
    text = file.read(most)
    first = text.find(b"\n") + 1 if start else 0
    return text[first : text.rfind(b"\n") + 1]


def json_object(folder: Path, path: Path) -> Found:
    """The object in a JSON file of the folder; an empty one where there is none."""
    text = text_file(folder, path)
    if text.problem:
        return Found({}, text.problem)
    value = _parsed(text.value)
    return Found(value) if isinstance(value, dict) else Found({}, f"{path.name} is damaged")


def json_lines(folder: Path, path: Path) -> Found:
    """The objects in a file of JSON lines, without lines that are none: a killed process leaves half of one."""
    text = text_file(folder, path)
    if text.problem:
        return Found([], text.problem)
    found, damaged = json_objects(text.value)
    return Found(found, damage(path, damaged))


def damage(path: Path, lines: int) -> str | None:
    """What is told of so many lines of a file that are none."""
    return f"{lines:,} lines of {path.name} are damaged" if lines else None


def json_objects(text: str) -> tuple[list[dict[str, Any]], int]:
    """The objects in JSON lines, and how many lines are none."""
    lines = [line for line in text.split("\n") if line.strip()]
    # All at once takes half the time of one by one; where any line is damaged, that says nothing.
    together = _parsed(f"[{','.join(lines)}]")
    values = together if together is not None and len(together) == len(lines) else map(_parsed, lines)
    found = [value for value in values if isinstance(value, dict)]
    return found, len(lines) - len(found)


def text_file(folder: Path, path: Path) -> Found:
    """A text file of the folder."""
    found = bytes_file(folder, path)
    return Found(found.value.decode("utf-8", "replace"), found.problem)


def bytes_file(folder: Path, path: Path) -> Found:
    """A file of the folder as it is."""
    if not own_file(folder, path):
        return Found(b"", f"{path.name} is missing")
    try:
        return Found(path.read_bytes())
    except OSError as error:
        return Found(b"", f"{path.name} cannot be read: {error.strerror}")


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


# --- what stands in them ----------------------------------------------------------------------------------


def mapping(document: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """The object under these names, one in the other; an empty one where there is none."""
    found: Any = document
    for name in names:
        found = found.get(name) if isinstance(found, dict) else None
    return found if isinstance(found, dict) else {}


def mappings(document: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    """The objects of a list."""
    found = document.get(name)
    return [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []


def text(document: Mapping[str, Any], name: str) -> str:
    """A text, or another simple value as JSON has it; empty for null, and where there is none."""
    found = document.get(name)
    if isinstance(found, str) or found is None:
        return found or ""
    with suppress(RecursionError):
        return json.dumps(found, ensure_ascii=False)
    return ""


def texts(document: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Each name with its value as text."""
    return ((name, text(document, name)) for name in document)
