"""Files read block by block: every row once a pass, from any place on, with the lines that tell where."""

import gzip
import hashlib
import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest

from truetune.data.blocks import (
    Block,
    BlockReader,
    BlockStart,
    Place,
    about_share,
    ends_digest,
    records_from,
    share_before,
)
from truetune.data.read import read_records
from truetune.data.sources import SourceFile
from truetune.errors import DataError

ROWS = [{"text": f"row {number} is née {'x' * (number % 7)}"} for number in range(23)]


def jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    """With blank lines, a byte order mark, and no line feed at the end."""
    lines = [
        json.dumps(row, ensure_ascii=False) + ("\n\n" if number % 5 == 0 else "\n") for number, row in enumerate(rows)
    ]
    path.write_text("\n" + "".join(lines).rstrip("\n"), encoding="utf-8-sig")


def zipped(path: Path, rows: list[dict[str, Any]]) -> None:
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def zstd(path: Path, rows: list[dict[str, Any]]) -> None:
    with pa.output_stream(str(path), compression="zstd") as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows).encode())


def text(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(row["text"] + "\r\n" for row in rows), encoding="utf-8")


def document(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text(json.dumps({"items": rows}, indent=1), encoding="utf-8")


def parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    pa.parquet.write_table(pa.Table.from_pylist(rows), path, row_group_size=5)


def arrow(path: Path, rows: list[dict[str, Any]]) -> None:
    table = pa.Table.from_pylist(rows)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=4)


def csv(path: Path, rows: list[dict[str, Any]]) -> None:
    pa.csv.write_csv(pa.Table.from_pylist(rows), path)


def utf16(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-16")


WRITERS: dict[str, Callable[[Path, list[dict[str, Any]]], None]] = {
    "a.jsonl": jsonl,
    "b.jsonl.gz": zipped,
    "c.jsonl.zst": zstd,
    "d.txt": text,
    "e.json": document,
    "f.parquet": parquet,
    "g.arrow": arrow,
    "h.csv": csv,
    "i.jsonl": utf16,
    "j.ndjson": document,
}


def written(folder: Path, *names: str, rows: list[dict[str, Any]] = ROWS) -> list[SourceFile]:
    for name in names:
        WRITERS[name](folder / name, rows)
    return [SourceFile(folder / name, f"data/{name}") for name in names]


def blocks(files: list[SourceFile], *, size: int, count: int, start: BlockStart | None = None) -> list[Block]:
    reader = BlockReader(files, size=size, **({} if start is None else {"start": start}))
    return [reader.read() for _ in range(count)]


@pytest.mark.parametrize("name", WRITERS)
def test_from_any_place_on_the_rows_are_those_behind_it(name: str, tmp_path: Path) -> None:
    (file,) = written(tmp_path, name)
    whole = list(read_records(file))
    assert [dict(record.fields) for record in whole] == ROWS
    found = list(records_from([file], Place()))
    assert [record for _, record in found] == whole
    for done, (place, _) in enumerate(found, start=1):
        assert [record for _, record in records_from([file], place)] == whole[done:]


def test_a_pass_has_every_row_of_all_files_once_and_blocks_reach_over_files(tmp_path: Path) -> None:
    files = written(tmp_path, *WRITERS)
    whole = [(number, record) for number, file in enumerate(files) for record in read_records(file)]
    size = 9
    count = -(-len(whole) // size)
    first, second = (
        blocks(files, size=size, count=2 * count)[:count],
        blocks(files, size=size, count=2 * count)[count:],
    )
    for epoch, found in enumerate((first, second)):
        assert [row for block in found for row in block.rows] == whole
        assert [(block.start.epoch, block.start.number) for block in found] == [(epoch, n) for n in range(count)]
        assert [len(block.rows) for block in found[:-1]] == [size] * (count - 1)


@pytest.mark.parametrize("size", [1, 5, 23, 46, 100])
def test_where_a_block_says_the_next_one_begins_a_reader_goes_on(size: int, tmp_path: Path) -> None:
    files = written(tmp_path, "a.jsonl", "f.parquet")
    found = blocks(files, size=size, count=120 // size + 3)
    for block, behind in pairwise(found):
        (again,) = blocks(
            files, size=size, count=1, start=BlockStart.from_json(json.loads(json.dumps(_json(block.next))))
        )
        assert again == behind


def _json(start: BlockStart) -> dict[str, Any]:
    place = start.place
    return {
        "epoch": start.epoch,
        "number": start.number,
        "place": {"file": place.file, "row": place.row, "offset": place.offset},
    }


def test_files_without_rows_are_passed_over_and_none_at_all_make_an_empty_block(tmp_path: Path) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n\n")
    nothing = SourceFile(empty, "empty.jsonl")
    (file,) = written(tmp_path, "a.jsonl")
    (block,) = blocks([nothing, file, nothing], size=100, count=1)
    assert len(block.rows) == len(ROWS)
    assert {number for number, _ in block.rows} == {1}
    assert blocks([nothing], size=5, count=1)[0].rows == []


@pytest.mark.parametrize("name", ["a.jsonl", "f.parquet"])
def test_lines_and_row_groups_before_the_place_are_not_read(name: str, tmp_path: Path) -> None:
    """What stands there may be anything by then."""
    (file,) = written(tmp_path, name)
    found = list(records_from([file], Place()))
    (start, _), (place, _) = found[1], found[14]
    with file.path.open("r+b") as stream:
        stream.seek(start.offset or 4)
        stream.write(b"\xff" * (place.offset - start.offset - 1 if place.offset else 60))
    assert [record for _, record in records_from([file], place)] == [record for _, record in found[15:]]


@pytest.mark.parametrize("name", ["a.jsonl", "d.txt"])
def test_a_line_that_is_no_utf8_is_named_wherever_reading_began(name: str, tmp_path: Path) -> None:
    (file,) = written(tmp_path, name)
    found = list(records_from([file], Place()))
    line = found[-1][1].where.line
    content = file.path.read_bytes()
    at = content.rindex("née".encode())
    file.path.write_bytes(content[: at + 1] + b"\xff" + content[at + 2 :])
    for start in (Place(), found[3][0]):
        with pytest.raises(DataError, match=rf"data/{name}, line {line}: not valid UTF-8 \(byte 0xff\)"):
            list(records_from([file], start))


def test_the_share_before_a_place_grows_with_it_from_none_to_all(tmp_path: Path) -> None:
    files = written(tmp_path, *WRITERS)
    shares = [share_before(files, place) for place, _ in records_from(files, Place())]
    assert shares == sorted(shares)
    assert share_before(files, Place()) == 0
    assert share_before(files, Place(len(files))) == 1
    (lines,) = written(tmp_path, "a.jsonl")
    assert [share_before([lines], place) for place, _ in records_from([lines], Place())][-1] == 1.0
    (table,) = written(tmp_path, "f.parquet")
    assert share_before([table], Place(0, 5)) == pytest.approx(5 / 23)


@pytest.mark.parametrize("name", WRITERS)
def test_a_first_block_knows_about_its_share_of_all_rows(name: str, tmp_path: Path) -> None:
    rows = [{"text": hashlib.sha256(str(number).encode()).hexdigest()} for number in range(460)]
    files = written(tmp_path, name, rows=rows)
    (part,), (whole,) = blocks(files, size=46, count=1), blocks(files, size=1_000, count=1)
    assert about_share(files, whole) == 1
    assert 0.1 / 8 < about_share(files, part) < 0.1 * 8


def test_a_file_is_known_by_its_name_size_and_ends(tmp_path: Path) -> None:
    (file,) = written(tmp_path, "a.jsonl")
    known = ends_digest(file)
    assert known == ends_digest(SourceFile(file.path, "elsewhere/a.jsonl"))
    assert known != ends_digest(SourceFile(file.path, "data/b.jsonl"))
    content = file.path.read_bytes()
    file.path.write_bytes(content + b"\n")
    assert ends_digest(file) != known
    file.path.write_bytes(content[:-2] + b"!}")
    assert ends_digest(file) != known
