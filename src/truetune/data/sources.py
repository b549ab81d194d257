"""What an entry of data.path stands for: a file, a folder, a glob or a hub id, and the files that hold its rows."""

import difflib
import glob
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from truetune.data.remedies import kind_remedy
from truetune.data.splits import choose_split, is_train, require_whole
from truetune.data.streams import KINDS, READ_KINDS, suffix_of
from truetune.errors import DataError, first_line

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_HUB_URL = re.compile(r"(?:https?://huggingface\.co|hf:/)/datasets/([\w.-]+/[\w.-]+).*")

_NO_DATA = {
    "dataset_info.json",
    "dataset_infos.json",
    "dataset_dict.json",
    "state.json",
    "config.json",
    "package.json",
}
SIDECAR, CHANGES = ".ttignore", ".changes.jsonl"
"""What stands beside a data file, named after it: which lines check leaves alone, what --fix has changed."""

_DOCUMENTS = {"readme", "license", "licence", "notice", "requirements", "changelog"}

_SHOWN = 80
"""Characters of a name that is told."""


@dataclass(frozen=True, slots=True)
class Source:
    """One entry of data.path: a file, a folder, a glob (`*`, `?`, `**`) or a hub id.

    `data_files` is a path or a glob inside a folder or hub id, `subset` a hub id's configuration, `field` the dotted
    path to the rows of a .json file.
    """

    path: str
    weight: float = 1.0
    split: str | None = None
    revision: str | None = None
    data_files: str | None = None
    subset: str | None = None
    field: str | None = None


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file of rows: `path` is where its bytes are, `name` what findings call it.

    `field` and `split` say where the rows stand inside a .json file.
    """

    path: Path
    name: str
    weight: float = 1.0
    field: str | None = None
    split: str | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """The files of a source in a fixed order, and what was chosen on the way."""

    files: tuple[SourceFile, ...]
    notices: tuple[str, ...] = ()


def find_files(source: Source) -> Found:
    """The files that hold the source's rows; those of a hub id are fetched. DataError if there are none."""
    require_whole(source.split)
    _require_name(source.path)
    if _is_hub_id(source):
        return _hub_files(source)
    return _local_files(source)


def require_source(source: Source) -> None:
    """DataError for what can be known at once and without a network: no such file, no kind that is read."""
    require_whole(source.split)
    _require_name(source.path)
    if not _is_hub_id(source):
        _local_files(source)


def is_data_file(name: str) -> bool:
    """Whether a file in a folder is one of rows, by its name."""
    path = PurePosixPath(name)
    if any(part.startswith((".", "__")) for part in path.parts) or suffix_of(path.name) not in KINDS:
        return False
    stem = path.name.partition(".")[0].lower()
    return path.name not in _NO_DATA and not (suffix_of(path.name) == ".txt" and stem in _DOCUMENTS)


def data_files_among(names: Iterable[str]) -> list[str]:
    """The files of rows among those of a folder, sorted; text files only if there are no others."""
    found = sorted(filter(is_data_file, names))
    return [name for name in found if suffix_of(name) != ".txt"] or found


def _require_name(path: str) -> None:
    """DataError for a name that the system does not look up: too long, of an unknown user, in a forbidden folder."""
    try:
        Path(path).expanduser().stat()
    except (FileNotFoundError, NotADirectoryError):
        return
    except (OSError, ValueError, RuntimeError) as error:
        shown = path if len(path) <= _SHOWN else f"{path[:_SHOWN]}…"
        reason = getattr(error, "strerror", None) or first_line(error)
        hint = "name a file, a folder, a glob or a hub id"
        raise DataError(f"{shown}: cannot be looked up: {reason}", hint=hint) from error


def _is_hub_id(source: Source) -> bool:
    path = source.path
    return bool(_HUB_ID.fullmatch(path)) and suffix_of(path) not in KINDS and not Path(path).expanduser().exists()


def _hub_files(source: Source) -> Found:
    from truetune.data.hub import fetch_files

    fetched = fetch_files(
        source.path,
        revision=source.revision,
        subset=source.subset,
        split=source.split,
        data_files=source.data_files,
    )
    files = [SourceFile(path, name, source.weight, source.field) for name, path in fetched.files.items()]
    return Found(tuple(files), fetched.notices)


def _local_files(source: Source) -> Found:
    _refuse_hub_settings(source)
    path = Path(source.path).expanduser()
    if source.path and path.is_dir():
        return _folder_files(source, path)
    if source.data_files:
        raise DataError(f"{source.path} is no folder that data_files could be in", hint="leave data_files out")
    if source.path and path.exists():
        return Found((_single_file(source, path),))
    if any(mark in source.path for mark in "*?"):
        return _glob_files(source)
    raise _not_found(source.path)


def _refuse_hub_settings(source: Source) -> None:
    url = _HUB_URL.fullmatch(source.path)
    if url:
        raise DataError(f"{source.path} is an address, not a path", hint=f"write the hub id: {url[1]}")
    for name, value in (("revision", source.revision), ("subset", source.subset)):
        if value:
            raise DataError(
                f"{name} {value!r} says nothing about {source.path}, which is no hub id",
                hint=f"set {name} at the hub id alone: data.path: [{{path: org/name, {name}: {value}}}]",
            )


def _single_file(source: Source, path: Path) -> SourceFile:
    name = source.path
    if suffix_of(path) not in KINDS:
        hint = kind_remedy(path.suffix) or f"use {READ_KINDS}"
        raise DataError(f"{name}: files ending in {path.suffix or 'nothing'} are not read", hint=hint)
    is_json = suffix_of(path) == ".json"
    if source.field and not is_json:
        raise DataError(f"{name}: only a .json file has fields", hint=f"leave out field: {source.field}")
    if not is_json and not is_train(source.split):
        raise DataError(f"{name}: no split {source.split!r}: it is one file", hint="leave the split out")
    return SourceFile(path, name, source.weight, source.field, source.split if is_json else None)


def _folder_files(source: Source, folder: Path) -> Found:
    if (folder / "dataset_dict.json").is_file():
        return _saved_splits(source, folder)
    if (folder / "state.json").is_file():
        return _saved_files(source, folder, [])
    every = _visible_files(folder)
    if source.data_files:
        every = _matching(every, source)
    names = data_files_among(every)
    if not names:
        raise _nothing_in(source.path, every)
    chosen = choose_split(names, split=source.split, place=source.path)
    notices = _notices(source.path, every, names, chosen.names, chosen.split)
    return Found(tuple(_inside(source, folder, name) for name in chosen.names), notices)


def _visible_files(folder: Path) -> list[str]:
    names = (file.relative_to(folder) for file in folder.rglob("*") if file.is_file() and not is_beside(file.name))
    return sorted(name.as_posix() for name in names if not any(part.startswith(".") for part in name.parts))


def is_beside(name: str) -> bool:
    """True for a file that truetune keeps beside a data file."""
    return name.endswith((SIDECAR, CHANGES))


def _inside(source: Source, folder: Path, name: str) -> SourceFile:
    return SourceFile(folder / name, f"{source.path.rstrip('/')}/{name}", source.weight, _field(source, name))


def matching(names: Sequence[str], pattern: str) -> list[str]:
    """The names that a glob matches: `*` and `?` stay inside a folder's name, `**` does not."""
    expression = re.compile(_expression(pattern.removeprefix("./")))
    return [name for name in names if expression.fullmatch(name)]


def _expression(pattern: str) -> str:
    pieces = re.split(r"(\*\*/|\*\*|\*|\?)", pattern)
    marks = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return "".join(marks.get(piece, re.escape(piece)) for piece in pieces)


def _matching(names: Sequence[str], source: Source) -> list[str]:
    assert source.data_files
    found = matching(names, source.data_files)
    if not found:
        raise DataError(
            f"{source.path}: no file matches data_files {source.data_files!r}", hint=_there_are(names, "no files")
        )
    return found


def _glob_files(source: Source) -> Found:
    """The files that match; a split is only chosen among them if one is named."""
    every = sorted(glob.glob(str(Path(source.path).expanduser()), recursive=True))
    every = [name for name in every if Path(name).is_file() and not is_beside(name)]
    if not every:
        raise DataError(f"no file matches {source.path}", hint="see what is there, or quote the glob in the shell")
    names = [name for name in every if suffix_of(name) in KINDS]
    if not names:
        raise _nothing_in(source.path, every)
    chosen = choose_split(names, split=source.split, place=source.path) if source.split else None
    kept, split = (chosen.names, chosen.split) if chosen else (tuple(names), None)
    files = tuple(SourceFile(Path(name), name, source.weight, _field(source, name)) for name in kept)
    return Found(files, _notices(source.path, every, names, kept, split))


def _field(source: Source, name: str) -> str | None:
    return source.field if suffix_of(name) == ".json" else None


def _saved_splits(source: Source, folder: Path) -> Found:
    """A DatasetDict that `save_to_disk` wrote: a folder for each split."""
    splits: list[str] = _document(folder / "dataset_dict.json", source)["splits"]
    split = source.split or ("train" if "train" in splits or len(splits) != 1 else splits[0])
    if split not in splits:
        raise DataError(
            f"{source.path}: no split {split!r}; there are {', '.join(splits)}", hint=f"name one: split: {splits[0]}"
        )
    return _saved_files(source, folder / split, [split], f"{source.path}: split {split} of {', '.join(splits)}")


def _saved_files(source: Source, folder: Path, parents: list[str], *notices: str) -> Found:
    """A Dataset that `save_to_disk` wrote: its state names its Arrow files."""
    state = _document(folder / "state.json", source)
    if state.get("_indices_files") or state.get("_indices_data_files"):
        raise DataError(
            f"{source.path}: saved with an order of its own, by an old version of datasets",
            hint="load it, and save it anew with flatten_indices().save_to_disk(…)",
        )
    if not parents and not is_train(source.split):
        raise DataError(f"{source.path}: no split {source.split!r}: it is one data set", hint="leave the split out")
    names = [str(each["filename"]) for each in state["_data_files"]]
    missing = [name for name in names if not (folder / name).is_file()]
    if missing or not names:
        raise DataError(f"{source.path}: {', '.join(missing) or 'its data'} is missing", hint="save the data anew")
    prefix = "/".join([source.path.rstrip("/"), *parents])
    return Found(tuple(SourceFile(folder / name, f"{prefix}/{name}", source.weight) for name in names), notices)


def _document(path: Path, source: Source) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))  # type: ignore[no-any-return]
    except (OSError, ValueError) as error:
        raise DataError(f"{source.path}: {path.name} cannot be read: {error}", hint="save the data anew") from error


def _notices(
    place: str, every: Sequence[str], names: Sequence[str], chosen: Sequence[str], split: str | None
) -> tuple[str, ...]:
    notices = []
    if split is not None:
        notices.append(f"split {split}: {len(chosen)} of {_files(len(names))} in {place}")
    others = [name for name in every if name not in set(names)]
    if others:
        notices.append(f"{_files(len(others))} in {place} passed over: {_some(others)}")
    return tuple(notices)


def _files(count: int) -> str:
    return "1 file" if count == 1 else f"{count} files"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _there_are(names: Sequence[str], nothing: str) -> str:
    return f"there are {_some(names)}" if names else f"there are {nothing}"


def _nothing_in(place: str, names: Sequence[str]) -> DataError:
    found = f"it holds {_some(names)}" if names else "it is empty"
    remedies = filter(None, (kind_remedy(Path(name).suffix) for name in names))
    hint = next(remedies, f"give files ending in {READ_KINDS}")
    return DataError(f"{place}: no file of rows in it: {found}", hint=hint)


def _not_found(path: str) -> DataError:
    folder = Path(path).expanduser().parent
    there = _names_in(folder)
    close = difflib.get_close_matches(Path(path).name, there, n=3, cutoff=0.7)
    if close:
        parent = "" if str(folder) == "." else f"{Path(path).parent}/"
        hint = "did you mean " + " or ".join(f"{parent}{name}" for name in close) + "?"
    elif not folder.is_dir():
        hint = f"there is no folder {folder}"
    else:
        hint = f"give {READ_KINDS}, a folder, a glob or a hub id (org/name)"
    return DataError(f"data file not found: {path}", hint=hint)


def _names_in(folder: Path) -> list[str]:
    """What is in a folder, as far as it may be listed."""
    try:
        return sorted(each.name for each in folder.iterdir())
    except OSError:
        return []
