"""`truetune check` and `truetune prepare`: what becomes of every row, before it costs anything."""

from dataclasses import replace

from truetune.config.schema import NO_MODEL, Config
from truetune.data.examples import Location
from truetune.data.rules import Report
from truetune.data.split import row_key
from truetune.listener import Listener, LogListener
from truetune.pipeline.findings import form_findings, repeated_rows
from truetune.pipeline.machine import Machine
from truetune.pipeline.prepare import PreparedDataset, prepare_rows
from truetune.pipeline.stages import (
    Account,
    Formatting,
    RowPath,
    Rows,
    chunks,
    load_data_tokenizer,
    require_sources,
    training_files,
    validation_files,
)


def check_rows(
    config: Config,
    *,
    source: Rows | None = None,
    formatting: Formatting | None = None,
    listener: Listener | None = None,
) -> Report:
    """Every finding in the rows, none of them raised.

    With a model, as its tokenizer and template take the rows; without one, as far as the rows alone can tell.
    """
    listener = listener or LogListener()
    if source is None:
        require_sources(config.data)
    policies = {name: "drop" for name in ("invalid_rows", "overlong") if getattr(config.data, name) == "error"}
    lenient = config.model_copy(update={"data": config.data.model_copy(update=policies)})
    if config.model.name_or_path == NO_MODEL:
        return _read_only(lenient, source, formatting, listener)
    loaded = load_data_tokenizer(config)
    return prepare_rows(
        lenient, source=source, formatting=formatting, listener=listener, must_be_usable=False, **loaded
    ).report


def prepare(
    config: Config,
    *,
    source: Rows | None = None,
    formatting: Formatting | None = None,
    listener: Listener | None = None,
) -> PreparedDataset:
    """The rows as training will read them, kept on disk for it. Loads the tokenizer, never the weights."""
    if source is None:
        require_sources(config.data)
    return prepare_rows(
        config, source=source, formatting=formatting, listener=listener, **load_data_tokenizer(config)
    )


def prepare_for(
    machine: Machine, config: Config, *, source: Rows | None, formatting: Formatting | None, listener: Listener
) -> PreparedDataset:
    """The rows that this machine will train on; what became of them is told."""
    prepared = prepare_rows(
        config,
        tokenizer=machine.tokenizer,
        context_length=machine.facts.context_length,
        source=source,
        formatting=formatting,
        listener=listener,
    )
    tell_prepared(prepared, listener)
    return prepared


def tell_prepared(prepared: PreparedDataset, listener: Listener) -> None:
    """What became of the rows, and what is trained on."""
    _tell_data(prepared.report, listener)
    _tell_split(prepared, listener)


def _tell_data(report: Report, listener: Listener) -> None:
    """A line for each kind of finding, and what the rows were taken for."""
    for form, count in report.stats["read_from"].items():
        listener.say(f"read as {form}: {count:,} rows")
    for code, count in report.rejected.items():
        listener.warn(f"{count} of {report.rows_read} rows left out: {code}; first: {report.first(code)}")
    for problem in report.warnings:
        tell = listener.warn if problem.severity == "warning" else listener.say
        tell(f"{problem.message}; first: {problem.where}")


def _tell_split(prepared: PreparedDataset, listener: Listener) -> None:
    """How many rows and tokens are trained on, and what the first row learns."""
    report, stats = prepared.report, prepared.report.stats
    weighed = " by their weights" if stats["train_rows"] + stats["validation_rows"] != report.rows_kept else ""
    split = f"{stats['train_rows']} to train{weighed}, {stats['validation_rows']} to validate"
    listener.say(
        f"{report.rows_kept} of {report.rows_read} rows kept ({split}); {stats['tokens']:,} tokens, "
        f"{stats['supervised_tokens']:,} learned; longest row {stats['longest_row_tokens']} tokens, "
        f"limit {stats['max_length']}"
    )
    closed = f"; answers end with {stats['terminator']!r}" if stats["terminator"] else ""
    learned = " | ".join(map(repr, prepared.first_learned))
    listener.say(f"loss on: {stats['train_on']}{closed}; first row learns: {learned}")


def _read_only(config: Config, source: Rows | None, formatting: Formatting | None, listener: Listener) -> Report:
    """What the rows alone tell: whether they can be read, as what, and how many are equal."""
    path, account = RowPath(config.data), Account()
    training = training_files(config.data, listener) if source is None else [source]
    inputs = [*training, *validation_files(config.data, listener)]
    keys: set[int] = set()
    repeats: list[Location] = []
    first: Location | None = None
    for chunk in chunks(inputs, formatting):
        for number, record, example in path.examples(chunk, account):
            first = first or record.where
            account.keep(example, example.notes, number, record.where)
            key = row_key(repr(replace(example, where=first, notes=(), form="")))
            if key in keys:
                repeats.append(record.where)
            keys.add(key)
        listener.progress("reading rows", account.rows_read, None)
    listener.progress("reading rows", account.rows_read, account.rows_read)
    findings = [*form_findings(account, first)] if first else []
    if repeats:
        findings.append(repeated_rows(len(repeats), repeats[0]))
    return account.report(findings)
