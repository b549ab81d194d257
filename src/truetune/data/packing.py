"""Samples packed end to end into sequences of at most `max_length` tokens; none is cut, none is lost.

Only places are packed: a sequence's tokens are put together when it is asked for. TRL's `pack_dataset` has the same
aim (best fit decreasing) and writes every token anew, a thousand rows at a time.
"""

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from typing import overload

import numpy as np

from truetune.data.examples import Packed, Tokenized
from truetune.data.store import StoredRows
from truetune.errors import DataError


class PackedRows(Sequence[Packed]):
    """Sequences of several rows each: `packs` holds the rows' places."""

    def __init__(self, rows: Sequence[Tokenized], packs: Sequence[Sequence[int]]) -> None:
        self._rows = rows
        self.packs = packs

    def __len__(self) -> int:
        return len(self.packs)

    @overload
    def __getitem__(self, index: int) -> Packed: ...
    @overload
    def __getitem__(self, index: slice) -> "PackedRows": ...
    def __getitem__(self, index: int | slice) -> "Packed | PackedRows":
        if isinstance(index, slice):
            return PackedRows(self._rows, self.packs[index])
        rows = [self._rows[place] for place in self.packs[index]]
        return Packed(
            input_ids=[token for row in rows for token in row.input_ids],
            labels=[label for row in rows for label in row.labels],
            seq_lengths=[len(row.input_ids) for row in rows],
            weights=[row.weight for row in rows],
        )

    def __iter__(self) -> Iterator[Packed]:
        return (self[index] for index in range(len(self)))


def pack(rows: Sequence[Tokenized], *, max_length: int) -> PackedRows:
    """The rows in few sequences: the longest first, each where the least room is left that holds it.

    Example: rows of 25, 25 and 30 tokens with max_length=64 give sequences of 30 + 25 and 25.
    """
    lengths = rows.lengths if isinstance(rows, StoredRows) else np.array([len(row.input_ids) for row in rows])
    too_long = int((lengths > max_length).sum())
    if too_long:
        raise DataError(f"{too_long} rows are longer than the {max_length} tokens they should be packed into")
    packs: list[list[int]] = []
    by_room: dict[int, list[int]] = {}  # The packs with so many tokens left.
    rooms: list[int] = []  # The keys of by_room that have packs, ascending.
    for place in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[place])
        found = bisect_left(rooms, length)
        if found == len(rooms):
            room, number = max_length, len(packs)
            packs.append([])
        else:
            room = rooms[found]
            number = by_room[room].pop()
            if not by_room[room]:
                del rooms[found]
        packs[number].append(place)
        left = room - length
        if not by_room.setdefault(left, []):
            insort(rooms, left)
        by_room[left].append(number)
    return PackedRows(rows, packs)
