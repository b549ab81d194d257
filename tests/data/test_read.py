"""Files as people have them: odd wrappings are read as they are meant, and every refusal names place and remedy."""

import gzip
import json
import subprocess
import sys
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from truetune.data.json_text import JsonText
from truetune.data.read import read_records
from truetune.data.sources import SourceFile
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


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "a;b\n'1,5';\"x;y\"\n"),
        ("a.csv", '"a";"b"\n\'1,5\';"x;y"\n'),
        ("a.csv", "a\tb\n'1,5'\tx;y\n"),
        ("a.csv", "sep=;\na;b\n'1,5';\"x;y\"\n"),
        ("a.csv", "sep=,\na,b\n\"'1,5'\",x;y\n"),
        ("a.tsv", "a,b\n\"'1,5'\",x;y\n"),
        ("a.csv", "a;b;;\n'1,5';\"x;y\";;\n"),
    ],
)
def test_values_are_separated_as_the_header_has_it(tmp_path: Path, name: str, content: str) -> None:
    assert fields(written(tmp_path, name, content)) == [{"a": "'1,5'", "b": "x;y"}]


def test_one_column_stays_one(tmp_path: Path) -> None:
    assert fields(written(tmp_path, "a.csv", "text\na;b\n")) == [{"text": "a;b"}]


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
        ("a.json", '"text"', "a.json", "expected an array of objects, found text"),
        ("a.json", "", "line 1", "not valid JSON"),
        ("a.csv", "", "a.csv", "the first line must name the columns"),
        ("a.csv", "a,b\n1,2\n1,2,3\n", "record 2 (ends on line 3)", "3 values under 2 columns"),
        ("a.csv", "a,b\n1\n", "record 1", "1 value under 2 columns"),
        ("a.csv", "a,b,a\n1,2,3\n", "line 1", "two columns are named 'a'"),
        ("a.csv", 'a,b\n"x"y,2\n', "line 2", "must end with one"),
        ("a.csv", 'a,b\n"x,2\n\n', "line", "must end with one"),
        ("a.csv", "a;b;;\nx;y;;z\n", "record 1", "stands in column 4, which has no name"),
        ("a.json", '[{"a": 1},\n {"a": 2}', "line 2, column 10", "Expecting ','"),
        ("a.json", '[{"a": 1},\n {"a": "2', "line 2, column 8", "Unterminated string"),
        ("a.json", '{"data": [{"a": 1}]', "line 1, column 20", "Expecting ','"),
        ("a.json", '{"data": [{"a": 1}]}}', "line 1, column 21", "not valid JSON"),
        ("a.json", '[{"a": 1}]]', "line 1, column 11", "not valid JSON"),
        ("a.json", '[{"a": 1}\n {"a": 2}]', "line 2, column 2", "Expecting ','"),
        ("a.json", '[{"a": 1},\n {"a": NaN}]', "line 2", "NaN is not a JSON value"),
        ("a.json", '[{"a": 1},\n {"b": [{"a": 1, "a": 2}]}]', "line 2", "the key 'a' stands twice"),
        ("a.json", '{"data": [{}],\n "data": [{}]}', "line 2, column 2", "the key 'data' stands twice"),
        ("a.jsonl", '{}\n{"a": 1, "a": 1}', "line 2", "the key 'a' stands twice"),
        ("a.json", "[[1, 2]]", "record 1", "expected an object, found a list"),
        ("a.jsonl", "{}\n[[]]", "line 2", "expected an object, found a list"),
        ("a.json", '{"cats": [{"a": 1}], "dogs": [{"a": 1}]}', "a.json", "several lists of objects: cats, dogs"),
        ("a.jsonl", '{}\n{"a": 1} x', "line 2, column 10", "Extra data"),
        ("a.xlsx", "x", "a.xlsx", "save the sheet as CSV UTF-8"),
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


def test_a_missing_file_an_empty_folder_and_rows_that_are_none_say_what_to_give(tmp_path: Path) -> None:
    for source, place, words in (
        (tmp_path / "none.jsonl", "none.jsonl", "not found"),
        (tmp_path, str(tmp_path), "it is empty"),
        ([{}, None], "data, row 2", "found null"),
        ({"text": "a"}, "data", "it is a mapping, of text, and rows are expected"),
    ):
        with pytest.raises(DataError) as caught:
            fields(source)
        assert place in caught.value.message
        assert words in caught.value.message
        assert caught.value.hint


TURNS = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
SHARES = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yo"}]


def picked(path: Path, **inside: str) -> list[dict[str, Any]]:
    return fields(SourceFile(path, path.name, **inside))


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ([], []),
        (TURNS, [{"messages": TURNS}]),
        (SHARES, [{"messages": SHARES}]),
        ([TURNS, SHARES], [{"messages": TURNS}, {"messages": SHARES}]),
        ([{"messages": TURNS}], [{"messages": TURNS}]),
    ],
)
def test_a_list_is_of_rows_or_a_conversation_or_of_conversations(
    tmp_path: Path, name: str, indent: int | None, document: Any, expected: list[Any]
) -> None:
    assert fields(written(tmp_path, name, json.dumps(document, indent=indent))) == expected


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize(
    "row",
    [
        {"instruction": "x", "output": "y"},
        {"instruction": "x", "instances": [{"input": "", "output": "y"}]},
        {"messages": TURNS, "tools": [{"name": "f"}]},
        {"conversations": SHARES},
        {"prompt": "p", "sources": [{"url": "u"}]},
        {},
    ],
)
def test_an_object_that_is_a_row_is_one_record(tmp_path: Path, indent: int | None, row: dict[str, Any]) -> None:
    assert fields(written(tmp_path, "a.json", json.dumps(row, indent=indent))) == [row]


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("key", ["data", "conversations", "anything", "train"])
def test_an_object_that_wraps_one_list_of_rows_stands_for_them(tmp_path: Path, key: str, indent: int | None) -> None:
    wrapped = {"version": "1.0", "tags": ["a"], key: ROWS, "count": {"rows": 2}}
    assert fields(written(tmp_path, "a.json", json.dumps(wrapped, indent=indent))) == ROWS


def test_an_object_of_splits_gives_the_one_asked_for_and_train_otherwise(tmp_path: Path) -> None:
    path = written(tmp_path, "a.json", json.dumps({"validation": ROWS[1:], "training": ROWS[:1]}))
    assert fields(path) == picked(path, split="train") == ROWS[:1]
    assert picked(path, split="validation") == picked(path, split="dev") == ROWS[1:]
    with pytest.raises(DataError, match="no split 'test'; there are validation, training"):
        picked(path, split="test")
    path = written(tmp_path, "a.json", json.dumps({"train": ROWS, "test": []}))
    assert (picked(path), picked(path, split="test")) == (ROWS, [])
    with pytest.raises(DataError, match="no split 'train'; there are test"):
        fields(written(tmp_path, "a.json", json.dumps({"test": ROWS})))
    with pytest.raises(DataError, match="the file holds no splits"):
        picked(written(tmp_path, "a.json", ARRAY), split="validation")


def test_a_named_field_leads_to_the_rows(tmp_path: Path) -> None:
    path = written(tmp_path, "a.json", json.dumps({"skip": [{}], "data": {"n": 1, "items": ROWS, "more": [{}]}}))
    assert picked(path, field="data.items") == ROWS
    assert picked(written(tmp_path, "b.json", json.dumps({"x": {"data": ROWS}, "y": [{}]})), field="x") == ROWS
    with pytest.raises(DataError, match=r"no field data\.rows: under data is an object with n, items, more"):
        picked(path, field="data.rows")
    with pytest.raises(DataError, match=r"field data\.n holds a number"):
        picked(path, field="data.n")
    with pytest.raises(DataError, match=r"under data\.items is no object"):
        picked(path, field="data.items.x")


def test_objects_and_conversations_one_after_another_are_rows(tmp_path: Path) -> None:
    spread = "\n".join(json.dumps(row, indent=2) for row in ROWS)
    assert fields(written(tmp_path, "a.json", spread)) == fields(written(tmp_path, "a.jsonl", spread)) == ROWS
    assert places(written(tmp_path, "a.json", spread)) == ["a.json, record 1", "a.json, record 2"]
    lines = f"{json.dumps(TURNS)}\n\n{json.dumps(SHARES)}\n"
    for name in ("b.json", "b.jsonl"):
        path = written(tmp_path, name, lines)
        assert fields(path) == [{"messages": TURNS}, {"messages": SHARES}]
        assert places(path) == [f"{name}, line 1", f"{name}, line 3"]


def test_each_line_of_a_text_file_that_is_not_blank_is_a_row(tmp_path: Path) -> None:
    path = written(tmp_path, "a.txt", '\ufeffone\u2028more\r\n\n  \n two \r\n"three"')
    assert [row["text"] for row in fields(path)] == ["one\u2028more", " two ", '"three"']
    assert places(path) == ["a.txt, line 1", "a.txt, line 4", "a.txt, line 5"]


def test_tabs_separate_the_values_of_a_tsv_file(tmp_path: Path) -> None:
    assert fields(written(tmp_path, "a.tsv", 'a\tb\n1, "x"\t"2\t3"\n')) == [{"a": '1, "x"', "b": "2\t3"}]


def zstd(data: bytes) -> bytes:
    import pyarrow as pa

    compressed: bytes = pa.compress(data, codec="zstd", asbytes=True)
    return compressed


@pytest.mark.parametrize(("suffix", "compress"), [(".gz", gzip.compress), (".zst", zstd)])
def test_compressed_files_are_read_as_what_is_in_them_and_never_in_part(
    tmp_path: Path, suffix: str, compress: Callable[[bytes], bytes]
) -> None:
    for name, text in (("a.jsonl", LINES), ("a.json", ARRAY), ("a.csv", TABLE), ("a.tsv", TABLE.replace(",", "\t"))):
        data = text.encode()
        assert fields(written(tmp_path, name + suffix, compress(data))) == ROWS
        assert fields(written(tmp_path, name + suffix, compress(data[:9]) + compress(data[9:]))) == ROWS
    whole = compress(("".join(f'{{"text": "{n * n % 977}"}}\n' for n in range(3_000))).encode())
    for broken in (whole[:-9], whole[: len(whole) // 2], b"no such thing"):
        path = written(tmp_path, f"b.jsonl{suffix}", broken)
        with pytest.raises(DataError, match=r"b\.jsonl") as caught:
            fields(path)
        assert caught.value.hint


def test_an_array_is_read_through_a_small_window(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever the window is cut: in a string, an escape, a surrogate pair, a number, a literal."""
    rows = [{"a": 'x😀\n"\\', "b": [-1.5e-7, True, None, {}], "c": 12345678901234567890}, {"d": ""}] * 3
    path = written(tmp_path, "a.json", json.dumps(rows, indent=1))
    wrapped = written(tmp_path, "wrapped.json", json.dumps({"count": 123456, "data": rows, "end": -1.5}))
    for size in range(1, 40):
        monkeypatch.setattr("truetune.data.json_text._WINDOW", size)
        assert fields(path) == fields(wrapped) == rows
    broken = written(tmp_path, "b.json", json.dumps(rows, indent=1)[:-9])
    with pytest.raises(DataError, match=r"b\.json, line 39, column 6"):
        fields(broken)


def test_a_broken_element_is_told_before_the_rest_is_read(tmp_path: Path) -> None:
    path = written(tmp_path, "a.json", "[{}, {'a': 1},\n" + "{},\n" * 1_000_000 + "{}]")
    with path.open(encoding="utf-8") as file:
        document = JsonText(file, "a.json")
        elements = document.array()
        next(elements)
        assert document.value() == {}
        next(elements)
        with pytest.raises(DataError, match="line 1, column 7"):
            document.value()
        assert file.tell() < 1_000_000


@pytest.mark.parametrize("name", ["a.json", "wrapped.json", "a.jsonl", "a.csv", "a.txt", "a.jsonl.gz", "a.jsonl.zst"])
def test_memory_stays_flat(tmp_path: Path, name: str) -> None:
    line = json.dumps({"text": "x" * 2_000})
    count = 20_000
    lines = f"{line}\n" * count
    array = f"[{','.join([line] * count)}]"
    content = {
        "a.json": array,
        "wrapped.json": f'{{"data": {array}}}',
        "a.csv": "text,n\n" + f"{'x' * 2_000},1\n" * count,
    }
    path, data = tmp_path / name, content.get(name, lines).encode()
    path.write_bytes(gzip.compress(data) if name.endswith("gz") else zstd(data) if name.endswith("zst") else data)
    program = (
        "import resource, sys\n"
        "from truetune.data.read import read_records\n"
        "import pyarrow\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024\n"
        "start = peak()\n"
        "count = sum(1 for _ in read_records(sys.argv[1]))\n"
        "print(count, peak() - start)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, check=True)
    rows, megabytes = map(int, done.stdout.split())
    assert rows == count
    assert megabytes < 15  # The file holds 40.


def test_reading_loads_no_heavy_library() -> None:
    heavy = ("torch", "transformers", "datasets", "pyarrow", "pandas", "huggingface_hub")
    program = f"import sys, truetune.data.read; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
