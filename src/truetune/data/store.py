"""Prepared rows in an Arrow file: written chunk by chunk, read memory-mapped, so memory hardly grows with them."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from truetune.data.examples import Tokenized

Places = NDArray[np.int64]
Keys = NDArray[np.uint64]

_TOKENS = ["input_ids", "labels"]
_INDEX = {"weight": "float32", "key": "uint64", "group": "uint64", "file": "int32", "line": "int64"}
_BATCH_BYTES = 16_000_000
ROW_FILES = {"tokens.arrow": _TOKENS, "index.arrow": [*_INDEX]}
"""The files of a folder of rows, and their columns."""


@dataclass(frozen=True, slots=True)
class StoredRow:
    """A row's tokens with what the split must know of it: `key` is the digest of its text, `group` of its group."""

    tokens: Tokenized
    key: int
    group: int
    file: int
    line: int

    @property
    def weight(self) -> float:
        return self.tokens.weight


def row_schema() -> Any:
    """The columns of prepared rows."""
    import pyarrow as pa

    tokens = dict.fromkeys(_TOKENS, pa.list_(pa.int32()))
    return pa.schema({**tokens, **{name: getattr(pa, kind)() for name, kind in _INDEX.items()}})


def row_batch(rows: Sequence[StoredRow]) -> Any:
    """The rows as an Arrow record batch."""
    import pyarrow as pa

    schema = row_schema()
    offsets = pa.array(np.cumsum([0, *(len(row.tokens.input_ids) for row in rows)], dtype=np.int32))

    def lists(values: Iterable[list[int]]) -> Any:
        return pa.ListArray.from_arrays(offsets, pa.array(np.array(list(chain.from_iterable(values)), np.int32)))

    columns = [
        lists(row.tokens.input_ids for row in rows),
        lists(row.tokens.labels for row in rows),
        *(pa.array([getattr(row, name) for row in rows], schema.field(name).type) for name in _INDEX),
    ]
    return pa.record_batch(columns, schema=schema)


class RowWriter:
    """Writes rows into a folder: their tokens into one Arrow file, all that is known of them into another.

    Apart, and in large batches, because a mapped page brings its neighbours into memory: who reads the index, or the
    heads of the batches, must not touch the tokens.
    """

    def __init__(self, folder: Path) -> None:
        import pyarrow as pa

        schema = row_schema()
        self._files = [pa.OSFile(str(folder / name), "wb") for name in ROW_FILES]
        self._streams = [
            pa.ipc.new_stream(file, pa.schema([schema.field(name) for name in names]))
            for file, names in zip(self._files, ROW_FILES.values(), strict=True)
        ]
        self._held: list[Any] = []

    def write(self, batch: Any) -> bytes:
        """Appends a batch; returns the bytes of its tokens, labels and weights, for a digest."""
        self._held.append(batch)
        if sum(each.nbytes for each in self._held) >= _BATCH_BYTES:
            self._flush()
        lists = [batch.column(name) for name in _TOKENS]
        arrays = [lists[0].offsets, *(each.values for each in lists), batch.column("weight")]
        return b"".join(array.to_numpy().tobytes() for array in arrays)

    def _flush(self) -> None:
        import pyarrow as pa

        if not self._held:
            return
        whole = pa.Table.from_batches(self._held).combine_chunks()
        for stream, names in zip(self._streams, ROW_FILES.values(), strict=True):
            stream.write_table(whole.select(names))
        self._held = []

    def close(self) -> None:
        """Ends the files."""
        self._flush()
        for each in (*self._streams, *self._files):
            each.close()


def evenly(rows: int, most: int) -> Places:
    """At most so many places among `rows` rows, from the first to the last in even steps."""
    return np.unique(np.linspace(0, rows - 1, min(rows, most)).astype(np.int64))


@dataclass(frozen=True, slots=True)
class TokenArrays:
    """Many rows end to end: row i is input_ids[offsets[i]:offsets[i + 1]]."""

    input_ids: NDArray[np.int32]
    labels: NDArray[np.int32]
    offsets: Places


class StoredRows(Sequence[Tokenized]):
    """Rows of a folder, in the order of `places`; each is read when it is asked for."""

    def __init__(self, folder: Path, tokens: Any, index: Any) -> None:
        self._folder = folder
        self._tokens = tokens
        self._index = index
        self._ids, self._labels = (tokens.column(name).chunks for name in _TOKENS)
        self._weights = self.column("weight")
        self._starts = np.cumsum([0, *map(len, self._ids)])
        self.places: Places = np.arange(tokens.num_rows)

    @classmethod
    def open(cls, folder: Path) -> "StoredRows":
        """All rows of the folder, memory-mapped."""
        import pyarrow as pa

        return cls(folder, *(pa.ipc.open_stream(pa.memory_map(str(folder / name))).read_all() for name in ROW_FILES))

    def __reduce__(self) -> Any:
        """Another process opens the same files, as long as they are there."""
        return _reopened, (self._folder, self.places)

    def column(self, name: str) -> NDArray[Any]:
        """What is known of all rows of the folder: weight, key, group, file or line."""
        values: NDArray[Any] = self._index.column(name).to_numpy()
        return values

    def token_arrays(self) -> Iterator[TokenArrays]:
        """All rows of the folder, as many at a time as lie together in its file."""
        for ids, labels in zip(self._ids, self._labels, strict=True):
            offsets = ids.offsets.to_numpy().astype(np.int64)
            start, end = offsets[0], offsets[-1]
            flat, learned = (each.values.to_numpy()[start:end] for each in (ids, labels))
            yield TokenArrays(flat, learned, offsets - start)

    def select(self, places: Places) -> "StoredRows":
        """The rows of the file at these places."""
        chosen = StoredRows(self._folder, self._tokens, self._index)
        chosen.places = places
        return chosen

    @property
    def lengths(self) -> Places:
        """Each row's tokens."""
        import pyarrow.compute as pc

        counts: NDArray[np.int64] = pc.list_value_length(self._tokens.column("input_ids")).to_numpy().astype(np.int64)
        return counts[self.places]

    def __len__(self) -> int:
        return len(self.places)

    @overload
    def __getitem__(self, index: int) -> Tokenized: ...
    @overload
    def __getitem__(self, index: slice) -> "StoredRows": ...
    def __getitem__(self, index: int | slice) -> "Tokenized | StoredRows":
        if isinstance(index, slice):
            return self.select(self.places[index])
        place = int(self.places[index])
        chunk = int(np.searchsorted(self._starts, place, side="right")) - 1
        within = place - int(self._starts[chunk])
        ids, labels = (column[chunk][within].values.to_numpy().tolist() for column in (self._ids, self._labels))
        return Tokenized(ids, labels, float(self._weights[place]))

    def __iter__(self) -> Iterator[Tokenized]:
        return (self[index] for index in range(len(self)))


def _reopened(folder: Path, places: Places) -> StoredRows:
    return StoredRows.open(folder).select(places)
