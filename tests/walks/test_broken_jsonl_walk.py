"""Somebody with a file of lines that is broken: each way it can be is said, with the line and what to do."""

import gzip
import json
from pathlib import Path

import pytest
from typed import Terminal

ROWS = [{"instruction": f"Say {word}", "output": word} for word in ("one", "two", "three", "four")]
GOOD = "".join(json.dumps(row) + "\n" for row in ROWS)
PAGE = "<!DOCTYPE html>\n<html><head><title>404</title></head>\n<body>Not Found</body></html>\n"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 12\n"

BROKEN: dict[str, tuple[str, bytes | str, str, str]] = {
    "a comma behind each line": ("a.jsonl", GOOD.replace("}\n", "},\n"), "line 1, column 44", "the comma at the end"),
    "the last line cut off": ("a.jsonl", GOOD[:-12], "line 4", "is it cut off"),
    "single quotes": ("a.jsonl", GOOD.replace('"', "'"), "line 1, column 2", "double quotes only"),
    "a number that is none": ("a.jsonl", GOOD.replace('"two"', "NaN"), "line 2", "write null"),
    "Python's null": ("a.jsonl", GOOD.replace('"two"', "None"), "line 2, column 38", "None is Python's"),
    "two on a line": ("a.jsonl", GOOD.replace("}\n{", "} {", 1), "line 1, column 45", "another object begins there"),
    "several lines each": (
        "a.jsonl",
        '{"text": "a",\n "n": 1}\n{"text":\n "b"}\n',
        "line 1",
        "broken into several lines",
    ),
    "a line break in a text": ("a.jsonl", '{"text": "a\nb"}\n', "line 1", "a line break"),
    "a tab in a text": ("a.jsonl", '{"text": "a\tb"}\n', "line 1", r"a tab \t"),
    "a quote in a text": ("a.jsonl", '{"text": "say "a" now"}\n', "line 1, column 16", r"is written \""),
    "a path with backslashes": ("a.jsonl", '{"text": "C:\\Users"}\n', "line 1", "a backslash inside a text"),
    "a comma before the end": ("a.jsonl", '{"text": "a",}\n', "line 1, column 14", "take out the comma before }"),
    "a comma before the array's end": ("a.json", '[{"text": "a"},\n]\n', "line 2, column 1", "the comma before ]"),
    "two bytes a letter": ("a.jsonl", GOOD.encode("utf-16-le"), "line 1", "UTF-16 without a byte order mark"),
    "a page of the server": ("a.jsonl", PAGE, "line 1", "it looks like a web page"),
    "a page as JSON": ("a.json", PAGE, "line 1", "it looks like a web page"),
    "a page as a table": ("a.csv", PAGE, "line 1", "it looks like a web page"),
    "a note of Git LFS": ("a.jsonl", POINTER, "line 1", "git lfs pull"),
    "compressed": ("a.jsonl", gzip.compress(GOOD.encode()), "compressed with gzip", "let its name end in .gz"),
    "an empty array's file": ("a.json", "", "line 1", "the file is empty"),
    "an empty table": ("a.csv", "", "the file is empty", "must name the columns"),
    "another ending": ("a.jsonlines", GOOD, "files ending in .jsonlines", "let its name end in .jsonl"),
}


@pytest.fixture
def terminal(capsys: pytest.CaptureFixture[str]) -> Terminal:
    return Terminal(capsys)


def written(path: Path, content: bytes | str) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize("how", BROKEN)
def test_what_is_broken_is_named_with_its_place_and_what_to_do(how: str, tmp_path: Path, terminal: Terminal) -> None:
    name, content, place, remedy = BROKEN[how]
    told = terminal.refused("check", written(tmp_path / name, content), status=1)
    error, _, hint = told.partition("\nhint: ")
    assert str(tmp_path / name) in error
    assert place in error
    assert remedy in hint


@pytest.mark.parametrize(
    "content", [b"\xef\xbb\xbf" + GOOD.encode(), GOOD.encode("utf-16"), GOOD.replace("\n", "\r\n\r\n").encode()]
)
def test_marks_and_blank_lines_are_no_fault(content: bytes, tmp_path: Path, terminal: Terminal) -> None:
    assert "4 of 4 rows" in terminal.done("check", written(tmp_path / "a.jsonl", content)).out


def test_all_broken_lines_are_named_at_once(tmp_path: Path, terminal: Terminal) -> None:
    lines = ['{"text": "a"}', "{'text': 'b'}", '{"text": "c"}', "{'text': 'd'}", *["x"] * 7]
    told = terminal.refused("check", written(tmp_path / "a.jsonl", "\n".join(lines)), status=1)
    assert "line 2, column 2" in told
    assert "(and 8 more lines like it: 4, 5, 6, 7, 8 …)" in told


def test_a_file_of_no_rows_and_a_folder_of_none_say_so(tmp_path: Path, terminal: Terminal) -> None:
    for content in ("", "\n\n"):
        told = terminal("check", written(tmp_path / "empty.jsonl", content))
        assert told.status == 1
        assert "the data holds no rows" in told.out
    (tmp_path / "nothing").mkdir()
    assert "it is empty" in terminal.refused("check", tmp_path / "nothing", status=1)


def test_a_wrong_path_has_the_right_one_as_its_hint(tmp_path: Path, terminal: Terminal) -> None:
    written(tmp_path / "train.jsonl", GOOD)
    told = terminal.refused("check", tmp_path / "trian.jsonl", status=1)
    assert f"did you mean {tmp_path}/train.jsonl?" in told


def test_a_misspelt_field_is_named_with_what_it_is_meant_to_be(tmp_path: Path, terminal: Terminal) -> None:
    rows = [
        *ROWS,
        {"instruciton": "Say five", "output": "five"},
        {"instruction": "Say six", "ouput": "six"},
        {"instruction": "Say seven", "inptu": "loud", "output": "seven"},
    ]
    data = written(tmp_path / "a.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    told = terminal("check", data, "--json")
    assert told.status == 1
    found = {problem["where"]["line"]: problem for problem in json.loads(told.out)["problems"]}
    assert found[5]["hint"] == 'is "instruciton" a misspelt instruction? correct it in the rows'
    assert found[6]["hint"] == 'is "ouput" a misspelt output? correct it in the rows'
    assert found[7]["message"].startswith('the field "inptu" is filled and not used')
