"""What the report of a run says of its rows: what became of them, and some of those that it trained on."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from truetune.data.catalog import SEVERITIES
from truetune.data.store import StoredRows, evenly
from truetune.errors import first_line
from truetune.lint.private import without_secrets
from truetune.model.source import cache_directory
from truetune.pipeline.inspect import pieces_of
from truetune.report.data_page import Shares, ShownRow, Text
from truetune.report.run_page import DataFacts, FoundRule
from truetune.report.stretches import Stretch, cut_all
from truetune.runs.checkpoints import listed
from truetune.runs.directory import RunDirectory
from truetune.runs.documents import json_object, mapping, mappings, own_file, text

_SAMPLES, _SAMPLE_PART = 5, 3_000


# --- what became of them ----------------------------------------------------------------------------------


def data_facts(report: Mapping[str, Any], record: Mapping[str, Any]) -> DataFacts:
    """The figures and findings of data-report.json."""
    return DataFacts(tuple(_facts(report, record)), tuple(_shares(report)), tuple(_findings(report)))


_FACTS = {
    "rows trained on": "train_rows",
    "rows held out for validation": "validation_rows",
    "tokens": "tokens",
    "tokens learned": "supervised_tokens",
    "longest row, in tokens": "longest_row_tokens",
    "max_length": "max_length",
    "loss on": "train_on",
    "answers end with": "terminator",
}


def _facts(report: Mapping[str, Any], record: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    stats, data = mapping(report, "stats"), mapping(record, "data")
    known = {
        "from": text(data, "path"),
        "rows read": _count(report, "rows_read"),
        "rows kept": _count(report, "rows_kept"),
        "rows left out": ", ".join(f"{name} {count:,}" for name, count in _counts(mapping(report, "rejected"))),
        **{name: _count(stats, key) or text(stats, key) for name, key in _FACTS.items()},
        "fingerprint": text(data, "fingerprint"),
    }
    return ((name, value) for name, value in known.items() if value)


def _count(document: Mapping[str, Any], name: str) -> str:
    return {key: f"{value:,}" for key, value in _counts(document)}.get(name, "")


def _counts(document: Mapping[str, Any]) -> list[tuple[str, int]]:
    return [(name, value) for name, value in document.items() if type(value) is int and value >= 0]


def _shares(report: Mapping[str, Any]) -> Iterator[Shares]:
    stats = mapping(report, "stats")
    for name, key in {"format": "formats", "read as": "read_from"}.items():
        if parts := _counts(mapping(stats, key)):
            yield Shares(name, tuple(sorted(parts, key=lambda part: -part[1])))
    counts = dict(_counts(stats))
    if counts.get("tokens", 0) >= (learned := counts.get("supervised_tokens", 0)) > 0:
        yield Shares("tokens", (("learned", learned), ("read only", counts["tokens"] - learned)))


def _findings(report: Mapping[str, Any]) -> Iterator[FoundRule]:
    """A line for each rule, the worst and the commonest first."""
    problems = mappings(report, "problems")
    counts = dict(_counts(mapping(report, "found")))
    found: dict[str, FoundRule] = {}
    for problem in problems:
        name, told = text(problem, "name"), dict(_counts(problem)).get("rows", 1)
        if name in found:
            continue
        first = f"{where_of(problem)}: {text(problem, 'message')}"
        found[name] = FoundRule(
            text(problem, "code"),
            name,
            text(problem, "severity"),
            counts.get(name, told),
            without_secrets(first),
            text(problem, "hint"),
        )
    return iter(sorted(found.values(), key=lambda each: (_rank(each.severity), -each.rows)))


def _rank(severity: str) -> int:
    known: tuple[str, ...] = SEVERITIES
    return known.index(severity) if severity in known else len(known)


def where_of(document: Mapping[str, Any]) -> str:
    """The place of a row, as a file of a run has it: path, unit and number."""
    where = mapping(document, "where")
    return f"{text(where, 'path')}, {text(where, 'unit') or 'line'} {text(where, 'line')}" if where else ""


# --- some of them -----------------------------------------------------------------------------------------


def samples(run: RunDirectory, record: Mapping[str, Any]) -> tuple[tuple[ShownRow, ...], str]:
    """Rows that the run trained on, as it read them, with what it learned of them; else why there are none.

    They are taken from the prepared rows with the run's own fingerprint, and spelled by the tokenizer that lies with
    its weights: no template is rendered, no code of a model is run, and nothing is fetched.
    """
    fingerprint = text(mapping(record, "data"), "fingerprint")
    folder = _prepared(fingerprint) if fingerprint else None
    if folder is None:
        return (), (
            "The prepared rows of this run are not in the cache any more, or never were (rows from Python); "
            f"truetune prepare {run.config} makes them again."
        )
    tokenizer = _spelling(run)
    if tokenizer is None:
        return (), "The run has no tokenizer yet (it comes with a checkpoint, or with the weights) to spell its rows."
    try:
        return tuple(_shown(folder, tokenizer, text(mapping(record, "data"), "path"))), ""
    except (OSError, EOFError, ValueError, IndexError) as error:
        return (), f"The prepared rows cannot be read: {first_line(error)}."


def _prepared(fingerprint: str) -> Path | None:
    """The folder of the cache with exactly these tokens, labels and split."""
    for path in sorted((cache_directory() / "prepared").glob("*/prepared.json")):
        if json_object(path.parent, path).value.get("fingerprint") == fingerprint:
            return path.parent
    return None


class _Spelling:
    """A tokenizer's file as what decodes. Not transformers, whose import takes longer than all of the report."""

    def __init__(self, file: Path) -> None:
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_file(str(file))

    def decode(self, ids: list[int]) -> str:
        """The text of the ids, control tokens and all."""
        spelled: str = self._tokenizer.decode(ids, skip_special_tokens=False)
        return spelled


def _spelling(run: RunDirectory) -> _Spelling | None:
    for folder in (run.adapter, run.model, *listed(run.checkpoints)):
        file = folder / "tokenizer.json"
        if own_file(run.path, file):
            try:
                return _Spelling(file)
            except Exception:  # noqa: BLE001 - the library raises nothing more exact for a damaged file
                continue
    return None


def _shown(folder: Path, tokenizer: _Spelling, data: str) -> Iterator[ShownRow]:
    trained = StoredRows.open(folder).select(np.load(folder / "train.npy"))
    for row in learned_rows(trained, tokenizer, data=data, most=_SAMPLES):
        stretches = [Stretch(piece, "learned" if learned else "") for piece, learned in row.pieces]
        yield ShownRow(row.where, (Text("", "", cut_all(stretches, most=_SAMPLE_PART)),), row.about)


@dataclass(frozen=True, slots=True)
class LearnedRow:
    """A row of a run without its secrets: its place, and its text in pieces, each with whether it bears loss."""

    where: str
    about: str
    pieces: tuple[tuple[str, bool], ...]


def learned_rows(trained: StoredRows, tokenizer: Any, *, data: str, most: int) -> Iterator[LearnedRow]:
    """At most so many of the rows that are trained on, in even steps; `data` is what the run names as their place."""
    rows = trained.select(np.unique(trained.places))
    files, lines = rows.column("file"), rows.column("line")
    is_one = not files.any()
    for place in evenly(len(rows), most).tolist() if most else ():
        tokens, stands = rows[place], int(rows.places[place])
        number = int(lines[stands])
        unit = "line" if data.endswith((".jsonl", ".csv", ".tsv")) else "record"
        where = f"{data}, {unit} {number}" if is_one and data else f"file {int(files[stands]) + 1}, {number}"
        pieces = ((without_secrets(piece), is_learned) for piece, is_learned in pieces_of(tokens, tokenizer))
        yield LearnedRow(where, f"{len(tokens.input_ids):,} tokens, {tokens.supervised:,} learned", tuple(pieces))
