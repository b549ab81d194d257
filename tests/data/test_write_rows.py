"""Rows that are written and read again are the same rows."""

import gzip
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

from truetune.data.json_text import parse_line
from truetune.data.read import read_records
from truetune.data.write import require_writable, row_file, to_json
from truetune.errors import ConfigError, DataError

ROWS = [
    {"id": 7, "messages": [{"role": "user", "content": 'a\r\nb, "c"'}], "tags": ["x"], "score": 0.5, "ok": True},
    {
        "id": 8,
        "messages": [{"role": "user", "content": "ü\u2028", "name": "Ada"}],
        "tags": [],
        "score": None,
        "ok": False,
    },
]


def written(path: Path, rows: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    with row_file(path) as file:
        for row in rows:
            file.write(row)
    return [record.fields for record in read_records(path)]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.ndjson", "a.jsonl.gz", "a.json.gz", "a.parquet"])
def test_rows_keep_their_values_types_and_order(tmp_path: Path, name: str) -> None:
    read = written(tmp_path / name, ROWS)
    assert read == ROWS
    assert [list(row) for row in read] == [list(row) for row in ROWS]


def test_numbers_keep_the_spelling_of_their_file() -> None:
    text = '{"a": 1.10, "b": 1e5, "c": 100000000000000000000, "d": 0, "e": [null, true]}'
    assert to_json(parse_line(text, name="", line=1)) == text


def test_half_a_surrogate_pair_is_written_as_its_escape(tmp_path: Path) -> None:
    row = {"text": "a\ud83d", "other": "ü"}
    assert written(tmp_path / "a.jsonl", [row]) == [row]


@pytest.mark.parametrize("name", ["a.csv", "a.parquet"])
def test_a_table_refuses_half_a_surrogate_pair(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="row 2 holds half of a surrogate pair"):
        written(tmp_path / name, [{"text": "a"}, {"text": "a\ud83d"}])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.csv.gz"])
def test_csv_has_the_fields_of_all_rows_and_nested_ones_as_json(tmp_path: Path, name: str) -> None:
    rows = [{"q": 'a,\r\n"b"\tc\rd'}, {"q": "", "m": [{"role": "user"}], "n": 7, "z": None}]
    read = written(tmp_path / name, rows)
    assert read == [
        {"q": 'a,\r\n"b"\tc\rd', "m": "", "n": "", "z": ""},
        {"q": "", "m": '[{"role": "user"}]', "n": "7", "z": ""},
    ]


def test_a_parquet_column_of_several_types_is_text_and_told(tmp_path: Path) -> None:
    rows = [{"a": 1, "b": "x", "c": {}}, {"a": 2.5, "b": ["y"], "c": {"k": 1}}, {"a": None, "b": None, "c": None}]
    with row_file(tmp_path / "a.parquet") as file:
        for row in rows:
            file.write(row)
    assert sorted(file.as_text) == ["a", "b", "c"]
    read = [record.fields for record in read_records(tmp_path / "a.parquet")]
    assert read == [
        {"a": "1", "b": "x", "c": "{}"},
        {"a": "2.5", "b": '["y"]', "c": '{"k": 1}'},
        {"a": None, "b": None, "c": None},
    ]


def test_a_parquet_column_with_a_spelling_that_its_type_would_lose_is_text(tmp_path: Path) -> None:
    row = parse_line('{"a": 1.10, "b": 1.5}', name="", line=1)
    assert written(tmp_path / "a.parquet", [row]) == [{"a": "1.10", "b": 1.5}]


def test_parquet_is_written_in_batches_of_one_type(tmp_path: Path) -> None:
    """The first rows have only nulls, and other keys than the last."""
    rows: list[dict[str, Any]] = [{"a": None, "o": {"x": 1}} for _ in range(1500)] + [
        {"a": "t", "o": {"y": "z"}, "b": 1}
    ]
    read = written(tmp_path / "a.parquet", rows)
    assert read[0] == {"a": None, "o": {"x": 1}, "b": None}
    assert read[-1] == {"a": "t", "o": {"y": "z"}, "b": 1}
    assert len(read) == 1501


def test_equal_rows_are_equal_gzipped_bytes(tmp_path: Path) -> None:
    written(tmp_path / "a.jsonl.gz", ROWS)
    written(tmp_path / "b.jsonl.gz", ROWS)
    assert (tmp_path / "a.jsonl.gz").read_bytes() == (tmp_path / "b.jsonl.gz").read_bytes()
    assert (tmp_path / "a.jsonl.gz").read_bytes()[4:8] == bytes(4)  # The time.
    assert len(gzip.decompress((tmp_path / "a.jsonl.gz").read_bytes()).splitlines()) == 2


def test_no_rows_are_an_empty_array(tmp_path: Path) -> None:
    written(tmp_path / "a.json", [])
    assert json.loads((tmp_path / "a.json").read_text()) == []


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.parquet"])
def test_nothing_is_left_where_writing_fails_and_the_old_file_stays(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("old")
    with pytest.raises(ZeroDivisionError):
        written(tmp_path / name, ({"text": 1 / number} for number in (1, 0)))
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "old"


def test_a_place_that_cannot_be_written_is_an_error_that_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot be written"), row_file(tmp_path / "file" / "a.jsonl"):
        pass


@pytest.mark.parametrize("name", ["a.txt", "a", "a.jsonl.zst", "a.parquet.gz", "a.arrow"])
def test_other_suffixes_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="are not written"):
        require_writable(Path(name))


@pytest.mark.parametrize("name", ["a.JSONL", "a.json", "a.csv.gz", "a.parquet"])
def test_these_are_written(name: str) -> None:
    require_writable(Path(name))
