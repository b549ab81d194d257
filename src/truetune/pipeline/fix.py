"""`truetune check --fix`: a cleaned copy of the data, and a list of every change. The data is never touched."""

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from truetune.config.schema import Config, DataConfig
from truetune.data.catalog import RULES
from truetune.data.examples import Example, Location, Record
from truetune.data.formats import parse_example
from truetune.data.prefixes import common_length
from truetune.data.rules import Problem, RowError
from truetune.data.sources import CHANGES, SourceFile
from truetune.data.write import RowFile, require_writable, row_file
from truetune.errors import ConfigError
from truetune.lint.mend import MENDED, Change, is_fillable, mend_record, placeholders_left
from truetune.lint.parts import parts_of
from truetune.lint.selection import Selection
from truetune.lint.sketch import SketchedRow, sketched
from truetune.listener import Listener, LogListener
from truetune.pipeline.stages import Rows, require_rows, sources, training_files
from truetune.pipeline.workers import by_chunks

_SHOWN = 200
_BEFORE = 60
"""Characters of a changed text that are shown, and how many of them in front of the change."""


@dataclass(frozen=True, slots=True)
class Fixed:
    """What was written, and what was changed: changes and rows left out by rule, unfilled placeholders by name."""

    path: Path
    changes_path: Path
    rows_read: int
    rows_written: int
    changes: Mapping[str, int]
    left_out: Mapping[str, int]
    placeholders_left: Mapping[str, int]

    def as_json(self) -> dict[str, Any]:
        return {
            "path": str(self.path),
            "changes_path": str(self.changes_path),
            "rows_read": self.rows_read,
            "rows_written": self.rows_written,
            "changes": dict(self.changes),
            "left_out": dict(self.left_out),
            "placeholders_left": dict(self.placeholders_left),
        }


def fix_rows(
    config: Config,
    out: str | Path,
    *,
    values: Mapping[str, str] | None = None,
    overwrite: bool = False,
    source: Rows | None = None,
    listener: Listener | None = None,
) -> Fixed:
    """Writes what the rules of `config.check` can mend, and can use, to `out`; `values` fill placeholders by name.

    ConfigError, before a row is read, if `out` is one of the files that are read, is there, or is of no kind that is
    written.
    """
    listener, values, path = listener or LogListener(), values or {}, Path(out).expanduser()
    _require_values(values)
    require_writable(path)
    require_rows(config.data, source)
    inputs: list[SourceFile | Rows] = [*training_files(config.data, listener)] if source is None else [source]
    files = [file for file in inputs if isinstance(file, SourceFile)]
    _require_free(path, files, overwrite=overwrite)
    _warn_of_folder(path, config.data, listener)
    rules = config.check
    selection = Selection.of(select=rules.select, ignore=rules.ignore).reading(files)
    fixing = _Fixing(path, path.with_name(path.name + CHANGES), selection, listener)
    fixed = fixing.run(_Mending(config.data, selection, values), inputs, config.data)
    _warn_of_values(values, fixing.filled, selection, listener)
    return fixed


# --- what is refused, and what is told --------------------------------------------------------------------


def _require_values(values: Mapping[str, str]) -> None:
    for name, value in values.items():
        if is_fillable(value):
            raise ConfigError(f"the value of {name} holds a placeholder itself: {value}", hint="write it out")


def _require_free(path: Path, files: Iterable[SourceFile], *, overwrite: bool) -> None:
    for target in (path, path.with_name(path.name + CHANGES)):
        if any(_is_same(target, file.path) for file in files):
            raise ConfigError(f"{target} is one of the files that are read", hint="write to another name")
        if target.is_dir():
            raise ConfigError(f"{target} is a folder", hint="name a file to write to")
        if os.path.lexists(target) and not overwrite:
            raise ConfigError(f"{target} already exists", hint="choose another name, or add --overwrite")


def _is_same(path: Path, other: Path) -> bool:
    """Also by another name: over links of either kind."""
    return path.exists() and other.exists() and path.samefile(other)


def _warn_of_folder(path: Path, data: DataConfig, listener: Listener) -> None:
    for source in sources(data):
        folder = Path(source.path).expanduser()
        if folder.is_dir() and path.resolve().is_relative_to(folder.resolve()):
            listener.warn(f"{path} lies in {source.path}: whoever reads that folder next reads the copy, too")


def _warn_of_values(values: Mapping[str, str], filled: set[str], selection: Selection, listener: Listener) -> None:
    if values and not selection.holds("placeholder"):
        listener.warn("no placeholder was filled: TT205 is not among the rules that are held")
        return
    for name in values:
        if name not in filled:
            listener.warn(f"no placeholder {{{{{name}}}}} was found in the rows")


# --- rows -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Row:
    """A mended row. `reason` is why it cannot be used, `key` tells rows with equal texts; 0 is unknown."""

    where: Location
    fields: Mapping[str, Any]
    changes: tuple[Change, ...]
    filled: frozenset[str]
    left: Counter[str] = field(default_factory=Counter)
    reason: Problem | None = None
    key: int = 0


@dataclass(frozen=True, slots=True)
class _Mending:
    """Mends a chunk of rows by the rules that are held at each place; runs in any process."""

    data: DataConfig
    selection: Selection
    values: Mapping[str, str]

    def run(self, chunk: Sequence[tuple[int, Record]]) -> list[_Row]:
        mended = [self._row(number, record) for number, record in chunk]
        examples = [example for _, example in mended if example]
        keys = iter(sketched(examples, with_languages=False).key.tolist() if examples else ())
        return [replace(row, key=next(keys)) if example else row for row, example in mended]

    def _row(self, number: int, record: Record) -> tuple[_Row, SketchedRow | None]:
        where = record.where
        rules = frozenset(rule for rule in MENDED if self.selection.wants(rule, where))
        mended = mend_record(
            record, rules=rules, values=self.values, format=self.data.format, columns=self.data.columns
        )
        row = _Row(where, mended.fields, mended.changes, mended.filled)
        example = self._parsed(Record(mended.fields, where))
        if isinstance(example, RowError):
            is_kept = not self.selection.wants(example.rule, where)
            return row if is_kept else replace(row, reason=Problem.of(example, where)), None
        parts = parts_of(example)
        left = placeholders_left(parts) if "placeholder" in rules else Counter[str]()
        return replace(row, left=left), SketchedRow(example, parts, number, where.line)

    def _parsed(self, record: Record) -> Example | RowError:
        try:
            return parse_example(record, format=self.data.format, columns=self.data.columns)
        except RowError as error:
            return error


@dataclass(slots=True)
class _Fixing:
    """Writes rows and changes, and counts them."""

    path: Path
    changes_path: Path
    selection: Selection
    listener: Listener
    changes: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    left: Counter[str] = field(default_factory=Counter)
    filled: set[str] = field(default_factory=set)
    seen: set[int] = field(default_factory=set)
    read: int = 0
    written: int = 0

    def run(self, mending: _Mending, inputs: Sequence[SourceFile | Rows], data: DataConfig) -> Fixed:
        with row_file(self.changes_path) as changes, row_file(self.path) as rows:
            for chunk in by_chunks(mending.run, inputs, formatting=None, num_proc=data.num_proc):
                for row in chunk:
                    self._take(row, rows, changes)
                self.listener.progress("mending rows", self.read, None)
            self.listener.progress("mending rows", self.read, self.read)
        self._tell(rows)
        counts = (dict(sorted(counter.items())) for counter in (self.changes, self.left_out, self.left))
        return Fixed(self.path, self.changes_path, self.read, self.written, *counts)

    def _take(self, row: _Row, rows: RowFile, changes: RowFile) -> None:
        self.read += 1
        self.filled |= row.filled
        if found := self._reason(row):
            self.left_out[found[0]] += 1
            changes.write({**_named(row.where, found[0]), "action": "left out", "reason": found[1]})
            return
        for change in row.changes:
            self.changes[change.rule] += 1
            changes.write({**_named(row.where, change.rule), **_shown(change)})
        self.left.update(row.left)
        self.written += 1
        rows.write(row.fields)

    def _reason(self, row: _Row) -> tuple[str, str] | None:
        """The rule that leaves the row out, and why."""
        if row.reason:
            place = f"{row.reason.field}: " if row.reason.field else ""
            return row.reason.rule, f"{place}{row.reason.message}"
        is_repeated = row.key != 0 and row.key in self.seen
        if row.key:
            self.seen.add(row.key)
        if is_repeated and self.selection.wants("duplicate-rows", row.where):
            return "duplicate-rows", "equals an earlier row in all its texts"
        return None

    def _tell(self, rows: RowFile) -> None:
        if rows.as_text:
            self.listener.warn(
                f"{self.path}: written as text, since values of several types stand in it: {', '.join(rows.as_text)}"
            )
        if not self.written:
            self.listener.warn(f"{self.path}: no row is left")


def _named(where: Location, rule: str) -> dict[str, Any]:
    return {"where": asdict(where), "code": RULES[rule].code, "name": rule}


def _shown(change: Change) -> dict[str, str]:
    """The change with so much of its texts as shows it: from a little before the first letter that differs."""
    start = max(0, common_length(change.before, change.after) - _BEFORE)
    return {
        "field": change.field,
        "before": _cut(change.before, start),
        "after": _cut(change.after, start),
    }


def _cut(text: str, start: int) -> str:
    end = start + _SHOWN
    return f"{'…' if start else ''}{text[start:end]}{'…' if len(text) > end else ''}"
