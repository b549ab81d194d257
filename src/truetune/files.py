"""Files and folders written whole or not at all: written under a hidden name, flushed, then renamed."""

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from truetune.errors import ConfigError, DataError

_REMEDIES = {
    errno.ENOSPC: "make space there, or write elsewhere",
    errno.EFBIG: "that disk, or a limit of this shell (ulimit -f), takes no file of this size: write elsewhere",
    errno.EDQUOT: "your quota is used up: make space there, or write elsewhere",
    errno.EACCES: "this user may not write there: change its permissions, or write elsewhere",
    errno.EPERM: "this user may not write there: change its permissions, or write elsewhere",
    errno.EROFS: "that disk can only be read: write elsewhere",
    errno.ENOENT: "it was moved or deleted by somebody else",
    errno.EEXIST: "a file has that name: write elsewhere",
    errno.ENOTDIR: "part of that path is a file: write elsewhere",
}


def remedy(error: OSError) -> str | None:
    """What a user can do about a file that could not be written."""
    return _REMEDIES.get(error.errno or 0)


def write_json(path: Path, document: Any) -> None:
    """Writes a JSON file whole or not at all."""
    write_text(path, json.dumps(document, indent=2, ensure_ascii=False, default=str) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes, flushes to the disk, then renames over `path`."""
    with staged_file(path) as staged:
        # Half of a surrogate pair, of a file's name or of a row, is written as its escape, as JSON has it.
        staged.write_text(text, encoding="utf-8", errors="backslashreplace")


@contextmanager
def named_refusals(path: Path) -> Iterator[None]:
    """Makes what the disk refuses inside the block a DataError that names the file and what to do."""
    try:
        yield
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror or error}", hint=remedy(error)) from error


@contextmanager
def staged_file(path: Path) -> Iterator[Path]:
    """A hidden file that takes `path`'s name, flushed, when the block ends well, and vanishes otherwise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=_hidden(path))
    os.close(handle)
    staged = Path(name)
    try:
        yield staged
        staged.chmod(0o644)
        flush(staged)
        os.replace(staged, path)
    finally:
        staged.unlink(missing_ok=True)
    flush(path.parent)


@contextmanager
def staged_folder(folder: Path) -> Iterator[Path]:
    """A hidden folder that takes `folder`'s name, and its place, when the block ends well, and vanishes otherwise.

    All that is in it is on the disk before it takes the name, and the name before this returns.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    staged = Path(tempfile.mkdtemp(dir=folder.parent, prefix=_hidden(folder)))
    try:
        staged.chmod(0o755)
        yield staged
        for path in [*staged.rglob("*"), staged]:
            flush(path)
        remove_folder(folder)
        os.replace(staged, folder)
        flush(folder.parent)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def remove_folder(folder: Path) -> None:
    """Removes a folder, if it is there; it loses its name at once, however long its files take."""
    if folder.is_symlink():
        folder.unlink()
    elif folder.exists():
        shutil.rmtree(set_aside(folder), ignore_errors=True)


def set_aside(folder: Path) -> Path:
    """Takes a folder's name away: it is among the leftovers then, under the name that is returned."""
    aside = Path(tempfile.mkdtemp(dir=folder.parent, prefix=_hidden(folder)))
    os.replace(folder, aside)
    return aside


def flush(path: Path) -> None:
    """Has the disk take what was written to a file, or the names in a folder."""
    if path.is_dir() and os.name == "nt":
        return  # Windows does not open folders, and keeps their names itself.
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def aside(path: Path) -> Path:
    """A hidden name beside a file: under it, what dies with its process is among the leftovers."""
    return path.with_name(f"{_hidden(path)}{os.getpid()}")


def leftovers(folder: Path) -> list[Path]:
    """The hidden files and folders in it that a killed process was writing, or removing."""
    return [path for path in folder.glob(".*") if path.name.startswith(_PREFIX)]


_PREFIX = ".unfinished-"


def _hidden(path: Path) -> str:
    return f"{_PREFIX}{path.name}-"


def free_bytes(path: Path) -> int:
    """What is free on the disk where `path` is, or would be made."""
    there = next(each for each in (path, *path.absolute().parents) if each.is_dir())
    return shutil.disk_usage(there).free


def require_place(out: Path, *, overwrite: bool, is_ours: bool, what: str) -> None:
    """ConfigError if writing `what` to `out` would take something away; an empty folder is nothing."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not overwrite:
        raise ConfigError(f"{out} is there already", hint="choose another name, or replace it with --overwrite")
    if not is_ours:
        raise ConfigError(f"{out} is no {what}: --overwrite replaces nothing else", hint="choose another name")
