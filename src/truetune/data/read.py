"""Files and Python rows into records, changing nothing: no type is guessed, no value rewritten.

Rows are read here and not by `datasets`, whose loaders give a column one type and so turn "007" into 7 and
date-like text into dates.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from truetune.data.csv_files import read_csv
from truetune.data.examples import Record
from truetune.data.python_rows import read_rows
from truetune.data.sources import Source, SourceFile, find_files
from truetune.data.streams import suffix_of
from truetune.data.tables import read_arrow, read_parquet
from truetune.data.text_files import read_json, read_jsonl, read_txt

_READERS: Mapping[str, Callable[[SourceFile], Iterator[Record]]] = {
    ".json": read_json,
    ".jsonl": read_jsonl,
    ".ndjson": read_jsonl,
    ".csv": read_csv,
    ".tsv": read_csv,
    ".txt": read_txt,
    ".parquet": read_parquet,
    ".arrow": read_arrow,
    ".feather": read_arrow,
}


def read_records(source: str | Path | SourceFile | Iterable[Mapping[str, Any]]) -> Iterator[Record]:
    """The rows of a place (as data.path has it), a file, or Python (mappings, a Dataset …), one by one.

    Raises DataError, naming file and line, for a file that is missing, unreadable or broken.
    """
    if isinstance(source, str | Path):
        for file in find_files(Source(str(source))).files:
            yield from read_records(file)
    elif isinstance(source, SourceFile):
        yield from _READERS[suffix_of(source.path)](source)
    else:
        yield from read_rows(source)
