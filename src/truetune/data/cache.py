"""Prepared rows kept between runs: a folder for each digest of what shaped them, made by one process at a time."""

import hashlib
import json
from collections.abc import Callable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from truetune.files import staged_folder

Build = Callable[[Path], None]


def cached(
    root: Path, key: str, build: Build, *, is_whole: Callable[[Path], bool], on_wait: Callable[[], None]
) -> Path:
    """The folder of `key`, made by `build` if it is not there as a whole: all of it or nothing, by one process only.

    The others wait and then find it; `on_wait` is called once by one that has to. Whoever cleans the cache may have
    taken files out of a folder, which `is_whole` tells.
    """
    from filelock import FileLock, Timeout

    folder = root / key
    if is_whole(folder):
        return folder
    root.mkdir(parents=True, exist_ok=True)
    lock = FileLock(root / f"{key}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        on_wait()
        lock.acquire()
    try:
        if not is_whole(folder):
            with staged_folder(folder) as staged:
                build(staged)
    finally:
        lock.release()
    return folder


def digest(parts: Mapping[str, Any]) -> str:
    """A name for these parts (JSON-ready): another part, another name."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def file_digest(path: Path) -> str:
    """A digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()


def code_digest(*packages: str) -> str:
    """A digest of the source of these packages: between two releases the version alone does not tell."""
    content = hashlib.blake2b()
    for package in packages:
        for file in sorted(files(package).iterdir(), key=lambda file: file.name):
            if file.name.endswith(".py"):
                content.update(f"{package}/{file.name}".encode() + file.read_bytes())
    return content.hexdigest()


def tokenizer_digest(tokenizer: Any) -> str:
    """A digest of all that decides on a tokenizer's ids."""
    backend = tokenizer.backend_tokenizer.to_str() if getattr(tokenizer, "is_fast", False) else repr(tokenizer)
    parts = {"backend": backend, "special": {k: str(v) for k, v in tokenizer.special_tokens_map.items()}}
    return digest(parts)
