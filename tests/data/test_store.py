"""Rows on disk come back as they were, in any order and number, without being held in memory."""

import gc
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from properties import examples
from truetune.data.examples import IGNORED, Tokenized
from truetune.data.packing import pack
from truetune.data.store import RowWriter, StoredRow, StoredRows, row_batch

TOKENS = st.lists(st.tuples(st.integers(0, 200_000), st.booleans()), min_size=1, max_size=20)
ROWS = st.lists(
    st.builds(
        lambda tokens, weight: Tokenized(
            [token for token, _ in tokens], [token if learned else IGNORED for token, learned in tokens], weight
        ),
        TOKENS,
        st.sampled_from([1.0, 0.5, 2.0]),
    ),
    min_size=1,
    max_size=30,
)


def stored(path: Path, rows: list[Tokenized], *, chunk: int) -> StoredRows:
    writer = RowWriter(path)
    for start in range(0, len(rows), chunk):
        some = rows[start : start + chunk]
        writer.write(
            row_batch([StoredRow(row, 2**64 - 1 - start, start, 0, start + n) for n, row in enumerate(some)])
        )
    writer.close()
    return StoredRows.open(path)


@given(ROWS, st.integers(1, 7), st.data())
@examples(50)
def test_rows_come_back_as_they_were_wherever_chunks_end(
    tmp_path: Path, rows: list[Tokenized], chunk: int, data: st.DataObject
) -> None:
    read = stored(tmp_path, rows, chunk=chunk)
    assert list(read) == rows
    assert read.lengths.tolist() == [len(row.input_ids) for row in rows]
    assert read.column("line").tolist() == list(range(len(rows)))
    places = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=10))
    chosen = read.select(np.array(places, np.int64))
    assert list(chosen) == [rows[place] for place in places]
    assert chosen.lengths.tolist() == [len(rows[place].input_ids) for place in places]
    assert list(chosen[1:3]) == [rows[place] for place in places][1:3]


def test_stored_rows_are_packed_as_rows_in_memory_are(tmp_path: Path) -> None:
    rows = [Tokenized([number] * (number + 1), [number] * (number + 1), 0.5) for number in range(20)]
    assert list(pack(stored(tmp_path, rows, chunk=3), max_length=32)) == list(pack(rows, max_length=32))
    assert pack(rows, max_length=32)[0].weights == [0.5] * len(pack(rows, max_length=32)[0].seq_lengths)


def test_a_file_larger_than_the_memory_it_takes(tmp_path: Path) -> None:
    rows = [Tokenized(list(range(2_000)), list(range(2_000)))] * 1_000
    writer = RowWriter(tmp_path)
    for _ in range(10):
        writer.write(row_batch([StoredRow(row, 1, 1, 0, 1) for row in rows]))
    writer.close()
    size = (tmp_path / "tokens.arrow").stat().st_size
    assert size > 150e6
    gc.collect()
    before = _private_bytes()
    read = StoredRows.open(tmp_path)
    assert read[9_999] == rows[0]
    assert len(pack(read, max_length=4_000)) == 5_000
    assert _private_bytes() - before < size / 5


def _private_bytes() -> int:
    """Memory of this process that no file stands behind."""
    status = Path("/proc/self/status").read_text()
    (line,) = [line for line in status.splitlines() if line.startswith("RssAnon")]
    return int(line.split()[1]) * 1024
