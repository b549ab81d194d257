"""Rows come back from a file of any kind, value by value; whatever bytes a file has, it is read or refused."""

import gzip
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from properties import NUMBERS, TEXTS, WHOLE_TEXTS, examples, json_values
from truetune.data.blocks import Place, records_from
from truetune.data.examples import Record
from truetune.data.json_text import JsonText, parse_line
from truetune.data.read import read_records
from truetune.data.sources import SourceFile
from truetune.data.write import row_file, to_json
from truetune.errors import DataError

Rows = list[dict[str, Any]]

NAMES = st.sampled_from(["text", "prompt", "Antwort", "a b", "é", "id"])


def rows_of(values: st.SearchStrategy[Any], *, least: int = 0, most: int = 4) -> st.SearchStrategy[Rows]:
    return st.lists(st.dictionaries(NAMES, values, min_size=least), min_size=1, max_size=most)


@contextmanager
def folder() -> Iterator[Path]:
    """A folder for one example: hypothesis asks a test for many, and pytest gives one folder a test."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def compressed(path: Path, content: bytes) -> Path:
    """The content in a file, as its name says."""
    match path.suffix:
        case ".gz":
            path.write_bytes(gzip.compress(content))
        case ".zst":
            with pa.output_stream(str(path), compression="zstd") as stream:
                stream.write(content)
        case _:
            path.write_bytes(content)
    return path


def read(path: Path) -> list[Record]:
    return list(read_records(SourceFile(path, path.name)))


def fields(path: Path) -> list[Mapping[str, Any]]:
    return [record.fields for record in read(path)]


def same(read: Any, written: Any) -> bool:
    """Equal in kind too: 1, 1.0 and True are equal to Python."""
    return to_json(read) == to_json(written)


# --- what is written is read ------------------------------------------------------------------------------


def as_lines(rows: Rows) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def as_array(rows: Rows) -> str:
    return json.dumps(rows, indent=1, ensure_ascii=True)


LAYOUTS = {"a.jsonl": as_lines, "a.ndjson": as_lines, "a.json": as_array, "lines.json": as_lines}


@pytest.mark.parametrize("packing", ["", ".gz", ".zst"])
@pytest.mark.parametrize("name", LAYOUTS)
@given(rows=rows_of(json_values(), least=1))
@examples(8)
def test_json_is_read_as_it_was_written_value_by_value(name: str, packing: str, rows: Rows) -> None:
    rows = rows * 2 if name == "lines.json" else rows  # One object alone may wrap its rows.
    with folder() as place:
        path = compressed(place / (name + packing), LAYOUTS[name](rows).encode())
        assert same(fields(path), rows)


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.jsonl.gz"])
@given(rows=rows_of(json_values()))
@examples(10)
def test_our_own_json_keeps_every_row_with_its_keys_in_order(name: str, rows: Rows) -> None:
    rows = [{"kept": 1, **row} for row in rows]
    with folder() as place:
        with row_file(place / name) as file:
            for row in rows:
                file.write(row)
        assert same(fields(place / name), rows)


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.csv.gz"])
@given(rows=rows_of(WHOLE_TEXTS, least=2))
@examples(12)
def test_cells_keep_every_character(name: str, rows: Rows) -> None:
    columns = {column: "" for row in rows for column in row}
    with folder() as place:
        with row_file(place / name) as file:
            for row in rows:
                file.write(row)
        assert fields(place / name) == [{**columns, **row} for row in rows]


@pytest.mark.parametrize("name", ["a.parquet", "a.parquet.gz", "a.parquet.zst"])
@given(rows=rows_of(json_values(WHOLE_TEXTS)))
@examples(8)
def test_a_table_keeps_every_value_or_says_that_it_is_text(name: str, rows: Rows) -> None:
    rows = [{"kept": number, **row} for number, row in enumerate(rows)]
    with folder() as place:
        with row_file(place / "a.parquet") as file:
            for row in rows:
                file.write(row)
        found = fields(compressed(place / f"copy-{name}", (place / "a.parquet").read_bytes()))
    assert [row["kept"] for row in found] == list(range(len(rows)))
    for mine, row in zip(found, rows, strict=True):
        for column, value in row.items():
            is_text = column in file.as_text and not isinstance(value, str | None)
            assert same(_without_nulls(mine[column]), to_json(value) if is_text else _without_nulls(value))


def _without_nulls(value: Any) -> Any:
    """A struct cannot tell a key that is null from one that is not there."""
    match value:
        case dict():
            return {name: _without_nulls(each) for name, each in value.items() if each is not None}
        case list():
            return [_without_nulls(each) for each in value]
        case _:
            return value


ARROW = st.fixed_dictionaries(
    {
        "text": st.none() | WHOLE_TEXTS,
        "number": st.none() | st.integers(-(2**63), 2**63 - 1),
        "share": st.none() | st.floats(allow_nan=False),
        "tags": st.none() | st.lists(WHOLE_TEXTS, max_size=3),
        "turns": st.none()
        | st.lists(st.fixed_dictionaries({"role": WHOLE_TEXTS, "content": WHOLE_TEXTS}), max_size=2),
    }
)
SCHEMA = pa.schema(
    {
        "text": pa.string(),
        "number": pa.int64(),
        "share": pa.float64(),
        "tags": pa.list_(pa.string()),
        "turns": pa.list_(pa.struct({"role": pa.string(), "content": pa.string()})),
    }
)


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "stream.arrow", "a.feather.zst"])
@given(rows=st.lists(ARROW, min_size=1, max_size=4))
@examples(10)
def test_tables_of_others_are_read_value_by_value(name: str, rows: Rows) -> None:
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    sink = pa.BufferOutputStream()
    if "parquet" in name:
        pq.write_table(table, sink)
    else:
        new = pa.ipc.new_stream if name.startswith("stream") else pa.ipc.new_file
        with new(sink, SCHEMA) as writer:
            writer.write_table(table)
    with folder() as place:
        found = read(compressed(place / name, sink.getvalue().to_pybytes()))
    assert [dict(record.fields) for record in found] == rows
    assert [record.where.line for record in found] == list(range(1, len(rows) + 1))


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n"), max_size=8), max_size=6))
@examples(25)
def test_every_line_of_a_text_file_that_is_not_blank_is_a_row_with_its_line(lines: list[str]) -> None:
    with folder() as place:
        path = compressed(place / "a.txt", "\n".join(lines).encode())
        found = [(record.fields["text"], record.where.line) for record in read(path)]
    # A byte order mark is no letter, and \r\n ends a line as \n does.
    expected = [line.removeprefix("\ufeff") if not number else line for number, line in enumerate(lines)]
    assert found == [(line.removesuffix("\r"), n) for n, line in enumerate(expected, start=1) if line.strip()]


# --- where it stands --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.jsonl", "a.ndjson", "a.txt", "a.jsonl.gz"])
@given(gaps=st.lists(st.sampled_from(["", "\n", " \n", "\n\n"]), min_size=2, max_size=6), is_broken=st.booleans())
@examples(12)
def test_a_row_s_line_is_the_one_in_the_file_and_so_is_that_of_a_broken_one(
    name: str, gaps: list[str], is_broken: bool
) -> None:
    text, expected = "", []
    for number, gap in enumerate(gaps):
        text += gap
        expected.append(text.count("\n") + 1)
        text += json.dumps({"n": number}) + "\n"
    last = text.count("\n") + 1
    found, told = [], ""
    with folder() as place:
        path = compressed(place / name, text.encode() + (b'{"n": "\xff"}\n' if is_broken else b""))
        try:
            found.extend(record.where.line for record in read_records(SourceFile(path, name)))
        except DataError as error:
            told = error.message
    assert found == expected or (is_broken and found == expected[: len(found)])
    assert told.startswith(f"{name}, line {last}: not valid UTF-8") is is_broken


def whole_value(text: str) -> Any:
    """The one value of a text, read a few characters at a time. DataError where there is none, or more behind it."""
    document = JsonText(_Slow(text, 7), "a.json")
    value = document.value()
    if document.peek():
        raise DataError(f"a.json, line {document.line}: more than one value")
    return value


@given(value=json_values(), piece=st.sampled_from(["}", "]", ",", ":", "x", '"', "01", ""]), at=st.integers(0, 80))
@examples(80)
def test_what_is_wrong_with_json_is_placed_as_python_s_own_parser_places_it(value: Any, piece: str, at: int) -> None:
    text = json.dumps([{"a": value}, 7], indent=1)
    at %= len(text)
    text = text[:at] + piece + text[at + 1 :]
    try:
        json.loads(text)
        return
    except json.JSONDecodeError as error:
        wrong = error
    with pytest.raises(DataError) as caught:
        whole_value(text)
    if wrong.msg != "Extra data":
        assert caught.value.message.startswith(f"a.json, line {wrong.lineno}, column {wrong.colno}: ")


# --- from any place on ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt", "a.csv", "a.json", "a.parquet", "a.jsonl.gz"])
@given(
    texts=st.lists(WHOLE_TEXTS.filter(str.strip), min_size=1, max_size=6), cut=st.integers(0, 6), blank=st.booleans()
)
@examples(8)
def test_read_from_any_place_on_the_rest_is_the_same(name: str, texts: list[str], cut: int, blank: bool) -> None:
    texts = [text.replace("\n", " ").replace("\r", " ") or "x" for text in texts]
    with folder() as place:
        path = place / name
        if name == "a.txt":
            path.write_text(("\n\n" if blank else "\n").join(texts), encoding="utf-8", newline="")
        else:
            with row_file(path) as file:
                for number, text in enumerate(texts):
                    file.write({"text": text, "n": str(number)})
        files = [SourceFile(path, name)] * 2
        whole = list(records_from(files, Place()))
        start = whole[min(cut, len(whole)) - 1][0] if cut and whole else Place()
        rest = list(records_from(files, start))
    assert [record for _, record in whole][: len(whole) // 2] == [record for _, record in whole][len(whole) // 2 :]
    assert rest == whole[min(cut, len(whole)) :]


# --- whatever bytes it has --------------------------------------------------------------------------------


SEEDS: Mapping[str, Sequence[bytes]] = {
    ".jsonl": [
        b'{"text": "a", "n": [1, 2.50, null]}\n\n{"text": "\\ud83d\\ude00"}\n',
        b'[{"role": "user", "content": 1}]',
    ],
    ".json": [b'{"train": [{"text": "a"}], "test": []}', b'[{"a": {"b": "c"}},\n {"a": NaN}]', b'{"a": 1}\n{"a": 2}'],
    ".csv": [b'a,b\n"x, ""y""\r\nz",2\n', b"\xef\xbb\xbfFrage;Antwort\nx;y\n"],
    ".tsv": [b"a\tb\n1\t2\n"],
    ".txt": [b"one\n\ntwo\r\n", "é".encode("utf-16")],
}
PIECES = [
    b"",
    b"\n",
    b"\r",
    b'"',
    b"\\",
    b"{",
    b"]",
    b"\0",
    b"\xff",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"\xed\xa0\x80",
    b"1e9",
]


@st.composite
def broken(draw: st.DrawFn) -> tuple[str, bytes]:
    """The name's end and the bytes of a file that was cut, or in which something stands that should not."""
    suffix = draw(st.sampled_from(list(SEEDS)))
    content = draw(st.sampled_from(SEEDS[suffix]))
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(content)))
        end = draw(st.integers(start, min(len(content), start + 4)))
        content = content[:start] + draw(st.sampled_from(PIECES) | st.binary(max_size=3)) + content[end:]
    return suffix, content[: draw(st.integers(0, len(content)))] if draw(st.booleans()) else content


def require_rows_or_reason(path: Path) -> list[Record]:
    """The rows that can be read; what stops it is told with the file and a remedy."""
    found: list[Record] = []
    try:
        found.extend(read_records(SourceFile(path, path.name)))
    except DataError as error:
        assert error.message.startswith(path.name)
        assert error.hint
    lines = [record.where.line for record in found]
    assert lines == sorted(set(lines))
    assert all(isinstance(record.fields, Mapping) for record in found)
    return found


@given(broken(), st.sampled_from(["", ".gz", ".zst"]))
@examples(150)
def test_a_broken_file_is_read_or_refused_with_its_name_and_a_remedy(file: tuple[str, bytes], packing: str) -> None:
    suffix, content = file
    with folder() as place:
        require_rows_or_reason(compressed(place / f"a{suffix}{packing}", content))


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "a.jsonl.gz", "a.csv.zst"])
@given(cut=st.integers(0, 400), piece=st.binary(max_size=3), is_end=st.booleans())
@examples(15)
def test_a_table_or_a_packed_file_that_is_damaged_is_refused(name: str, cut: int, piece: bytes, is_end: bool) -> None:
    table = pa.table({"text": ["a", "b"], "n": [1, 2]})
    sink = pa.BufferOutputStream()
    if name == "a.parquet":
        pq.write_table(table, sink)
    else:
        with pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
    with folder() as place:
        path = place / name
        if name.endswith(("gz", "zst")):
            compressed(path, SEEDS[".jsonl" if "jsonl" in name else ".csv"][0])
        else:
            path.write_bytes(sink.getvalue().to_pybytes())
        content = path.read_bytes()
        path.write_bytes(content[:cut] + piece + (b"" if is_end else content[cut + len(piece) :]))
        require_rows_or_reason(path)


def test_a_packed_file_that_is_cut_off_behind_broken_text_is_refused_for_the_text(tmp_path: Path) -> None:
    """What is wrong is looked for in blocks, of which the second is not there."""
    path = tmp_path / "a.jsonl.gz"
    packed = gzip.compress(b'{"a": "\xff"}\n' + bytes(range(256)) * 4_000)
    path.write_bytes(packed[: len(packed) // 2])
    with pytest.raises(DataError, match="line 1: not valid UTF-8"):
        read(path)


# --- JSON -------------------------------------------------------------------------------------------------


@given(value=json_values(TEXTS, most=8), window=st.integers(1, 40), indent=st.none() | st.integers(0, 2))
@examples(60)
def test_a_value_is_the_same_however_little_of_it_is_in_memory(value: Any, window: int, indent: int | None) -> None:
    text = json.dumps([value, value], indent=indent)
    whole = parse_line(text, name="a", line=1)
    assert same(whole, [value, value])
    with _window(window):
        document = JsonText(_Slow(text, window), "a")
        assert same([document.value() for _ in document.array()], whole)
        assert document.peek() == ""


@contextmanager
def _window(size: int) -> Iterator[None]:
    from truetune.data import json_text

    before, json_text._WINDOW = json_text._WINDOW, size
    try:
        yield
    finally:
        json_text._WINDOW = before


class _Slow:
    """A file that gives a few characters at a time."""

    def __init__(self, text: str, most: int) -> None:
        self._text = text
        self._most = most

    def read(self, count: int) -> str:
        count = min(count, self._most)
        piece, self._text = self._text[:count], self._text[count:]
        return piece


@given(st.text(st.sampled_from('{}[]",:\\ \n0123eE.-+truefalsnu'), max_size=24))
@examples(150)
def test_any_text_is_json_for_both_readers_or_for_none(text: str) -> None:
    line: Any = DataError
    with suppress(DataError):
        line = parse_line(text, name="a", line=1)
    document = JsonText(_Slow(text, 3), "a")
    piece: Any = DataError
    with suppress(DataError):
        piece = document.value()
        piece = DataError if document.peek() else piece
    assert (piece is DataError) is (line is DataError)
    assert line is DataError or same(piece, line)


@given(NUMBERS)
@examples(30)
def test_a_number_is_written_as_its_file_spells_it(number: float) -> None:
    text = json.dumps(number)
    assert to_json(parse_line(text, name="a", line=1)) == text
