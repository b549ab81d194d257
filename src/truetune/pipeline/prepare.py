"""Rows into the tokens a run trains on, with a report of what became of every row."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from truetune.config.schema import Config, DataConfig
from truetune.data.examples import Completion, Conversation, Example, Instruction, Record, Rendered, Tokenized
from truetune.data.formats import parse_example
from truetune.data.read import read_records
from truetune.data.render import render
from truetune.data.rules import Problem, Report, RowError
from truetune.data.split import split_examples
from truetune.data.templates import Template, load_template
from truetune.data.tokenize import fit, tokenize
from truetune.errors import DataError
from truetune.listener import Listener, LogListener

Source = str | Path | Iterable[Mapping[str, Any]]
Formatting = Callable[[Mapping[str, Any]], Any]

_CHUNK = 1_000
_NOTES = {
    "number-as-text": "{n} rows hold numbers or booleans in text fields; they are read as their JSON text",
    "dropped-by-template": "{n} rows hold answer text that the chat template leaves out (thinking, as a rule)",
}


@dataclass(frozen=True, slots=True)
class Row:
    """One row at every stage of its way; `tokens` is what is trained on, within the length limit."""

    record: Record
    example: Example
    rendered: Rendered
    tokens: Tokenized


@dataclass(frozen=True, slots=True)
class PreparedDataset:
    """What a run trains on. `formats` counts the kept rows by format, `fingerprint` digests all tokens and labels."""

    train: tuple[Tokenized, ...]
    validation: tuple[Tokenized, ...]
    report: Report
    template: Template
    formats: Mapping[str, int]
    fingerprint: str
    first: Row


def prepare_rows(
    config: Config,
    *,
    tokenizer: Any,
    context_length: int | None = None,
    source: Source | None = None,
    formatting: Formatting | None = None,
    listener: Listener | None = None,
) -> PreparedDataset:
    """Reads, renders, tokenizes and splits the rows of `source` (default: data.path), every unusable row counted.

    Raises DataError where no row is usable, or where `data.invalid_rows` or `data.overlong` is error and one is not.
    """
    listener = listener or LogListener()
    data = config.data
    template = load_template(tokenizer, template=data.template, train_on=data.train_on)
    max_length = length_limit(data, context_length)
    reader = _Reader(data, template, max_length, formatting, listener)
    kept = list(reader.read(data.path or "" if source is None else source, stage="preparing rows"))
    _refuse_if_strict(data, reader)
    if not kept:
        raise _nothing_usable(reader, max_length)
    held_out, validation_reader = _validation_rows(config, reader, kept)
    train = [row for row, is_held in zip(kept, held_out, strict=True) if not is_held]
    validation = [row for row, is_held in zip(kept, held_out, strict=True) if is_held]
    if validation_reader:
        validation = list(validation_reader.read(data.validation_path or "", stage="preparing validation rows"))
        if not validation:
            raise _nothing_usable(validation_reader, max_length)
    formats = Counter(_format_name(row.example) for row in kept)
    return PreparedDataset(
        train=tuple(row.tokens for row in train),
        validation=tuple(row.tokens for row in validation),
        report=Report(
            reader.rows_read,
            len(kept),
            tuple(reader.problems),
            _stats(train, validation, reader, formats, max_length),
        ),
        template=template,
        formats=formats,
        fingerprint=_fingerprint([*train, *validation]),
        first=train[0],
    )


def trace_rows(
    config: Config,
    *,
    tokenizer: Any,
    context_length: int | None = None,
    source: Source | None = None,
    formatting: Formatting | None = None,
    limit: int | None = None,
) -> tuple[list[Row], Report]:
    """The first `limit` usable rows at every stage, for `inspect`, and the report of what was read for them."""
    data = config.data
    template = load_template(tokenizer, template=data.template, train_on=data.train_on)
    max_length = length_limit(data, context_length)
    reader = _Reader(data, template, max_length, formatting, LogListener())
    kept = list(islice(reader.read(data.path or "" if source is None else source, stage="reading rows"), limit))
    return kept, Report(reader.rows_read, len(kept), tuple(reader.problems))


def length_limit(data: DataConfig, context_length: int | None) -> int:
    """data.max_length, or the model's context where that is shorter."""
    return min(data.max_length, context_length or data.max_length)


def shaped_records(source: Source, formatting: Formatting | None) -> Iterator[Record]:
    """The rows of `source` after the user's own function: text, prompt + completion, or messages."""
    for record in read_records(source):
        yield record if formatting is None else Record(_shape(formatting(record.fields), record), record.where)


def _shape(formatted: Any, record: Record) -> Mapping[str, Any]:
    match formatted:
        case str(text):
            return {"text": text}
        case Mapping() as fields:
            return fields
        case list(messages):
            return {"messages": messages}
        case other:
            raise DataError(
                f"{record.where}: the formatting function returned {type(other).__name__}",
                hint="return a text, a mapping with prompt and completion (or messages), or a list of messages",
            )


class _Reader:
    """Takes rows through parse, render, tokenize and fit, and keeps count of those that fall out."""

    def __init__(
        self, data: DataConfig, template: Template, max_length: int, formatting: Formatting | None, listener: Listener
    ) -> None:
        self.data = data
        self.template = template
        self.max_length = max_length
        self.formatting = formatting
        self.listener = listener
        self.problems: list[Problem] = []
        self.rows_read = 0
        self.longest = 0
        self.notes: Counter[str] = Counter()

    def read(self, source: Source, *, stage: str) -> Iterator[Row]:
        """The usable rows, in order."""
        records = shaped_records(source, self.formatting)
        while chunk := list(islice(records, _CHUNK)):
            self.rows_read += len(chunk)
            yield from self._tokenized([row for record in chunk if (row := self._rendered(record))])
            self.listener.progress(stage, self.rows_read, None)
        self.listener.progress(stage, self.rows_read, self.rows_read)

    def _rendered(self, record: Record) -> tuple[Record, Example, Rendered] | None:
        try:
            example = parse_example(record, format=self.data.format, columns=self.data.columns)
            return record, example, render(example, template=self.template)
        except RowError as error:
            self._reject(error, record)
            return None

    def _tokenized(self, rows: Sequence[tuple[Record, Example, Rendered]]) -> Iterator[Row]:
        tokens = tokenize([rendered for _, _, rendered in rows], tokenizer=self.template.tokenizer)
        for (record, example, rendered), row in zip(rows, tokens, strict=True):
            if isinstance(row, RowError):
                self._reject(row, record)
                continue
            self.longest = max(self.longest, len(row.input_ids))
            fitting = fit(row, max_length=self.max_length, overlong=self.data.overlong)
            if fitting is None:
                self._reject(self._overlong(row), record)
                continue
            self.notes.update(set(rendered.notes))
            yield Row(record, example, rendered, fitting)

    def _overlong(self, row: Tokenized) -> RowError:
        message = f"{len(row.input_ids)} tokens, over the limit of {self.max_length}"
        return RowError("overlong", message, hint="raise data.max_length, or set data.overlong to cut_at_turn")

    def _reject(self, error: RowError, record: Record) -> None:
        problem = Problem.of(error, record.where)
        policy = self.data.overlong if error.code == "overlong" else self.data.invalid_rows
        if policy == "error":
            raise DataError(str(problem), hint=problem.hint)
        self.problems.append(problem)


def _validation_rows(config: Config, reader: _Reader, kept: Sequence[Row]) -> tuple[list[bool], _Reader | None]:
    """Which kept rows are held out, or the reader of the validation file where there is one."""
    data = config.data
    if data.validation_path:
        separate = _Reader(data, reader.template, reader.max_length, reader.formatting, reader.listener)
        return [False] * len(kept), separate
    wants_none = config.evaluation.eval_strategy == "no" and data.test_size is None
    size = 0 if wants_none else data.test_size
    return split_examples([row.rendered.text for row in kept], test_size=size, seed=config.training.seed), None


def _refuse_if_strict(data: DataConfig, reader: "_Reader") -> None:
    """Strict data loses nothing: no row, no field, no part of an answer."""
    if not data.strict:
        return
    if problems := reader.problems:
        raise DataError(f"{len(problems)} rows cannot be used, the first: {problems[0]}", hint=problems[0].hint)
    if reader.notes:
        notes = "; ".join(_note(*each) for each in sorted(reader.notes.items()))
        raise DataError(f"data.strict: {notes}", hint="mend the rows, or set data.strict to false")


def _nothing_usable(reader: _Reader, max_length: int) -> DataError:
    """0 usable rows: the count and the first place of each reason."""
    if not reader.problems:
        return DataError("0 usable rows: the data holds no rows", hint="give a file with one object a line")
    report = Report(reader.rows_read, 0, tuple(reader.problems))
    reasons = "; ".join(f"{count} × {code}, first {report.first(code)}" for code, count in report.counts().items())
    total = f"{reader.rows_read} of {reader.rows_read} rejected with max_length {max_length}"
    return DataError(
        f"0 usable rows, so no trainable (supervised) token: {total}: {reasons}",
        hint=reader.problems[0].hint,
    )


def _stats(
    train: Sequence[Row], validation: Sequence[Row], reader: _Reader, formats: Mapping[str, int], max_length: int
) -> dict[str, Any]:
    rows = [*train, *validation]
    return {
        "formats": dict(formats),
        "train_rows": len(train),
        "validation_rows": len(validation),
        "tokens": sum(len(row.tokens.input_ids) for row in rows),
        "supervised_tokens": sum(row.tokens.supervised for row in rows),
        "max_length": max_length,
        "longest_row_tokens": reader.longest,
        "train_on": reader.data.train_on,
        "terminator": reader.template.terminator,
        "bos": reader.template.bos,
        "notes": [*_format_notes(reader.template, formats), *(_note(*each) for each in sorted(reader.notes.items()))],
    }


def _format_notes(template: Template, formats: Mapping[str, int]) -> list[str]:
    if formats.get("completion") and template.chat and not template.completion_as_chat:
        pairs = f"{formats['completion']} rows of prompt + completion are joined as plain text"
        return [f"{pairs}; data.template=model sends them through the model's chat template instead"]
    return []


def _note(code: str, count: int) -> str:
    if code.startswith("not-rendered:"):
        return f'the field "{code.partition(":")[2]}" is filled in {count} rows and not used by the prompt'
    return _NOTES[code].format(n=count) if code in _NOTES else f"{count} rows: {code}"


def _format_name(example: Example) -> str:
    match example:
        case Conversation():
            return "chat"
        case Instruction():
            return "instruction"
        case Completion(prompt=""):
            return "text"
        case Completion():
            return "completion"


def _fingerprint(rows: Sequence[Row]) -> str:
    digest = hashlib.sha256()
    for row in rows:
        digest.update(repr((row.tokens.input_ids, row.tokens.labels)).encode())
    return digest.hexdigest()
