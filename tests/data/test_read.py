"""Files as people have them: odd wrappings are read as they are meant, and every refusal names place and remedy."""

import json
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from truetune.data.read import read_records
from truetune.errors import DataError

ROWS = [{"instruction": "é", "output": "1"}, {"instruction": "b", "output": "2"}]


def written(tmp_path: Path, name: str, content: str | bytes) -> Path:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def fields(source: Any) -> list[dict[str, Any]]:
    return [dict(record.fields) for record in read_records(source)]


def places(source: Any) -> list[str]:
    return [str(record.where).rpartition("/")[2] for record in read_records(source)]


LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
ARRAY = json.dumps(ROWS, ensure_ascii=False, indent=2)
TABLE = "instruction,output\né,1\nb,2\n"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.ndjson", "a.json", "array.json", "array.jsonl", "a.csv", "A.JSONL"])
def test_no_wrapping_of_the_same_rows_changes_them(tmp_path: Path, name: str, end: str, encoding: str) -> None:
    text = ARRAY if name.startswith("array") else TABLE if name.endswith("csv") else LINES
    assert fields(written(tmp_path, name, text.replace("\n", end).encode(encoding))) == ROWS


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.jsonl", "\n \n{}\n\n{}", ["a.jsonl, line 3", "a.jsonl, line 5"]),
        ("a.json", "\n{}\n{}", ["a.json, line 2", "a.json, line 3"]),
        ("a.jsonl", "\n[{},\n\n{}]", ["a.jsonl, record 1", "a.jsonl, record 2"]),
        ("a.csv", "\n\na\n\n1\n2\n", ["a.csv, record 1", "a.csv, record 2"]),
    ],
)
def test_a_row_s_place_is_its_line_or_its_record(
    tmp_path: Path, name: str, content: str, expected: list[str]
) -> None:
    assert places(written(tmp_path, name, content)) == expected


def test_python_rows_are_numbered_and_may_come_from_a_generator() -> None:
    assert places({"text": str(number)} for number in range(2)) == ["data, row 1", "data, row 2"]


def test_a_dataset_s_rows_are_read_with_the_columns_it_gives_them() -> None:
    from datasets import Dataset

    rows = [{"text": "a", "prompt": None}, {"text": None, "prompt": "p"}]
    assert fields(Dataset.from_list(rows)) == rows
    assert places(Dataset.from_list(rows)) == ["data, row 1", "data, row 2"]


def test_values_keep_their_type_and_numbers_their_spelling(tmp_path: Path) -> None:
    text = '{"a":"007","b":7,"c":1.10,"d":[1.50,{"e":true}],"f":null,"g":12345678901234567890123,"h":1e2}'
    (row,) = fields(written(tmp_path, "a.jsonl", text))
    assert (row["a"], row["b"], row["f"], row["g"]) == ("007", 7, None, 12345678901234567890123)
    assert [str(row["c"]), str(row["d"][0]), str(row["h"])] == ["1.10", "1.50", "1e2"]
    assert row["d"][1]["e"] is True


def test_csv_cells_are_text_whatever_they_look_like(tmp_path: Path) -> None:
    cells = ["007", "7", "1.10", "null", "NA", "nan", "True", "2024-01-01", "", "  x "]
    path = written(tmp_path, "a.csv", "n,answer\n" + "".join(f"{n},{cell}\n" for n, cell in enumerate(cells)))
    assert [row["answer"] for row in fields(path)] == cells


@pytest.mark.parametrize("character", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c"])
def test_only_a_line_feed_ends_a_line(tmp_path: Path, character: str) -> None:
    text = f"a{character}b"
    escaped = json.dumps({"text": text}, ensure_ascii=False)
    assert fields(written(tmp_path, "a.jsonl", f"{escaped}\n{escaped}")) == [{"text": text}] * 2
    assert fields(written(tmp_path, "a.csv", f"text,n\n{text},1\n")) == [{"text": text, "n": "1"}]


def test_a_long_cell_and_a_quoted_line_break_are_one_value(tmp_path: Path) -> None:
    long = "x" * 200_000
    path = written(tmp_path, "a.csv", f'text,n\n{long},1\n"a\r\nb, ""c""",2\n')
    assert fields(path) == [{"text": long, "n": "1"}, {"text": 'a\r\nb, "c"', "n": "2"}]


def test_a_file_of_lines_is_read_as_it_goes(tmp_path: Path) -> None:
    records = read_records(written(tmp_path, "a.jsonl", '{"text":"a"}\n{"text":\n'))
    assert [dict(record.fields) for record in islice(records, 1)] == [{"text": "a"}]
    with pytest.raises(DataError, match="line 2"):
        next(records)


@pytest.mark.parametrize(("name", "content"), [("a.jsonl", ""), ("a.jsonl", " \n\n"), ("a.csv", "a,b\n")])
def test_a_file_without_rows_has_none(tmp_path: Path, name: str, content: str) -> None:
    assert fields(written(tmp_path, name, content)) == []


@pytest.mark.parametrize(
    ("name", "content", "place", "words"),
    [
        ("a.jsonl", '{"a":1}\n\n{"a":"c"\n', "line 3", "one whole object a line"),
        ("a.jsonl", '{"a":1}\r{"a":2}\r', "line 1, column 9", "one whole object a line"),
        ("a.jsonl", '{"a":1}'.encode("utf-16-le"), "line 1", "save it as UTF-8"),
        ("a.jsonl", b'{"a":1}\n{"a":"\xff"}\n', "line 2", "save the file as UTF-8"),
        ("a.jsonl", b"\xff\xfe" + "{}\n".encode("utf-16-le")[:-1], "line 1", "not valid UTF-16"),
        ("a.jsonl", b'{"a":"\xed\xa0\x80"}', "line 1", "save the file as UTF-8"),
        ("a.jsonl", '{"a": NaN}\n', "line 1", "NaN is not a JSON value"),
        ("a.jsonl", '{}\n{"a": -Infinity}\n', "line 2", "-Infinity is not a JSON value"),
        ("a.jsonl", '{"a":' + "[" * 100_000, "line 1", "recursion"),
        ("a.jsonl", '{}\n"text"\n', "line 2", "expected an object, found text"),
        ("a.json", "[{},\n7]", "record 2", "expected an object, found a number"),
        ("a.json", "[{},\n{},,]", "line 2", "one array of objects"),
        ("a.json", '{\n "instruction": "x"\n}', "a.json", "expected an array of objects, found an object"),
        ("a.json", '"text"', "a.json", "expected an array of objects, found text"),
        ("a.json", "", "line 1", "not valid JSON"),
        ("a.csv", "", "a.csv", "the first line must name the columns"),
        ("a.csv", "a,b\n1,2\n1,2,3\n", "record 2 (ends on line 3)", "3 values under 2 columns"),
        ("a.csv", "a,b\n1\n", "record 1", "1 values under 2 columns"),
        ("a.csv", "a,b,a\n1,2,3\n", "line 1", "two columns are named 'a'"),
        ("a.csv", 'a,b\n"x"y,2\n', "line 2", "must end with one"),
        ("a.csv", 'a,b\n"x,2\n\n', "line", "must end with one"),
        ("a.txt", "x", "a.txt", "use .json"),
        ("a", "x", "files ending in nothing", "use .json"),
    ],
)
def test_what_cannot_be_read_names_file_place_and_remedy(
    tmp_path: Path, name: str, content: str | bytes, place: str, words: str
) -> None:
    path = written(tmp_path, name, content)
    with pytest.raises(DataError) as caught:
        fields(path)
    assert str(path) in caught.value.message
    assert place in caught.value.message
    assert words in str(caught.value)
    assert caught.value.hint


def test_a_missing_file_a_folder_and_rows_that_are_none_say_what_to_give(tmp_path: Path) -> None:
    for source, place, words in (
        (tmp_path / "none.jsonl", "none.jsonl", "not found"),
        (tmp_path, str(tmp_path), "is a folder"),
        ([{}, None], "data, row 2", "found null"),
        ({"text": "a"}, "data, row 1", "found text"),
    ):
        with pytest.raises(DataError) as caught:
            fields(source)
        assert place in caught.value.message
        assert words in caught.value.message
        assert caught.value.hint
