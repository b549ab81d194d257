"""What a run logged, as columns of numbers: a long run's lines are read all at once, in a quarter of the time."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from truetune.runs.documents import Found, bytes_file, damage, json_objects

Lines = Sequence[Mapping[str, Any]]

_LARGEST = 1e100
_LARGEST_STEP = 2**53
"""Beyond it JavaScript's numbers are no longer exact."""
_LONG = 1_000_000
"""Bytes from which on pyarrow is asked: some 4,000 lines, which Python reads while pyarrow is imported."""
_EVALUATED = re.compile(rb'"(eval_[0-9A-Za-z_.-]{1,100})": ')
_MOST_EVALUATED = 64
_NULL, _NO_NUMBER = b": null", b": 1e300"


@dataclass(frozen=True, slots=True)
class Column:
    """The values under a name, each with its step, as they were logged; NaN for one that is no number."""

    steps: NDArray[np.int64]
    values: NDArray[np.float64]

    @property
    def in_order(self) -> "Column":
        """By step, each once: of a step that was logged twice, the later one."""
        if bool((self.steps[1:] > self.steps[:-1]).all()):
            return self
        order = np.argsort(self.steps, kind="stable")
        steps, values = self.steps[order], self.values[order]
        is_last = np.append(steps[1:] != steps[:-1], True)
        return Column(steps[is_last], values[is_last])

    @property
    def numbers(self) -> "Column":
        """Without what is no number."""
        is_number = ~np.isnan(self.values)
        return Column(self.steps[is_number], self.values[is_number])


@dataclass(frozen=True, slots=True)
class Logged:
    """The columns by name, those of evaluations as they first came up; how many of the lines are none."""

    columns: Mapping[str, Column] = field(default_factory=dict)
    damaged: int = 0


def logged_columns(folder: Path, path: Path, *, names: Sequence[str]) -> Found:
    """The columns of a file of the folder, by name; empty where it cannot be read."""
    text = bytes_file(folder, path)
    if text.problem:
        return Found({}, text.problem)
    found = read_columns(text.value, names=names)
    return Found(found.columns, damage(path, found.damaged))


def read_columns(text: bytes, *, names: Sequence[str]) -> Logged:
    """The columns of these names and all of evaluations (`eval_…`), out of lines of metrics.jsonl.

    A line without a step is passed over. A name under which no line has anything has no column.
    """
    if len(text) >= _LONG and (found := _read_at_once(text, names)) is not None:
        return Logged(found)
    lines, damaged = json_objects(text.decode("utf-8", "replace"))
    return Logged(columns_of(lines, names=names), damaged)


def columns_of(lines: Lines, *, names: Sequence[str]) -> dict[str, Column]:
    """The columns of lines that are parsed already."""
    stepped = [line for line in lines if _is_step(line.get("step"))]
    evaluated = list(dict.fromkeys(name for line in stepped for name in line if name.startswith("eval_")))
    wanted = dict.fromkeys((*names, *evaluated[:_MOST_EVALUATED]))
    found = ((name, [line for line in stepped if name in line]) for name in wanted)
    return {name: _column(having, name) for name, having in found if having}


def number(value: Any) -> float:
    """The value as a number; NaN for anything that is none, or is larger than any number that a training computes."""
    is_number = type(value) is float or type(value) is int
    return float(value) if is_number and -_LARGEST < value < _LARGEST else math.nan


def _column(lines: Lines, name: str) -> Column:
    steps = np.array([line["step"] for line in lines], np.int64)
    return Column(steps, np.array([number(line[name]) for line in lines], np.float64))


def _is_step(value: Any) -> bool:
    return type(value) is int and 0 <= value < _LARGEST_STEP


# --- all at once ------------------------------------------------------------------------------------------


def _read_at_once(text: bytes, names: Sequence[str]) -> dict[str, Column] | None:
    """The same columns, by pyarrow; None where a line is anything but an object with numbers under these names."""
    # A null is a value that is no number, and pyarrow knows it only as one that is missing.
    marked, evaluated = text.replace(_NULL, _NO_NUMBER), _evaluated(text)
    if evaluated is None or b"null" in marked or not text.endswith(b"\n"):
        return None
    wanted = tuple(dict.fromkeys((*names, *evaluated)))
    table = _table(marked, wanted)
    if table is None or table.num_rows != text.count(b"\n"):
        return None
    steps = table["step"].to_numpy()
    columns = {name: _where_it_is(steps, table[name].to_numpy()) for name in wanted}
    return {name: column for name, column in columns.items() if len(column.steps)}


def _table(text: bytes, names: Sequence[str]) -> Any:
    """Steps and numbers of each line; None where one is of another kind."""
    import pyarrow
    from pyarrow.json import ParseOptions, read_json

    kinds = pyarrow.schema([("step", pyarrow.int64()), *((name, pyarrow.float64()) for name in names)])
    # Of other names nothing is made, however many a hostile file may have.
    options = ParseOptions(explicit_schema=kinds, unexpected_field_behavior="ignore")
    try:
        return read_json(pyarrow.BufferReader(text), parse_options=options)
    except pyarrow.ArrowException:
        return None


def _evaluated(text: bytes) -> list[str] | None:
    """The names of evaluations' figures, as they first come up; None where one is written as we write none."""
    found: dict[str, None] = {}
    # bytes.find is ten times as fast as the expression, where few lines have such a name.
    place = text.find(b'"eval_')
    while place >= 0:
        name = _EVALUATED.match(text, place)
        if name is None or len(found) > _MOST_EVALUATED:
            return None
        found[name[1].decode()] = None
        place = text.find(b'"eval_', name.end())
    return list(found)


def _where_it_is(steps: NDArray[Any], values: NDArray[np.float64]) -> Column:
    """The column without the lines that have no step, or not this name."""
    is_there = (steps >= 0) & (steps < _LARGEST_STEP) & ~np.isnan(values)
    kept = values[is_there]
    return Column(steps[is_there].astype(np.int64), np.where(np.abs(kept) < _LARGEST, kept, np.nan))
