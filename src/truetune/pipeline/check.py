"""`truetune check` and `truetune prepare`: what becomes of every row, before it costs anything."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from truetune.config.schema import NO_MODEL, Config
from truetune.data.rules import Report, Tally
from truetune.data.sources import SourceFile
from truetune.data.store import StoredRows
from truetune.errors import BackendError, ConfigError
from truetune.lint.selection import Selection
from truetune.listener import Listener, LogListener
from truetune.pipeline.findings import form_findings
from truetune.pipeline.lint import Linted, lint_rows
from truetune.pipeline.prepare import PreparedDataset, prepare_rows
from truetune.pipeline.stages import (
    Formatting,
    Rows,
    load_data_tokenizer,
    require_sources,
    rereadable,
    training_files,
    validation_files,
)

if TYPE_CHECKING:
    from truetune.pipeline.machine import Machine
    from truetune.pipeline.score import Scores

_TOLD_ROW_BY_ROW = ("duplicate-rows", "leaked-rows", "near-leaked")
"""What the preparation counts and the linter tells of each row."""


@dataclass(frozen=True, slots=True)
class Checked:
    """What a check found: the report, what the rows are by themselves, and with a model how it reads them.

    `inputs` are the files (or rows) that were read, in the order of Linted.rows' file numbers.
    """

    report: Report
    linted: Linted
    inputs: tuple[SourceFile | Rows, ...]
    prepared: PreparedDataset | None
    scores: "Scores | None"


def check_rows(
    config: Config,
    *,
    source: Rows | None = None,
    formatting: Formatting | None = None,
    score: int | None = None,
    listener: Listener | None = None,
) -> Checked:
    """Every finding in the rows, none of them raised, by the rules of `config.check`.

    With a model, as its tokenizer and template take the rows; without one, as far as the rows alone can tell. Of up
    to `score` rows the base model's own loss is told as well: this loads its weights.
    """
    listener = listener or LogListener()
    has_model = config.model.name_or_path != NO_MODEL
    if score and not has_model:
        raise ConfigError("scoring needs a model", hint="name it: truetune check DATA --model M --score")
    if source is None:
        require_sources(config.data)
    rules = config.check
    selection = Selection.of(select=rules.select, ignore=rules.ignore, severity=rules.severity)
    lenient, source = _lenient(config), rereadable(source)
    training = training_files(config.data, listener) if source is None else []
    validation = validation_files(config.data, listener)
    selection = selection.reading([*training, *validation])
    read: list[SourceFile | Rows] = [*training] if source is None else [source]
    linted = lint_rows(lenient, read, validation, selection=selection, formatting=formatting, listener=listener)
    report, prepared = _read_report(linted), None
    if has_model:
        prepared = prepare_rows(
            lenient,
            source=source,
            formatting=formatting,
            listener=listener,
            must_be_usable=False,
            **load_data_tokenizer(config),
        )
        report = _with_tokens(prepared.report, report)
    scores = None
    if prepared and score and report.rows_kept:
        from truetune.pipeline.score import score_rows

        scores = score_rows(lenient, prepared, account=linted.account, limit=score, listener=listener)
        report = _with_scores(report, scores)
    _warn_of_idle_lines(selection, report, linted, has_model=has_model, listener=listener)
    return Checked(selection.of_report(report), linted, (*read, *validation), prepared, scores)


def _lenient(config: Config) -> Config:
    """The config by which no row ends the reading: what is wrong with it is a finding."""
    policies = {name: "drop" for name in ("invalid_rows", "overlong") if getattr(config.data, name) == "error"}
    return config.model_copy(update={"data": config.data.model_copy(update=policies)})


def _warn_of_idle_lines(
    selection: Selection, report: Report, linted: Linted, *, has_model: bool, listener: Listener
) -> None:
    """Lines beside the data that leave a finding alone which is not there."""
    late = (selection.ignoring(problem.rule, problem.where) for problem in report.problems)
    used = linted.account.tally.ignored | linted.findings.ignored | set(filter(None, late))
    for place in selection.unused(used, has_model=has_model):
        listener.warn(f"{place}: it leaves nothing alone; take the line out, or correct it")


def _with_scores(report: Report, scores: "Scores") -> Report:
    tally = Tally()
    for problem in scores.problems():
        tally.find(problem)
    return report.joined(tally, score=scores.as_json())


def _read_report(linted: Linted) -> Report:
    """What the rows alone tell."""
    account = linted.account
    first = next(iter(account.places.values()), None)
    report = account.report([*form_findings(account, first)] if first else [], **linted.stats())
    return report.joined(linted.findings)


def _with_tokens(prepared: Report, linted: Report) -> Report:
    """What the tokenizer and the template tell of the rows, with what the rows tell by themselves."""
    # Rows that cannot be read fall out in both passes, and the linter's knows which lines are left alone.
    twice = {*_TOLD_ROW_BY_ROW, *linted.rejected}
    told = [problem for problem in prepared.problems if problem.rule not in twice]
    others = [problem for problem in linted.problems if problem.rule not in {each.rule for each in told}]
    of_tokens = {rule: count for rule, count in prepared.found.items() if rule not in twice}
    return replace(
        prepared,
        problems=(*told, *others),
        found={**linted.found, **of_tokens},
        stats={**linted.stats, **prepared.stats},
    )


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
    machine: "Machine", config: Config, *, source: Rows | None, formatting: Formatting | None, listener: Listener
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
    require_embeddings(machine, prepared.train)
    tell_prepared(prepared, listener)
    return prepared


def require_embeddings(machine: "Machine", rows: StoredRows) -> None:
    """BackendError if a row has a token for which the model has no embedding."""
    size = machine.shape.vocabulary
    if max(machine.tokenizer.get_vocab().values(), default=-1) < size:
        return
    largest = max((int(part.input_ids.max(initial=-1)) for part in rows.token_arrays()), default=-1)
    if largest >= size:
        raise BackendError(
            f"{machine.source.name} has embeddings for token ids up to {size - 1}, and its tokenizer made rows "
            f"of ids up to {largest}",
            hint="use the tokenizer that the model was trained with, or a base that was resized to this one "
            "(resize_token_embeddings, then save_pretrained)",
        )


def tell_prepared(prepared: PreparedDataset, listener: Listener) -> None:
    """What became of the rows, and what is trained on."""
    if prepared.head is not None and prepared.head.share < 1:
        listener.say(
            f"rows are streamed: this is their first block, about {prepared.head.share:.2%} of all; the plan takes "
            "the others to be like these"
        )
    _tell_data(prepared.report, listener)
    _tell_split(prepared, listener)


def _tell_data(report: Report, listener: Listener) -> None:
    """A line for each kind of finding, and what the rows were taken for."""
    for form, count in report.stats["read_from"].items():
        listener.say(f"read as {form}: {count:,} rows")
    for rule, count in report.rejected.items():
        first = report.first(rule)
        remedy = f" ({first.hint})" if first.hint else ""
        listener.warn(f"{count} of {report.rows_read} rows left out: {rule}; first: {first}{remedy}")
    for problem in report.kept_problems:
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
