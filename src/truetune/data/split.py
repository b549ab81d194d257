"""Training and validation rows: seeded, the same after a restart, stable when rows are appended, free of leaks."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from truetune.data.keys import first_of, row_key
from truetune.data.near import Pairs
from truetune.data.store import Keys, Places

DEFAULT_FRACTION, DEFAULT_CAP, DEFAULT_MINIMUM = 0.1, 1_000, 100


@dataclass(frozen=True, slots=True)
class Split:
    """The places of the rows to train on and of those held out to validate on.

    `pairs` are the near duplicates that were looked for, `of_one_form` the rows that were too many for one side.
    """

    train: Places
    held_out: Places
    pairs: Pairs
    of_one_form: Places


def split_rows(keys: Keys, *, test_size: float | int | None, seed: int) -> NDArray[np.bool_]:
    """True for each row that belongs to validation.

    A row's side hangs on its own key and the seed alone, so equal rows share a side and appended rows move no
    other; the share taken is therefore near `test_size`, not exact. A whole number asks for about that many rows;
    None takes a tenth, at most 1,000 rows, and none under 100 rows. At least one row stays on each side.
    """
    fraction = validation_fraction(len(keys), test_size)
    if not fraction:
        return np.zeros(len(keys), np.bool_)
    places = place(keys, seed)
    taken = places < fraction
    if not taken.any():
        taken = places == places.min()
    if taken.all():
        taken = places != places.max()
    return taken


def validation_fraction(rows: int, test_size: float | int | None) -> float:
    """The share of `rows` that `test_size` asks for."""
    if test_size is None:
        return 0.0 if rows < DEFAULT_MINIMUM else min(DEFAULT_FRACTION, DEFAULT_CAP / rows)
    if test_size >= 1:
        return min(test_size / rows, 0.5)
    return float(test_size) if rows > 1 else 0.0


def place(keys: Keys, seed: int, *, purpose: str = "split") -> NDArray[np.float64]:
    """Where each key falls in [0, 1): splitmix64's finalizer (Steele et al., OOPSLA 2014) over key and seed."""
    mixed = keys ^ np.uint64(row_key(f"{purpose} {seed}"))
    with np.errstate(over="ignore"):
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return (mixed >> np.uint64(11)).astype(np.float64) / 2.0**53


def linked(keys: Keys, groups: Keys) -> Keys:
    """A key for each row that it shares with its group, and with every group that holds an equal row."""
    parent: dict[int, int] = {}

    def root(name: int) -> int:
        while parent.setdefault(name, name) != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    owner: dict[int, int] = {}
    for key, group in zip(keys.tolist(), groups.tolist(), strict=True):
        first, other = sorted((root(group), root(owner.setdefault(key, group))))
        parent[other] = first  # The smallest stands for all, in whatever order the rows come.
    return np.array([root(group) for group in groups.tolist()], np.uint64)


def near_linked(groups: Keys, pairs: Pairs, *, test_size: float | int | None) -> tuple[Keys, Places]:
    """The groups with those joined that hold near duplicates, named by their first row, and the rows of large forms.

    Rows of one form with other words in its places are all linked over each other. More than half of the share for
    validation cannot be on one side: there only the groups as they are hold together.
    """
    if not len(pairs):
        return groups, np.empty(0, np.int64)
    clusters = pairs.clusters(len(groups))
    sizes = np.bincount(clusters, minlength=len(groups))[clusters]
    is_large = sizes > max(2.0, validation_fraction(len(groups), test_size) * len(groups) / 2)
    kept = pairs.where(~is_large[pairs.first])
    same = Pairs(first_of(groups), np.arange(len(groups)), np.ones(len(groups)))
    return groups[kept.joined(same).clusters(len(groups))], np.flatnonzero(is_large)


def repeated(keys: Keys) -> tuple[int, int | None]:
    """How many rows equal an earlier one, and the place of the first such row."""
    again = np.flatnonzero(first_of(keys) != np.arange(len(keys)))
    return len(again), int(again[0]) if len(again) else None
