"""Checkpoints on the disk: written out of sight, listed in a manifest, checked before anything of them is read."""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from truetune.errors import CheckpointError
from truetune.files import remove_folder, staged_folder, write_json

MANIFEST = "manifest.json"
_NAME = "checkpoint-"


@contextmanager
def manifested(folder: Path, facts: Mapping[str, Any]) -> Iterator[Path]:
    """A hidden folder that becomes `folder` when the block ends well, with a manifest of its files and the facts.

    The facts are read at the block's end.
    """
    with staged_folder(folder) as staged:
        yield staged
        files = {path.relative_to(staged).as_posix(): path for path in sorted(staged.rglob("*")) if path.is_file()}
        listed = {name: {"bytes": path.stat().st_size, "sha256": sha256(path)} for name, path in files.items()}
        write_json(staged / MANIFEST, {**facts, "files": listed})


def read_manifest(folder: Path) -> dict[str, Any]:
    """What was written with a folder's files. CheckpointError if it is not there, or damaged."""
    path = folder / MANIFEST
    try:
        document = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged") from error
    if not isinstance(document, dict) or not isinstance(document.get("files"), dict):
        raise CheckpointError(f"{path} is damaged")
    return document


def problems(folder: Path) -> list[str]:
    """What is wrong with a folder that has a manifest, each by its file's name; none if it is as it was written."""
    try:
        files: dict[str, Any] = read_manifest(folder)["files"]
    except CheckpointError as error:
        return [str(error).removeprefix(f"{folder}/")]
    return [f"{name} {problem}" for name, entry in files.items() if (problem := _problem(folder, name, entry))]


def require_as_written(folder: Path) -> None:
    """CheckpointError for a folder whose files are not those of its manifest; a card (README.md) may be edited.

    A folder without a manifest is taken as it is.
    """
    if not (folder / MANIFEST).is_file():
        return
    changed = [problem for problem in problems(folder) if not problem.startswith("README.md ")]
    if changed:
        hint = "take it from a backup, or make it anew"
        raise CheckpointError(f"{folder} is not what was written: {changed[0]}", hint=hint)


def _problem(folder: Path, name: str, entry: Mapping[str, Any]) -> str | None:
    path = folder / name
    if path.is_symlink() or not path.resolve().is_relative_to(folder.resolve()):
        return "is a link, or leads out of its folder"
    if not path.is_file():
        return "is missing"
    if (size := path.stat().st_size) != entry["bytes"]:
        return f"has {size:,} of {entry['bytes']:,} bytes"
    return None if sha256(path) == entry["sha256"] else "is not what was written (its SHA-256 differs)"


def sha256(path: Path) -> str:
    """The digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def state_digests(checkpoint: Path) -> dict[str, str]:
    """The digests of a checkpoint's weights, optimizer, schedule and random states, by file, from its manifest."""
    files = read_manifest(checkpoint)["files"]
    return {name: files[name]["sha256"] for name in files if name.endswith((".safetensors", ".pt", ".pth"))}


def checkpoint_folder(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return folder / f"{_NAME}{step}"


def checkpoint_step(path: Path) -> int:
    """The step in a checkpoint's name; -1 where there is none."""
    number = path.name.removeprefix(_NAME)
    return int(number) if path.name.startswith(_NAME) and number.isascii() and number.isdigit() else -1


def checkpoints_in(folder: Path) -> list[Path]:
    """All checkpoints there, sound or not, the newest first."""
    found = [path for path in folder.glob(f"{_NAME}*") if path.is_dir() and checkpoint_step(path) >= 0]
    return sorted(found, key=checkpoint_step, reverse=True)


def logged_lines(checkpoint: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl up to a checkpoint, as Trainer keeps them with it."""
    history: list[dict[str, Any]] = json.loads((checkpoint / "trainer_state.json").read_bytes())["log_history"]
    return [metrics_line(line.pop("step"), line) for line in history if "train_runtime" not in line]


def metrics_line(step: int, logs: Mapping[str, Any]) -> dict[str, Any]:
    """A line of metrics.jsonl. JSON has no NaN: a value that is none is null, never 0."""
    finite = {n: None if isinstance(v, float) and not math.isfinite(v) else v for n, v in logs.items()}
    return {"step": step, **finite}


def untimed(line: Mapping[str, Any]) -> dict[str, Any]:
    """A line of metrics without times, rates and memory, which no two trainings share."""
    own = ("_per_second", "_runtime", "memory_bytes")
    return {name: value for name, value in line.items() if not name.endswith(own)}


def listed(folder: Path) -> list[Path]:
    """The checkpoints there that have a manifest: our own, written to their end, the newest first."""
    return [path for path in checkpoints_in(folder) if (path / MANIFEST).is_file()]


def newest_listed(folder: Path) -> Path | None:
    """The newest of our own checkpoints there; its files are not read."""
    return next(iter(listed(folder)), None)


def rotate(folder: Path, *, limit: int | None, best: Path | None) -> None:
    """Removes the oldest checkpoints beyond the limit: never the newest or the best one, or what has no manifest."""
    own = listed(folder)
    if limit is None or not own:
        return
    kept = {own[0], *(path for path in own if best is not None and path.name == best.name)}
    for path in own:
        if len(kept) < limit:
            kept.add(path)
    for path in own:
        if path not in kept:
            remove_folder(path)
