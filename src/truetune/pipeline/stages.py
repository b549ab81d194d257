"""A row's way from its file to its tokens, with an account of every row that falls out."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, cast

from truetune.config.schema import Config, DataConfig, SourceConfig
from truetune.data.examples import (
    Completion,
    Conversation,
    Example,
    Instruction,
    Location,
    Note,
    Record,
    Rendered,
    Tokenized,
)
from truetune.data.formats import expand_record, parse_example
from truetune.data.read import read_records
from truetune.data.render import examples_per_turn, render
from truetune.data.rules import Problem, Report, RowError, Tally
from truetune.data.sources import Source, SourceFile, find_files, require_source
from truetune.data.templates import Template, load_template
from truetune.data.tokenize import fit, tokenize
from truetune.errors import ConfigError, DataError
from truetune.listener import Listener
from truetune.model.load import read_facts
from truetune.model.source import resolve_model
from truetune.model.tokenizer import load_tokenizer

Rows = Iterable[Mapping[str, Any]]
Formatting = Callable[[Mapping[str, Any]], Any]

CHUNK = 250
_COUNTS = ("rows_read", "rows_kept", "tokens", "supervised_tokens", "longest")
_SHARED = ("split", "revision", "data_files", "subset", "field")
"""What data says for all its places, where one does not say it itself."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row at every stage of its way; `tokens` is what is trained on, within the length limit.

    `file` is the number of the source it came from.
    """

    record: Record
    example: Example
    rendered: Rendered
    tokens: Tokenized
    file: int


def load_data_template(data: DataConfig, tokenizer: Any) -> Template:
    """The template that the data settings ask for."""
    return load_template(
        tokenizer,
        template=data.template,
        thinking=data.thinking,
        train_on=data.train_on,
        adapts_roles=data.adapt_roles,
        control=data.control_tokens,
        response_marker=data.response_marker,
    )


def load_data_tokenizer(config: Config) -> dict[str, Any]:
    """The model's `tokenizer` and `context_length`, without its weights."""
    model, trust = config.model, config.model.trust_remote_code
    source = resolve_model(model.name_or_path, revision=model.revision)
    return {
        "tokenizer": load_tokenizer(source, trust_remote_code=trust),
        "context_length": read_facts(source, trust_remote_code=trust).context_length,
    }


def length_limit(data: DataConfig, context_length: int | None) -> int:
    """data.max_length, or the model's context where that is shorter."""
    return min(data.max_length, context_length or data.max_length)


def training_files(data: DataConfig, listener: Listener) -> list[SourceFile]:
    """The files to train on; hub files are fetched. Raises DataError."""
    return [file for source in sources(data) for file in _found(source, listener)]


def validation_files(data: DataConfig, listener: Listener) -> list[SourceFile]:
    """The files to validate on, if data.validation_path names any. Raises DataError."""
    return _found(Source(data.validation_path), listener) if data.validation_path else []


def require_rows(data: DataConfig, rows: object) -> None:
    """ConfigError if rows come from neither Python nor data.path; else as `require_sources`."""
    if data.path is None and rows is None:
        raise ConfigError("data.path is missing", hint="name a file, a folder or a hub id, or pass rows")
    if rows is None:
        require_sources(data)


def require_sources(data: DataConfig) -> None:
    """DataError for an entry of data.path of which it is known at once that it cannot be read."""
    for source in sources(data):
        require_source(source)


def _found(source: Source, listener: Listener) -> list[SourceFile]:
    found = find_files(source)
    for notice in found.notices:
        listener.say(notice)
    return list(found.files)


def sources(data: DataConfig) -> list[Source]:
    """Each entry of data.path, with the settings that stand for all where it has none of its own."""
    match data.path:
        case None:
            return []
        case str(path):
            entries = [SourceConfig(path=path)]
        case several:
            entries = [SourceConfig(path=entry) if isinstance(entry, str) else entry for entry in several]
    return [
        Source(entry.path, entry.weight, **{name: getattr(entry, name) or getattr(data, name) for name in _SHARED})
        for entry in entries
    ]


def rereadable(rows: Rows | None) -> Rows | None:
    """The rows, a list of them if they would end with their first use."""
    return list(rows) if rows is not None and iter(rows) is rows else rows


def shaped_records(source: str | Path | SourceFile | Rows, formatting: Formatting | None) -> Iterator[Record]:
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


def chunks(
    inputs: Sequence[SourceFile | Rows], formatting: Formatting | None = None, *, size: int = CHUNK
) -> Iterator[list[tuple[int, Record]]]:
    """The rows of all inputs, each with its input's number, in lists of at most `size`."""
    records = (
        (number, record) for number, source in enumerate(inputs) for record in shaped_records(source, formatting)
    )
    return in_chunks(records, size=size)


def in_chunks(records: Iterable[tuple[int, Record]], *, size: int = CHUNK) -> Iterator[list[tuple[int, Record]]]:
    """The rows that records hold, each with its input's number, in lists of at most `size`."""
    rows = ((number, row) for number, record in records for row in expand_record(record))
    while chunk := list(islice(rows, size)):
        yield chunk


@dataclass(slots=True)
class Account:
    """What became of rows. `first_learned` is what the first kept one learns, `places` where each input begins."""

    tally: Tally = field(default_factory=Tally)
    rows_read: int = 0
    rows_kept: int = 0
    tokens: int = 0
    supervised_tokens: int = 0
    longest: int = 0
    formats: Counter[str] = field(default_factory=Counter)
    forms: Counter[str] = field(default_factory=Counter)
    places: dict[int, Location] = field(default_factory=dict)
    first_learned: tuple[str, ...] = ()

    def add(self, later: "Account") -> None:
        """Adds the account of rows that come behind."""
        self.tally.add(later.tally)
        self.rows_read += later.rows_read
        self.rows_kept += later.rows_kept
        self.tokens += later.tokens
        self.supervised_tokens += later.supervised_tokens
        self.longest = max(self.longest, later.longest)
        self.formats.update(later.formats)
        self.forms.update(later.forms)
        self.places = {**later.places, **self.places}
        self.first_learned = self.first_learned or later.first_learned

    def keep(self, example: Example, notes: Sequence[Note], number: int, where: Location) -> None:
        """Counts a usable row."""
        self.rows_read += 1
        self.rows_kept += 1
        self.formats[format_name(example)] += 1
        self.places.setdefault(number, where)
        if notes:
            self.tally.note(notes, where)

    def as_json(self) -> dict[str, Any]:
        """The account as a document, for `from_json`."""
        counts = {name: getattr(self, name) for name in _COUNTS}
        places = {str(number): asdict(where) for number, where in self.places.items()}
        forms = {"formats": dict(self.formats), "forms": dict(self.forms)}
        return {
            "tally": self.tally.as_json(),
            "places": places,
            "learned": list(self.first_learned),
            **forms,
            **counts,
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "Account":
        """The account that as_json made this document of."""
        return cls(
            tally=Tally.from_json(document["tally"]),
            places={int(number): Location(**where) for number, where in document["places"].items()},
            first_learned=tuple(document["learned"]),
            formats=Counter(document["formats"]),
            forms=Counter(document["forms"]),
            **{name: document[name] for name in _COUNTS},
        )

    def where(self, file: int, line: int) -> Location:
        """The place of a row: the number of its input, and its line there."""
        return replace(self.places[int(file)], line=int(line))

    def report(self, findings: Iterable[Problem] = (), **stats: Any) -> Report:
        """What became of all rows, with `findings` that no single row shows, and further counts."""
        problems = (*self.tally.problems, *self.tally.noted(), *findings)
        counts = {"formats": dict(self.formats), "read_from": dict(self.forms.most_common()), **stats}
        tally = self.tally
        return Report(self.rows_read, self.rows_kept, problems, dict(tally.rejected), counts, dict(tally.found))


class RowPath:
    """Takes rows through parse, render, tokenize and fit, and gives an account of those that fall out."""

    def __init__(self, data: DataConfig, template: Template | None = None, *, max_length: int = 0) -> None:
        self.data = data
        self.max_length = max_length
        self._template = template

    def examples(
        self, chunk: Sequence[tuple[int, Record]], account: Account
    ) -> Iterator[tuple[int, Record, Example]]:
        """The rows that can be read as examples."""
        for number, record in chunk:
            try:
                example = parse_example(record, format=self.data.format, columns=self.data.columns)
            except RowError as error:
                self._reject(error, record, account)
                continue
            account.forms[example.form] += 1
            if self.data.one_example_per_turn or self.data.thinking == "empty":
                yield from ((number, record, each) for each in examples_per_turn(example))
            else:
                yield number, record, example

    def take(self, chunk: Sequence[tuple[int, Record]]) -> tuple[list[Row], Account]:
        """The usable rows of a chunk, and what became of all of them. Raises DataError where a policy is error."""
        template, account = cast(Template, self._template), Account()
        rendered = list(self._rendered(self.examples(chunk, account), template, account))
        tokens = tokenize([row[3] for row in rendered], template=template)
        found = (self._row(*row, each, account) for row, each in zip(rendered, tokens, strict=True))
        rows = [row for row in found if row is not None]
        account.first_learned = rows[0].rendered.learned() if rows else ()
        return rows, account

    def _rendered(
        self, examples: Iterable[tuple[int, Record, Example]], template: Template, account: Account
    ) -> Iterator[tuple[int, Record, Example, Rendered]]:
        for number, record, example in examples:
            try:
                yield number, record, example, render(example, template=template)
            except RowError as error:
                self._reject(error, record, account)

    def _row(
        self,
        number: int,
        record: Record,
        example: Example,
        rendered: Rendered,
        tokens: Tokenized | RowError,
        account: Account,
    ) -> Row | None:
        """The row within the limit; None, with the reason counted, for one that falls out."""
        if isinstance(tokens, RowError):
            self._reject(tokens, record, account)
            return None
        account.longest = max(account.longest, len(tokens.input_ids))
        fitting = fit(tokens, max_length=self.max_length, overlong=self.data.overlong)
        if fitting is None:
            self._reject(self._overlong(tokens), record, account)
            return None
        if example.weight != 1.0:
            fitting = replace(fitting, weight=example.weight)
        is_cut = len(fitting.input_ids) < len(tokens.input_ids)
        notes = (*rendered.notes, Note("answer-cut")) if is_cut else rendered.notes
        account.keep(example, notes, number, record.where)
        account.tokens += len(fitting.input_ids)
        account.supervised_tokens += fitting.supervised
        return Row(record, example, rendered, fitting, number)

    def _overlong(self, row: Tokenized) -> RowError:
        message = f"{len(row.input_ids)} tokens, over the limit of {self.max_length}"
        return RowError("overlong", message, hint="raise data.max_length, or set data.overlong to cut_at_turn")

    def _reject(self, error: RowError, record: Record, account: Account) -> None:
        account.rows_read += 1
        policy = self.data.overlong if error.rule == "overlong" else self.data.invalid_rows
        if policy == "error":
            problem = Problem.of(error, record.where)
            raise DataError(str(problem), hint=problem.hint)
        account.tally.reject(error, record.where)


def format_name(example: Example) -> str:
    """The guide's name of the example's format; `text` is the completion format without a prompt."""
    match example:
        case Conversation():
            return "chat"
        case Instruction():
            return "instruction"
        case Completion(prompt=""):
            return "text"
        case Completion():
            return "completion"
