"""Splits as file names carry them: data/train-00000-of-00002.parquet, valid.jsonl, test/0.csv."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from truetune.errors import DataError

_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev", "eval", "evaluation"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_SHARD = re.compile(r"(?P<split>.+?)-\d{5}-of-\d{5}")


@dataclass(frozen=True, slots=True)
class Chosen:
    """The names of one split; `split` is None where no name carries one."""

    names: tuple[str, ...]
    split: str | None


def split_word(word: str) -> str | None:
    """train, validation or test, if the word is one of their names."""
    return _WORDS.get(word.lower())


def split_of(name: str) -> str | None:
    """The split that a file's path names: in its own name, else in the nearest folder's.

    A shard's is all before its number: train_sft of data/train_sft-00000-of-00003.parquet.
    """
    path = PurePosixPath(name)
    shard = _SHARD.match(path.name)
    if shard:
        return split_word(shard["split"]) or shard["split"]
    for part in reversed(path.parts):
        found = next(filter(None, map(split_word, re.split(r"[^A-Za-z0-9]|(?<=[A-Za-z])(?=[0-9])", part))), None)
        if found:
            return found
    return None


def choose_split(names: Iterable[str], *, split: str | None, place: str) -> Chosen:
    """Those of `names` that belong to `split`; with None: to train, or to the only split there is.

    All of them, if none names a split. DataError, naming the splits there, if the one asked for is not among them.
    """
    by_split: dict[str | None, list[str]] = {}
    for name in names:
        by_split.setdefault(split_of(name), []).append(name)
    named = sorted(each for each in by_split if each)
    if not named:
        unsplit = tuple(by_split.get(None, ()))
        return Chosen(unsplit, None) if is_train(split) else Chosen(_missing(split, place, named), split)
    if split is None and len(by_split) == 1:
        return Chosen(tuple(by_split[named[0]]), named[0])
    wanted = split or "train"
    found = next((each for each in (wanted, split_word(wanted)) if each in by_split), None)
    return Chosen(tuple(by_split[found]), found) if found else Chosen(_missing(wanted, place, named), wanted)


def is_train(split: str | None) -> bool:
    """Whether rows without a split are meant: none is named, or train."""
    return split is None or split_word(split) == "train"


def require_whole(split: str | None) -> None:
    """DataError for a slice such as `train[:10%]` or a sum such as `train+test`."""
    if split and "[" in split:
        raise DataError(
            f"split {split!r}: slices of a split are not read",
            hint=f"name it whole, {split.partition('[')[0]}; training.max_steps makes a run short",
        )
    if split and "+" in split:
        parts = split.split("+")
        entries = ", ".join(f"{{path: …, split: {part}}}" for part in parts)
        raise DataError(f"split {split!r}: one split at a time", hint=f"give data.path a list: [{entries}]")


def _missing(split: str | None, place: str, named: Sequence[str]) -> tuple[str, ...]:
    if not named:
        raise DataError(f"{place}: no split {split!r}: no file's name carries a split", hint="leave the split out")
    raise DataError(
        f"{place}: no split {split!r}; there {'is' if len(named) == 1 else 'are'} {', '.join(named)}",
        hint=f"name one of them: split: {named[0]}",
    )
