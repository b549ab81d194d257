"""`truetune check --html`: the findings with their rows, the figures and some samples, as one page for a team."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from truetune.config.schema import NO_MODEL, Config
from truetune.data.catalog import RULES, SEVERITIES
from truetune.data.examples import IGNORED, Conversation, Example, Location
from truetune.data.near import Places
from truetune.data.rules import Problem, Report
from truetune.data.sources import SourceFile
from truetune.data.store import StoredRows, evenly
from truetune.files import named_refusals, write_text
from truetune.lint.explain import page as rule_page
from truetune.lint.parts import Part, parts_of
from truetune.lint.private import without_secrets
from truetune.pipeline.check import Checked
from truetune.pipeline.inspect import pieces_of
from truetune.pipeline.lint import Linted
from truetune.pipeline.prepare import PreparedDataset
from truetune.pipeline.score import RowScore
from truetune.pipeline.stages import Account, Formatting, RowPath, Rows, chunks
from truetune.report.data_page import (
    Cluster,
    DataPage,
    Finding,
    Lengths,
    RuleFindings,
    Shares,
    ShownRow,
    Text,
    render_data_page,
)
from truetune.report.stretches import Mark, Stretch, Stretches, cut, cut_all, differing, with_evidence

_FINDINGS, _CLUSTERS, _ROWS_A_CLUSTER, _SAMPLES, _SCORED = 10, 20, 4, 5, 10
_PART, _SAMPLE_PART = 600, 3_000
"""Characters of a text that are shown."""

_Key = tuple[int, int]
"""A row by the number of its input and its line."""


def write_data_report(checked: Checked, config: Config, *, path: Path, formatting: Formatting | None = None) -> None:
    """Writes the page. Reads the inputs once more, for the rows that it shows. DataError if it cannot be written."""
    html = render_data_page(data_page(checked, config, formatting=formatting))
    with named_refusals(path):
        write_text(path, html)


def data_page(checked: Checked, config: Config, *, formatting: Formatting | None = None) -> DataPage:
    """What the page shows."""
    report, linted, prepared = checked.report, checked.linted, checked.prepared
    groups, samples = _near_groups(linted), _spread(checked)
    scored = checked.scores.scored if checked.scores else ()
    read = _read(checked, config, formatting, groups=groups, samples=samples)
    passes = not report.fails(config.check.fail_on)
    return DataPage(
        files=tuple(dict.fromkeys(map(_name, checked.inputs))),
        rows_read=report.rows_read,
        rows_kept=report.rows_kept,
        date=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        version=metadata.version("truetune"),
        model=None if config.model.name_or_path == NO_MODEL else config.model.name_or_path,
        passes=passes,
        verdict=_verdict(report, passes=passes, fail_on=config.check.fail_on),
        findings=tuple(_findings(report, read)),
        guidelines=linted.guidelines,
        lengths=tuple(_lengths(linted, prepared)),
        shares=tuple(_shares(report)),
        clusters=tuple(_cluster(rows, linted, read) for rows in groups[:_CLUSTERS]),
        all_clusters=len(groups),
        samples=tuple(_samples(samples, checked, read)),
        surprising=tuple(_scored(score, read) for score in scored[:_SCORED]),
        known=tuple(_scored(score, read) for score in scored[: -_SCORED - 1 : -1]),
    )


def _name(source: SourceFile | Rows) -> str:
    return source.name if isinstance(source, SourceFile) else "data"


def _verdict(report: Report, *, passes: bool, fail_on: str) -> str:
    if not report.rows_kept:
        return "no row can be used"
    worst = _worst(report)
    counts = [(list(worst.values()).count(severity), severity) for severity in SEVERITIES]
    told = ", ".join(f"{count} {severity}{'s' if count > 1 else ''}" for count, severity in counts if count)
    outcome = "passes" if passes else "fails"
    return f"{outcome} (fail_on: {fail_on}); rules that found something: {told or 'none'}"


def _worst(report: Report) -> dict[str, Any]:
    """Each rule that found something, with its worst severity, the worst first."""
    found: dict[str, Any] = {}
    for severity in SEVERITIES:
        at_hand = {problem.rule for problem in report.problems if problem.severity == severity}
        for rule in sorted(at_hand, key=lambda name: RULES[name].code):
            found.setdefault(rule, severity)
    return found


# --- the rows that are shown ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Read:
    """The texts of the rows that are shown, of each record those of all rows made of it, and the inputs' names."""

    rows: Mapping[_Key, Sequence[tuple[Part, ...]]]
    numbers: Mapping[str, int]
    raw: Mapping[_Key, Mapping[str, Any]]

    def at(self, where: Location, nth: int = 0) -> tuple[Part, ...] | None:
        key = (self.numbers.get(where.path, 0), where.line)
        found = self.rows.get(key, ())
        return found[min(nth, len(found) - 1)] if found else None

    def fields(self, where: Location) -> Mapping[str, Any]:
        """A row that could not be read, as its file has it."""
        return self.raw.get((self.numbers.get(where.path, 0), where.line), {})


def _read(
    checked: Checked, config: Config, formatting: Formatting | None, *, groups: Sequence[Places], samples: Places
) -> _Read:
    """One more pass over the inputs, which holds the wanted rows only."""
    numbers: dict[str, int] = {}
    for number, source in enumerate(checked.inputs):
        numbers.setdefault(_name(source), number)
    listed = [where for found in _listed(checked.report).values() for each in found for where in _places(each)]
    if checked.scores:
        listed += [score.where for score in (*checked.scores.scored[:_SCORED], *checked.scores.scored[-_SCORED:])]
    wanted = {(numbers.get(where.path, 0), where.line) for where in listed}
    rows = checked.linted.rows
    if rows is not None:
        ordinals = [
            *samples.tolist(),
            *(row for group in groups[:_CLUSTERS] for row in group[:_ROWS_A_CLUSTER].tolist()),
        ]
        wanted |= {(int(rows.file[row]), int(rows.line[row])) for row in ordinals}
    found: dict[_Key, list[tuple[Part, ...]]] = {}
    raw: dict[_Key, Mapping[str, Any]] = {}
    path = RowPath(config.data.model_copy(update={"invalid_rows": "drop"}))
    for chunk in chunks(checked.inputs, formatting):
        held = [(number, record) for number, record in chunk if (number, record.where.line) in wanted]
        raw.update({(number, record.where.line): record.fields for number, record in held})
        for number, record, example in path.examples(held, Account()):
            found.setdefault((number, record.where.line), []).append(_texts_of(example))
    return _Read(found, numbers, raw)


def _listed(report: Report) -> dict[str, list[Problem]]:
    """Of each rule, the worst first, the findings that are shown."""
    return {
        rule: [problem for problem in report.problems if problem.rule == rule][:_FINDINGS] for rule in _worst(report)
    }


def _places(problem: Problem) -> tuple[Location, ...]:
    return (problem.where, *problem.related[:1])


def _texts_of(example: Example) -> tuple[Part, ...]:
    """The texts of the example with what only templates read beside them: tools, calls, thinking."""
    parts = [replace(part, text=without_secrets(part.text)) for part in parts_of(example)]
    if not isinstance(example, Conversation):
        return tuple(parts)
    extra = [
        Part("answer" if message.role == "assistant" else "prompt", f"messages[{place}].{name}", _as_text(value))
        for place, message in enumerate(example.messages)
        for name, value in message.extra.items()
    ]
    tools = [Part("system", "tools", _as_text(example.tools))] if example.tools else []
    return (*tools, *sorted([*parts, *extra], key=lambda part: int(re.findall(r"\d+", part.field)[0])))


def _as_text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str, indent=1)
    return without_secrets(text)


# --- findings ---------------------------------------------------------------------------------------------


def _findings(report: Report, read: _Read) -> Iterator[RuleFindings]:
    severities = _worst(report)
    for name, problems in _listed(report).items():
        shown = tuple(_finding(problem, read) for problem in problems)
        rule = RULES[name]
        yield RuleFindings(
            rule, severities[name], report.rows_of(name), problems[0].hint, shown, explanation=rule_page(rule)
        )


def _finding(problem: Problem, read: _Read) -> Finding:
    shown = [_shown_row(where, problem, read) for where in _places(problem)]
    if len(shown) > 1 and shown[0].texts == shown[1].texts:
        del shown[1]
    return Finding(str(problem.where), problem.field, problem.message, tuple(shown))


def _shown_row(where: Location, problem: Problem, read: _Read) -> ShownRow:
    parts, is_own = read.at(where), where == problem.where
    if parts is None:
        raw = read.fields(where)
        parts, kind = tuple(Part("text", name, _as_text(value)) for name, value in raw.items()), "field"
        return ShownRow(str(where), tuple(_text(part, problem, kind=kind, is_own=is_own) for part in parts))
    return ShownRow(str(where), tuple(_text(part, problem, kind=part.kind, is_own=is_own) for part in parts))


def _text(part: Part, problem: Problem, *, kind: str, is_own: bool) -> Text:
    place = problem.field or ""
    is_place = (
        is_own and bool(place) and (part.field == place or place.startswith((f"{part.field}[", f"{part.field}.")))
    )
    stretches = with_evidence(part.text, problem.message, most=_PART) if is_place else cut(part.text, most=_PART)
    return Text(kind, part.field, stretches, is_place)


# --- figures ----------------------------------------------------------------------------------------------


def _lengths(linted: Linted, prepared: PreparedDataset | None) -> Iterator[Lengths]:
    if linted.rows is not None:
        yield Lengths("prompt, characters", linted.rows.prompt_length)
        yield Lengths("answer, characters", linted.rows.answer_length)
    if prepared is not None and (stored := _all_rows(prepared)):
        yield Lengths("tokens a row", stored.lengths, limit=prepared.report.stats["max_length"])
        yield Lengths("learned tokens a row", _learned(stored))


def _all_rows(prepared: PreparedDataset) -> StoredRows:
    """All rows that fit, once each, however often they are trained on."""
    return prepared.train.select(np.arange(len(prepared.train.column("line"))))


def _learned(stored: StoredRows) -> Places:
    counts = [
        np.add.reduceat(arrays.labels != IGNORED, arrays.offsets[:-1], dtype=np.int64)
        for arrays in stored.token_arrays()
    ]
    return np.concatenate(counts)


def _shares(report: Report) -> Iterator[Shares]:
    stats = report.stats
    named = {"format": "formats", "read as": "read_from", "language": "languages"}
    for name, key in named.items():
        if counts := stats.get(key):
            yield Shares(name, tuple(sorted(counts.items(), key=lambda part: -part[1])))
    if report.rows_rejected:
        yield Shares("rows", (("kept", report.rows_kept), ("left out", report.rows_rejected)))
    if stats.get("tokens"):
        learned = stats["supervised_tokens"]
        yield Shares("tokens", (("learned", learned), ("read only", stats["tokens"] - learned)))
        yield Shares("split", (("train", stats["train_rows"]), ("validation", stats["validation_rows"])))


# --- near duplicates and samples --------------------------------------------------------------------------


def _near_groups(linted: Linted) -> list[Places]:
    """Rows that are linked as near duplicates, the largest group first, in each those that differ first."""
    if linted.rows is None or linted.pairs is None:
        return []
    roots = linted.pairs.clusters(len(linted.rows))
    order = np.argsort(roots, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(roots[order])) + 1)
    several = sorted((group for group in groups if len(group) > 1), key=lambda group: -len(group))
    return [_unlike_first(group, linted.rows.key[group]) for group in several]


def _unlike_first(group: Places, keys: Any) -> Places:
    is_again = np.ones(len(group), np.bool_)
    is_again[np.unique(keys, return_index=True)[1]] = False
    return group[np.argsort(is_again, kind="stable")]


def _cluster(group: Places, linted: Linted, read: _Read) -> Cluster:
    assert linted.rows is not None
    texts = len(np.unique(linted.rows.key[group]))
    # Of rows that are all the same, two show it.
    shown = [(row, _row_text(int(row), linted, read)) for row in group[: min(max(texts, 2), _ROWS_A_CLUSTER)]]
    first = shown[0][1]
    whole = _whole(str(_where(int(group[0]), linted)), cut(first, most=2 * _PART))
    others = [_beside(str(_where(int(row), linted)), text, first) for row, text in shown[1:]]
    return Cluster(len(group), texts, (whole, *others))


def _beside(where: str, text: str, first: str) -> ShownRow:
    return _whole(where, differing(text, first), "the same as the first" if text == first else "")


def _row_text(row: int, linted: Linted, read: _Read) -> str:
    parts = read.at(_where(row, linted), _nth(row, linted)) or ()
    return "\n\n".join(part.text for part in parts)


def _where(row: int, linted: Linted) -> Location:
    assert linted.rows is not None
    return linted.account.where(linted.rows.file[row], linted.rows.line[row])


def _nth(row: int, linted: Linted) -> int:
    """Which of the rows that were made of one record this is."""
    rows = linted.rows
    assert rows is not None
    before = row
    while before and (rows.file[before - 1], rows.line[before - 1]) == (rows.file[row], rows.line[row]):
        before -= 1
    return row - before


def _whole(where: str, stretches: Stretches, about: str = "") -> ShownRow:
    return ShownRow(where, (Text("", "", stretches),), about)


def _spread(checked: Checked) -> Places:
    """Rows from the first to the last in even steps: of the prepared ones with a model, else of those read."""
    prepared, rows = checked.prepared, checked.linted.rows
    count = len(_all_rows(prepared)) if prepared else len(rows) if rows is not None else 0
    return evenly(count, _SAMPLES)


def _samples(samples: Places, checked: Checked, read: _Read) -> Iterator[ShownRow]:
    if checked.prepared is not None:
        yield from map(partial(_tokenized_row, checked.prepared, checked.linted), samples.tolist())
        return
    for row in samples.tolist():
        where = _where(row, checked.linted)
        parts = read.at(where, _nth(row, checked.linted)) or ()
        yield ShownRow(str(where), tuple(_sample_text(part) for part in parts))


def _scored(score: RowScore, read: _Read) -> ShownRow:
    """A row and how surprising its answers are to the model."""
    about = f"{score.loss:.2f} nats a learned token, {score.learned_tokens:,} of them"
    return ShownRow(str(score.where), tuple(map(_sample_text, read.at(score.where) or ())), about)


def _sample_text(part: Part) -> Text:
    mark: Mark = "learned" if part.is_answer else ""
    return Text(part.kind, part.field, cut(part.text, most=_SAMPLE_PART, mark=mark))


def _tokenized_row(prepared: PreparedDataset, linted: Linted, place: int) -> ShownRow:
    """A row as the model reads it, with what it learns of it."""
    stored = _all_rows(prepared)
    tokens = stored[place]
    where = linted.account.where(stored.column("file")[place], stored.column("line")[place])
    about = f"{len(tokens.input_ids):,} tokens, {tokens.supervised:,} learned"
    return _whole(
        str(where),
        cut_all(_learned_stretches(pieces_of(tokens, prepared.template.tokenizer)), most=_SAMPLE_PART),
        about,
    )


def _learned_stretches(pieces: Iterable[tuple[str, bool]]) -> list[Stretch]:
    return [Stretch(without_secrets(text), "learned" if is_learned else "") for text, is_learned in pieces]
