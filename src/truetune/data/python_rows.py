"""Rows that are Python objects already: mappings, a `datasets.Dataset`, a DataFrame."""

import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from truetune.data.examples import Location, Record
from truetune.data.json_text import kind_of
from truetune.data.tables import batch_rows, require_distinct
from truetune.errors import DataError

_BATCH = 1_000
_NAME = "data"


def read_rows(source: Iterable[Mapping[str, Any]]) -> Iterator[Record]:
    """The rows of a list or generator of mappings, a Dataset, an IterableDataset, a DatasetDict or a DataFrame."""
    for number, row in enumerate(_rows(source), start=1):
        where = Location(_NAME, number, "row")
        if not isinstance(row, Mapping):
            raise DataError(
                f"{where}: a row must be a mapping of fields, found {kind_of(row)}",
                hint='give a list of rows such as {"instruction": "…", "output": "…"}',
            )
        yield Record(row, where)


def _rows(source: Any) -> Iterable[Any]:
    """Tells what a source is without importing the library that it would come from."""
    if _is_a(source, "pandas", "DataFrame"):
        return _frame_rows(source)
    if _is_a(source, "datasets", "DatasetDict") or _is_a(source, "datasets", "IterableDatasetDict"):
        return _rows(_only_split(source))
    if _is_a(source, "datasets", "Dataset") and source.format["type"] is None:
        return _dataset_rows(source)
    if _is_a(source, "datasets", "IterableDataset"):
        return map(_without_nested_nulls, source)
    if isinstance(source, Mapping):
        raise DataError(f"{_NAME}: {_mapping_words(source)}, and rows are expected", hint=_ROWS_OF_COLUMNS)
    return source  # type: ignore[no-any-return]


_ROWS_OF_COLUMNS = "give a list of rows: [dict(zip(data, row)) for row in zip(*data.values())], or [data] for one row"


def _mapping_words(source: Mapping[str, Any]) -> str:
    fields = ", ".join(map(str, list(source)[:5])) or "nothing"
    return f"it is a mapping, of {fields}"


def _is_a(source: Any, module: str, name: str) -> bool:
    loaded = sys.modules.get(module)
    return loaded is not None and isinstance(source, getattr(loaded, name))


def _only_split(source: Mapping[str, Any]) -> Any:
    if "train" in source:
        return source["train"]
    if len(source) == 1:
        return next(iter(source.values()))
    raise DataError(
        f"{_NAME}: no split 'train'; there are {', '.join(source)}",
        hint='pass one of them: data["…"] of the DatasetDict',
    )


def _dataset_rows(source: Any) -> Iterator[dict[str, Any]]:
    """Read from its Arrow table, as a file would be."""
    for table in source.with_format("arrow", columns=source.format["columns"]).iter(batch_size=_BATCH):
        for batch in table.combine_chunks().to_batches():
            yield from batch_rows(batch, place=_NAME)


def _without_nested_nulls(row: Any) -> Any:
    """The row without the nulls that stand for absent keys inside its objects."""
    return {name: _pruned(value) for name, value in row.items()} if isinstance(row, Mapping) else row


def _pruned(value: Any) -> Any:
    match value:
        case Mapping():
            return {name: _pruned(each) for name, each in value.items() if each is not None}
        case list():
            return [_pruned(each) for each in value]
        case _:
            return value


def _frame_rows(frame: Any) -> Iterator[dict[str, Any]]:
    names = [str(name) for name in frame.columns]
    require_distinct(names, _NAME)
    for start in range(0, len(frame), _BATCH):
        for row in frame.iloc[start : start + _BATCH].to_dict(orient="records"):
            yield {name: _cell(value) for name, value in zip(names, row.values(), strict=True)}


def _cell(value: Any) -> Any:
    """A missing value (NaN, NaT, NA) is null; a date is its text; an array, as Parquet's lists come, is a list."""
    match value:
        case str() | bool() | int():
            return value
        case Mapping():
            return {name: _cell(each) for name, each in value.items()}
        case list() | tuple():
            return [_cell(each) for each in value]
    if type(value).__name__ in ("NAType", "NaTType") or (isinstance(value, float) and value != value):
        return None
    if hasattr(value, "isoformat"):
        return value.isoformat()
    return _cell(value.tolist()) if type(value).__module__ == "numpy" else value
