"""What a person sees in the file is what is read; what cannot be read is named by file and line."""

import json
from pathlib import Path
from typing import Any

import pytest

from truetune.data.read import read_records
from truetune.errors import DataError


def fields(source: Any) -> list[dict[str, Any]]:
    return [dict(record.fields) for record in read_records(source)]


def written(tmp_path: Path, name: str, content: str | bytes) -> Path:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_g01_types_stay_what_the_file_says(tmp_path: Path) -> None:
    lines = [
        '{"instruction":"code","output":"007"}',
        '{"instruction":"next","output":7}',
        '{"instruction":"when","output":"2024-01-01"}',
        '{"id":12345678901234567890123}',
        '{"id":9007199254740993}',
    ]
    read = fields(written(tmp_path, "a.jsonl", "\n".join(lines)))
    assert [row.get("output") for row in read[:3]] == ["007", 7, "2024-01-01"]
    assert [row["id"] for row in read[3:]] == [12345678901234567890123, 9007199254740993]


def test_a_number_keeps_the_spelling_of_its_file(tmp_path: Path) -> None:
    (row,) = fields(written(tmp_path, "a.jsonl", '{"output": 1.10}'))
    assert str(row["output"]) == "1.10"
    assert json.dumps(row) == '{"output": 1.1}'


def test_g02_words_that_look_like_nothing_stay_words_in_a_csv(tmp_path: Path) -> None:
    path = written(tmp_path, "a.csv", "instruction,input,output\nSpell zero in C,,null\nNot available?,,NA\nAdd,,3\n")
    assert [row["output"] for row in fields(path)] == ["null", "NA", "3"]
    assert [row["input"] for row in fields(path)] == ["", "", ""]


def test_g01_csv_values_are_text(tmp_path: Path) -> None:
    path = written(tmp_path, "a.csv", "prompt,response\nzip,01234\nflag,True\n")
    assert [row["response"] for row in fields(path)] == ["01234", "True"]


def test_a_quoted_csv_value_may_hold_commas_quotes_and_line_breaks(tmp_path: Path) -> None:
    path = written(tmp_path, "a.csv", 'text,n\r\n"a, ""b""\nc",1\r\nplain\u2028line,2\r\n')
    assert [row["text"] for row in fields(path)] == ['a, "b"\nc', "plain\u2028line"]


def test_g03_bom_crlf_blank_lines_and_no_final_newline_change_nothing(tmp_path: Path) -> None:
    content = (
        b"\xef\xbb\xbf"
        + '{"instruction":"é","output":"1"}\r\n\r\n{"instruction":"b","output":"2"}\r\n\r\n  '.encode()
    )
    records = list(read_records(written(tmp_path, "a.jsonl", content)))
    assert [dict(record.fields) for record in records] == [
        {"instruction": "é", "output": "1"},
        {"instruction": "b", "output": "2"},
    ]
    assert [record.where.line for record in records] == [1, 3]


def test_g03_utf16_is_read_by_its_bom(tmp_path: Path) -> None:
    content = '{"text":"é"}\r\n{"text":"b"}\r\n'.encode("utf-16")
    assert fields(written(tmp_path, "a.jsonl", content)) == [{"text": "é"}, {"text": "b"}]


def test_g03_a_csv_with_a_bom_has_a_clean_first_column(tmp_path: Path) -> None:
    assert fields(written(tmp_path, "a.csv", b"\xef\xbb\xbfinstruction,output\na,b\n")) == [
        {"instruction": "a", "output": "b"}
    ]


def test_g03_an_array_named_jsonl_and_lines_named_json_give_the_same_rows(tmp_path: Path) -> None:
    rows = [{"text": "a"}, {"text": "b"}]
    array, lines = json.dumps(rows, indent=1), "\n".join(map(json.dumps, rows))
    for name, content in [("a.jsonl", array), ("b.json", lines), ("c.json", array), ("d.jsonl", lines)]:
        assert fields(written(tmp_path, name, content)) == rows


def test_a_line_separator_inside_a_text_does_not_end_the_line(tmp_path: Path) -> None:
    assert fields(written(tmp_path, "a.jsonl", '{"text":"a\u2028b\x85c"}\n')) == [{"text": "a\u2028b\x85c"}]


def test_records_of_an_array_are_numbered_from_one(tmp_path: Path) -> None:
    (first, second) = read_records(written(tmp_path, "a.json", '[\n\n{"text":"a"},\n{"text":"b"}]'))
    assert str(first.where).endswith("a.json, record 1")
    assert str(second.where).endswith("a.json, record 2")


def test_python_rows_and_a_dataset_are_read_alike() -> None:
    from datasets import Dataset

    rows = [{"text": "a"}, {"text": "b"}]
    assert fields(rows) == fields(Dataset.from_list(rows)) == rows


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", '{"a":1}\n\n{"instruction":"c"\n{"a":2}\n', ["a.jsonl, line 3", "not valid JSON"]),
        ("a.jsonl", b'{"a":"\xff"}\n', ["a.jsonl, line 1", "UTF-8"]),
        ("a.jsonl", b'{"a":1}\n{"a":"\xe9"}\n', ["a.jsonl, line 2", "UTF-8"]),
        ("a.jsonl", '{"a": NaN}\n', ["line 1", "NaN"]),
        ("a.jsonl", '{"a":1}\n[1]\n', ["line 2", "expected an object, found a list"]),
        ("a.json", '{\n "instruction": "x",\n "output": "y"\n}', ["a.json", "expected an array", "an object"]),
        ("a.json", '[{"a":1},\n{"a" 2}]', ["a.json, line 2", "not valid JSON"]),
        ("a.csv", "", ["a.csv", "empty"]),
        ("a.csv", "a,b\n1,2\n1,2,3\n", ["a.csv, record 2", "line 3", "3 values under 2 columns"]),
        ("a.csv", 'a,b\n"x,2\n', ["a.csv, line", "unexpected end"]),
        ("a.xlsx", "x", ["a.xlsx", ".xlsx", ".jsonl"]),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, name: str, content: str | bytes, words: list[str]) -> None:
    with pytest.raises(DataError) as caught:
        fields(written(tmp_path, name, content))
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_a_missing_file_a_folder_and_a_row_that_is_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not found"):
        fields(tmp_path / "none.jsonl")
    with pytest.raises(DataError, match="is a folder"):
        fields(tmp_path)
    with pytest.raises(DataError, match="data, row 2: a row must be a mapping"):
        fields([{"a": 1}, "text"])
