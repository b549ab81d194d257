"""The rows that a trained model is evaluated on: prepared as for training, and traced back to their files."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from truetune.config.load import load_config
from truetune.config.schema import Config
from truetune.data.examples import Completion, Conversation, Example, Instruction, Location, Record, Tokenized
from truetune.data.sources import SourceFile
from truetune.data.store import StoredRows
from truetune.errors import BackendError, CheckpointError, DataError, TruetuneError
from truetune.inference.metrics import Expected, without_thinking
from truetune.inference.opened import Opened, open_trained
from truetune.inference.tool_calls import calls_of_turn
from truetune.listener import Listener
from truetune.model.source import resolve_model
from truetune.pipeline.check import prepare
from truetune.pipeline.prepare import PreparedDataset, prepare_rows
from truetune.pipeline.stages import (
    Formatting,
    RowPath,
    Rows,
    chunks,
    require_sources,
    rereadable,
    training_files,
    validation_files,
)
from truetune.runs.checkpoints import checkpoint_step
from truetune.runs.directory import RunDirectory
from truetune.runs.trained import run_of

HELD_OUT = "the run's validation rows"


@dataclass(frozen=True, slots=True)
class Subject:
    """What is evaluated, without its weights: the run it belongs to, if any, and the config that makes its rows."""

    opened: Opened
    run: RunDirectory | None
    config: Config

    def place(self, name: str, *, under: str = "") -> Path | None:
        """Where an evaluation is stored: a file of the run that is not there yet; None for weights without a run."""
        if self.run is None:
            return None
        step = checkpoint_step(Path(self.opened.source.path))
        folder, stem = self.run.evaluations / under, name if step < 0 else f"{name}@{step}"
        return next(path for n in range(1, 1_000_000) if not (path := folder / f"{stem}-{n}.json").exists())


@dataclass(frozen=True, slots=True)
class Asked:
    """A row whose last answer is asked for: the example up to it, what is expected, and the row's own fields."""

    place: int
    where: Location
    example: Example
    prompt: str
    expected: Expected
    fields: Any


@dataclass(frozen=True, slots=True)
class EvaluationRows:
    """The prepared rows; `name` says what they are, `inputs` where they are read again."""

    name: str
    stored: StoredRows
    prepared: PreparedDataset
    config: Config
    inputs: tuple[SourceFile | Rows, ...]
    formatting: Formatting | None
    max_length: int

    def traced(self, places: Sequence[int]) -> dict[int, tuple[Record, Example, Tokenized]]:
        """Of the rows at these places, counted from 0, the record, the example and the tokens."""
        files, lines = self.stored.column("file"), self.stored.column("line")
        keys = {place: self._key(place, files, lines) for place in places}
        wanted = {key for key, _ in keys.values()}
        path = RowPath(self.config.data, self.prepared.template, max_length=self.max_length)
        found: dict[tuple[int, int], list[Any]] = defaultdict(list)
        of_files = {file for file, _ in wanted}
        read: list[SourceFile | Rows] = [
            source if number in of_files else () for number, source in enumerate(self.inputs)
        ]
        for chunk in chunks(read, self.formatting):
            for row in path.take([(n, record) for n, record in chunk if (n, record.where.line) in wanted])[0]:
                found[row.file, row.record.where.line].append(row)
        rows = {place: found[key][number] for place, (key, number) in keys.items()}
        return {place: (row.record, row.example, row.tokens) for place, row in rows.items()}

    def _key(self, place: int, files: Any, lines: Any) -> tuple[tuple[int, int], int]:
        """The file and the line of a row, and which of the rows of that line it is."""
        stands = int(self.stored.places[place])
        key, number = (int(files[stands]), int(lines[stands])), 0
        while stands > number and (int(files[stands - number - 1]), int(lines[stands - number - 1])) == key:
            number += 1
        return key, number

    def asked(self, places: Sequence[int]) -> list[Asked]:
        """The rows at these places that ask for an answer; a bare text asks for none."""
        rows = self.traced(places)
        opened = ((place, rows[place][0], _opened(rows[place][1])) for place in places)
        return [
            Asked(place, record.where, each, _prompt(each), expected_of(each), record.fields)
            for place, record, each in opened
            if each is not None
        ]


# --- which rows -------------------------------------------------------------------------------------------


def read_subject(path: str | Path, *, base_model: str | None, listener: Listener) -> Subject:
    """What a name stands for, and what made its rows. CheckpointError if it stands for nothing."""
    opened = open_trained(path, base_model=base_model, listener=listener)
    run = run_of(Path(opened.source.path))
    if run is not None and run.config.is_file():
        config = load_config(run.config).config
        if base_model:
            base = config.model.model_copy(update={"name_or_path": base_model, "revision": None})
            config = config.model_copy(update={"model": base})
        return Subject(opened, run, config)
    settings = {
        "model.name_or_path": base_model or opened.format.base_model,
        "data.template": opened.format.template,
        "data.adapt_roles": opened.format.adapt_roles,
    }
    return Subject(opened, None, load_config(None, settings=settings).config)


def require_base(subject: Subject) -> None:
    """BackendError, before anything is measured, where the base is not there to be compared."""
    opened = subject.opened
    try:
        resolve_model(
            opened.base_model or opened.format.base_model,
            revision=None if opened.base_model else opened.format.revision,
        )
    except BackendError as error:
        raise BackendError(error.message, hint="name the base with --base, or leave it out with --no-base") from error


def evaluation_rows(
    subject: Subject,
    *,
    data: str | None,
    rows: Rows | None,
    formatting: Formatting | None,
    listener: Listener,
) -> EvaluationRows:
    """The rows of `data` (or Python's `rows`), or else those that the run held out for validation.

    Raises DataError where there are none, with the way out.
    """
    rows = rereadable(rows)
    if data is None and rows is None:
        return _held_out(subject, listener)
    config = _reading(subject.config, data)
    if rows is None:
        require_sources(config.data)
    prepared = _prepared(subject, config, rows, formatting, listener)
    _tell(prepared, listener)
    inputs = tuple(training_files(config.data, listener)) if rows is None else (rows,)
    stored = prepared.train.select(np.unique(prepared.train.places))
    return _rows(data or "rows from Python", stored, prepared, config, inputs, formatting)


def _held_out(subject: Subject, listener: Listener) -> EvaluationRows:
    if subject.run is None:
        raise CheckpointError(
            f"{subject.opened.source.name} belongs to no run, so it has no validation rows",
            hint="name rows: --data FILE",
        )
    config = subject.config
    prepared = _prepared(subject, config, None, None, listener)
    _require_same_rows(subject.run, prepared, listener)
    if not len(prepared.validation):
        raise DataError(
            f"{subject.run.path} held no rows out for validation",
            hint="name rows that it was not trained on: --data FILE; the next run holds some out with "
            "data.test_size=0.1",
        )
    return held_out(config, prepared, listener=listener)


def held_out(
    config: Config,
    prepared: PreparedDataset,
    *,
    source: Rows | None = None,
    formatting: Formatting | None = None,
    listener: Listener,
) -> EvaluationRows:
    """The validation rows of a training on data.path, or on Python's rows (`source`)."""
    read = training_files(config.data, listener) if source is None else [source]
    inputs = (*read, *validation_files(config.data, listener))
    return _rows(HELD_OUT, prepared.validation, prepared, config, inputs, formatting)


def _rows(
    name: str,
    stored: StoredRows,
    prepared: PreparedDataset,
    config: Config,
    inputs: tuple[SourceFile | Rows, ...],
    formatting: Formatting | None,
) -> EvaluationRows:
    max_length = int(prepared.report.stats["max_length"])
    return EvaluationRows(name, stored, prepared, config, inputs, formatting, max_length)


def _reading(config: Config, data: str | None) -> Config:
    """The run's config, reading other rows, none of them held out."""
    changes: dict[str, Any] = {
        **dict.fromkeys(("split", "revision", "data_files", "subset", "field", "validation_path", "group_by")),
        "path": data,
        "test_size": 0,
        "streaming": False,
    }
    return config.model_copy(update={"data": config.data.model_copy(update=changes)})


def _prepared(
    subject: Subject, config: Config, rows: Rows | None, formatting: Formatting | None, listener: Listener
) -> PreparedDataset:
    if subject.run is not None:
        return prepare(config, source=rows, formatting=formatting, listener=listener)
    return prepare_rows(
        config,
        tokenizer=subject.opened.tokenizer,
        context_length=subject.opened.context_length,
        source=rows,
        formatting=formatting,
        listener=listener,
    )


def _require_same_rows(run: RunDirectory, prepared: PreparedDataset, listener: Listener) -> None:
    """Warns where the run's data is another now: rows that were trained on may be among those held out."""
    before = (run.read_record().get("data") or {}).get("fingerprint")
    if before is not None and before != prepared.fingerprint:
        listener.warn(
            f"{run.config} makes other rows now than the run trained on: rows held out now may have been learned"
        )


def _tell(prepared: PreparedDataset, listener: Listener) -> None:
    report = prepared.report
    for rule, count in report.rejected.items():
        listener.warn(f"{count} of {report.rows_read} rows left out: {rule}; first: {report.first(rule)}")


def learned_rows(subject: Subject, rows: EvaluationRows, listener: Listener) -> int | None:
    """How many of the rows the run was trained on, by their text; None where its data is a stream, or is gone."""
    if subject.run is None or subject.config.data.streaming:
        return None
    try:
        trained = _prepared(subject, subject.config, None, None, listener).train
    except (TruetuneError, OSError):
        return None
    known = np.unique(trained.column("key")[trained.places])
    return int(np.isin(rows.stored.column("key")[rows.stored.places], known).sum())


# --- what a row asks --------------------------------------------------------------------------------------


def _opened(example: Example) -> Example | None:
    """The example up to its last answer; None where nothing is asked."""
    match example:
        case Completion(prompt=""):
            return None
        case Conversation(messages=messages):
            ends = [place for place, turn in enumerate(messages) if turn.role == "assistant"]
            learned = [place for place in ends if messages[place].is_learned] or ends
            return replace(example, messages=messages[: learned[-1] + 1]) if learned else None
        case _:
            return example


def _prompt(example: Example) -> str:
    """What was last asked, for people."""
    match example:
        case Conversation(messages=messages):
            return next((turn.content for turn in reversed(messages) if turn.role != "assistant"), "")
        case Instruction(instruction=instruction, input=given):
            return f"{instruction}\n\n{given}" if given else instruction
        case Completion(prompt=prompt):
            return prompt


def expected_of(example: Example) -> Expected:
    """What the example's last answer is to be held against."""
    match example:
        case Conversation(messages=messages, tools=tools):
            calls = calls_of_turn(messages[-1].extra.get("tool_calls") or ())
            return Expected(without_thinking(messages[-1].content), calls, tools)
        case Instruction(output=text) | Completion(completion=text):
            return Expected(without_thinking(text))
