"""Tables: every type comes back as what was put in, and no row gains the keys of another."""

import datetime
import decimal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pa = pytest.importorskip("pyarrow")

from truetune.data.read import read_records  # noqa: E402
from truetune.errors import DataError  # noqa: E402

CALLS = [
    {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "call": {"zip": "01234", "at": None}}]},
    {"messages": [{"role": "user", "content": "b", "name": "n"}, {"role": "assistant", "call": {"city": "c"}}]},
]
PRUNED = [
    {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "call": {"zip": "01234"}}]},
    {"messages": [{"role": "user", "content": "b", "name": "n"}, {"role": "assistant", "call": {"city": "c"}}]},
]


def fields(source: Any) -> list[dict[str, Any]]:
    return [dict(record.fields) for record in read_records(source)]


def written(path: Path, table: Any) -> Path:
    """The table as the file's name says."""
    import pyarrow.parquet as pq

    plain = path.with_name(path.name.removesuffix(".gz").removesuffix(".zst"))
    match plain.suffix:
        case ".parquet":
            pq.write_table(table, plain, row_group_size=2)
        case ".feather":
            pa.feather.write_feather(table, plain)
        case _:
            make = pa.ipc.new_stream if plain.stem.startswith("stream") else pa.ipc.new_file
            with make(plain, table.schema) as writer:
                writer.write_table(table, max_chunksize=2)
    if path != plain:
        with pa.output_stream(path, compression="gzip" if path.suffix == ".gz" else "zstd") as stream:
            stream.write(plain.read_bytes())
    return path


NAMES = ["a.parquet", "a.arrow", "stream.arrow", "a.feather"]
ALL_NAMES = [name + suffix for name in NAMES for suffix in ("", ".gz", ".zst")]


@pytest.mark.parametrize("name", ALL_NAMES)
def test_rows_come_back_without_the_keys_of_other_rows(tmp_path: Path, name: str) -> None:
    import pyarrow.feather  # noqa: F401

    table = pa.Table.from_pylist([*CALLS, {"messages": None}])
    path = written(tmp_path / name, table)
    assert fields(path) == [*PRUNED, {"messages": None}]
    assert [str(record.where) for record in read_records(path)] == [f"{path}, record {n}" for n in (1, 2, 3)]


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        (pa.string(), "007", "007"),
        (pa.large_string(), "é", "é"),
        (pa.string_view(), "é", "é"),
        (pa.dictionary(pa.int32(), pa.string()), "a", "a"),
        (pa.int64(), 2**63 - 1, 2**63 - 1),
        (pa.uint64(), 2**64 - 1, 2**64 - 1),
        (pa.bool_(), True, True),
        (pa.float64(), 0.1, 0.1),
        (pa.float64(), float("nan"), None),
        (pa.float32(), 0.1, 0.1),
        (pa.decimal128(20, 2), decimal.Decimal("123456789012345678.90"), "123456789012345678.90"),
        (pa.date32(), datetime.date(2024, 1, 2), "2024-01-02"),
        (pa.time64("us"), datetime.time(1, 2, 3), "01:02:03"),
        (pa.timestamp("us"), datetime.datetime(2024, 1, 2, 3, 4, 5), "2024-01-02T03:04:05"),
        (pa.timestamp("ns"), 1_704_164_645_123_456_789, "2024-01-02T03:04:05.123456789"),
        (pa.timestamp("s", tz="UTC"), 0, "1970-01-01T00:00:00+00:00"),
        (pa.binary(), b"\xff", b"\xff"),
        (pa.list_view(pa.int8()), [1, None], [1, None]),
        (pa.large_list(pa.date32()), [datetime.date(2024, 1, 2), None], ["2024-01-02", None]),
        (pa.map_(pa.string(), pa.int32()), [("a", 1), ("b", None)], {"a": 1, "b": None}),
        (pa.struct({"a": pa.struct({"b": pa.string(), "c": pa.int8()})}), {"a": {"b": "x"}}, {"a": {"b": "x"}}),
        (pa.null(), None, None),
    ],
)
def test_a_value_comes_back_as_itself_or_as_its_exact_text(
    tmp_path: Path, kind: Any, value: Any, expected: Any
) -> None:
    """Every kind both at the top and inside an object and a list."""
    kinds = {"top": kind, "nested": pa.list_(pa.struct({"x": kind, "y": pa.int8()}))}
    columns = [pa.array([value, None], type=kind), pa.array([[{"x": value, "y": 1}], []], type=kinds["nested"])]
    path = written(tmp_path / "a.arrow", pa.table(columns, schema=pa.schema(kinds)))
    inner = {"y": 1} if value is None else {"x": expected, "y": 1}
    assert fields(path) == [{"top": expected, "nested": [inner]}, {"top": None, "nested": []}]


def test_a_short_float_is_spelled_as_it_was(tmp_path: Path) -> None:
    (row,) = fields(written(tmp_path / "a.parquet", pa.table({"x": pa.array([0.1], pa.float32())})))
    assert str(row["x"]) == "0.1"


def test_json_kept_as_text_is_read_as_json(tmp_path: Path) -> None:
    storage = pa.array(['{"zip": "01234", "at": null, "n": 1.10}', None])
    table = pa.table({"x": pa.ExtensionArray.from_storage(pa.json_(), storage)})
    rows = fields(written(tmp_path / "a.parquet", table))
    assert rows == [{"x": {"zip": "01234", "at": None, "n": 1.1}}, {"x": None}]
    assert str(rows[0]["x"]["n"]) == "1.10"


@pytest.mark.parametrize("name", ALL_NAMES)
def test_a_broken_table_is_refused_and_never_read_in_part(tmp_path: Path, name: str) -> None:
    import pyarrow.feather  # noqa: F401

    path = written(tmp_path / name, pa.table({"text": [f"{n * n}" for n in range(2_000)]}))
    whole = path.read_bytes()
    for broken in (b"", b"text", whole[:-1], whole[:-8], whole[: len(whole) // 2]):
        path.write_bytes(broken)
        with pytest.raises(DataError) as caught:
            fields(path)
        assert str(path) in caught.value.message
        assert caught.value.hint


def test_a_stream_cut_between_two_batches_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "stream.arrow", pa.table({"text": ["a", "b", "c", "d"]}))
    with pa.ipc.open_stream(path.read_bytes()) as reader:
        one = reader.read_next_batch()
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, one.schema) as writer:
        writer.write_batch(one)
        cut = sink.tell()
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(DataError, match="its end is missing"):
        fields(path)


def test_two_columns_or_keys_of_one_name_are_refused(tmp_path: Path) -> None:
    twice = pa.table([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    with pytest.raises(DataError, match="two columns are named 'text'"):
        fields(written(tmp_path / "a.arrow", twice))
    pairs = pa.table({"x": pa.array([[("k", 1), ("k", 2)]], pa.map_(pa.string(), pa.int8()))})
    with pytest.raises(DataError, match="column 'x': the key 'k' stands twice"):
        fields(written(tmp_path / "b.arrow", pairs))


def test_a_table_is_read_as_it_goes(tmp_path: Path) -> None:
    """Peak memory hardly grows with the number of row groups."""
    import pyarrow.parquet as pq

    table = pa.table({"text": [f"{n:06}" + "x" * 2_000 for n in range(2_000)]})
    peaks = []
    for groups in (2, 20):
        path = tmp_path / f"{groups}.parquet"
        with pq.ParquetWriter(path, table.schema) as writer:
            for _ in range(groups):
                writer.write_table(table)
        program = (
            "import resource, sys; from truetune.data.read import read_records\n"
            "print(sum(1 for _ in read_records(sys.argv[1])))\n"
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)"
        )
        done = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, check=True)
        rows, peak = map(int, done.stdout.split())
        assert rows == groups * 2_000
        peaks.append(peak)
    assert peaks[1] - peaks[0] < 25  # The rows differ by 72 MB.


# Rows of Python's own.


def test_a_dataset_s_rows_have_only_their_own_keys() -> None:
    from datasets import Dataset, DatasetDict, IterableDataset

    data = Dataset.from_list(CALLS)
    assert fields(data) == PRUNED
    assert fields(data.select([1, 0])) == PRUNED[::-1]
    assert fields(data.to_iterable_dataset()) == PRUNED
    assert fields(IterableDataset.from_generator(lambda: iter(CALLS))) == PRUNED
    assert fields(DatasetDict({"train": data, "test": data.select([0])})) == PRUNED
    assert fields(DatasetDict({"test": data})) == PRUNED
    with pytest.raises(DataError, match="no split 'train'; there are a, b"):
        fields(DatasetDict({"a": data, "b": data}))


def test_a_dataset_s_own_formatting_is_kept() -> None:
    from datasets import Dataset

    data = Dataset.from_list([{"a": "x", "b": "y"}])
    assert fields(data.with_format(None, columns=["a"])) == [{"a": "x"}]
    assert fields(data.with_transform(lambda batch: {"text": [f"{a}!" for a in batch["a"]]})) == [{"text": "x!"}]


def test_a_frame_s_missing_values_are_null() -> None:
    import pandas as pd

    frame = pd.DataFrame(
        {
            "text": ["007", None, float("nan")],
            "number": [1, 2, 3],
            "weight": [0.5, float("nan"), 1.0],
            "maybe": pd.array([1, None, 3], dtype="Int64"),
            "day": pd.to_datetime(["2024-01-02", None, "2024-01-03"]),
            "turns": [[{"role": "user"}], [], None],
        }
    )
    assert fields(frame) == [
        {
            "text": "007",
            "number": 1,
            "weight": 0.5,
            "maybe": 1,
            "day": "2024-01-02T00:00:00",
            "turns": [{"role": "user"}],
        },
        {"text": None, "number": 2, "weight": None, "maybe": None, "day": None, "turns": []},
        {"text": None, "number": 3, "weight": 1.0, "maybe": 3, "day": "2024-01-03T00:00:00", "turns": None},
    ]
    assert type(fields(frame)[0]["number"]) is int


def test_a_frame_that_came_from_parquet_has_lists_where_pandas_has_arrays(tmp_path: Path) -> None:
    import pandas as pd

    turns = [{"role": "user", "tags": ["x"]}, {"role": "assistant", "tags": []}]
    rows = [{"messages": turns, "n": [1, 2], "share": 0.5}, {"messages": None, "n": [], "share": None}]
    pd.DataFrame(rows).to_parquet(tmp_path / "a.parquet")
    found = fields(pd.read_parquet(tmp_path / "a.parquet"))
    assert found == rows
    assert all(type(number) is int for number in found[0]["n"])


@pytest.mark.parametrize("name", ["a.arrow", "stream.arrow", "a.parquet"])
def test_a_text_in_a_table_that_is_no_utf_8_is_refused(name: str, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    broken = pa.StringArray.from_buffers(1, pa.py_buffer(b"\0\0\0\0\2\0\0\0"), pa.py_buffer(b"a\xff"))
    batch, path = pa.record_batch([broken], names=["t"]), str(tmp_path / name)
    if name == "a.parquet":
        pq.write_table(pa.Table.from_batches([batch]), path)
    else:
        new = pa.ipc.new_stream if name == "stream.arrow" else pa.ipc.new_file
        with new(path, batch.schema) as file:
            file.write_batch(batch)
    with pytest.raises(DataError, match=r"cannot be read: .*(?i:utf-?8)"):
        fields(tmp_path / name)


def test_an_arrow_file_whose_offsets_lead_out_of_it_is_refused(tmp_path: Path) -> None:
    """pyarrow reads on, in memory that belongs to others."""
    path = tmp_path / "a.arrow"
    with pa.ipc.new_file(str(path), pa.schema({"t": pa.string()})) as file:
        file.write_batch(pa.record_batch([pa.array(["x" * 77])], names=["t"]))
    content = path.read_bytes()
    # 0 and 77 stand last where the text begins and ends; before that they may be what lies in the file's description.
    before, found, behind = content.rpartition(b"\0\0\0\0M\0\0\0")
    assert found
    path.write_bytes(before + b"\0\0\0\0\xff\xff\xff\x7f" + behind)
    with pytest.raises(DataError, match=r"a\.arrow: cannot be read"):
        fields(path)


def test_an_arrow_stream_that_claims_more_than_the_memory_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.arrow"
    batch = pa.record_batch([pa.array([7] * 1000, pa.int64())], names=["n"])
    with pa.ipc.new_stream(str(path), batch.schema) as file:
        file.write_batch(batch)
    description, body, rows = path.read_bytes().partition((8000).to_bytes(8, "little"))
    assert body
    path.write_bytes(description + (1 << 60).to_bytes(8, "little") + rows)
    with pytest.raises(DataError, match=r"a\.arrow: cannot be read: it takes more memory than there is"):
        fields(path)


def test_plain_rows_are_left_as_they_are() -> None:
    rows = [{"arguments": {"zip": None}}]
    assert fields(rows) == fields(iter(rows)) == rows
