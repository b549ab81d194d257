"""The rules on rows as they stand and on all of them together, in one pass that memory hardly grows with."""

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np

from truetune.config.schema import Config
from truetune.data.examples import Conversation, Example, Location, Record
from truetune.data.near import NearIndex, Pairs, Shingles
from truetune.data.rules import Problem, Tally
from truetune.data.sources import SourceFile
from truetune.lint.guidelines import Guideline, guidelines, out_of_range
from truetune.lint.parts import Part, parts_of
from truetune.lint.selection import Selection
from truetune.lint.sketch import SketchedRow, Sketches, near_sketched, sketched
from truetune.lint.texts import TEXT_RULES
from truetune.lint.turns import TURN_RULES, turn_findings
from truetune.lint.whole import (
    contradictions,
    duplicates,
    leaks,
    near_duplicates,
    same_answers,
    strange_languages,
    strange_lengths,
    too_few,
)
from truetune.listener import Listener
from truetune.pipeline.stages import Account, Formatting, RowPath, Rows
from truetune.pipeline.workers import by_chunks

_NEAR_RULES = ("near-duplicates", "near-leaked", "diversity")
_LANGUAGE_RULES = ("mixed-languages", "consistency")


@dataclass(frozen=True, slots=True)
class Linted:
    """What the pass found: an account of how rows were read, the findings, and what the report shows of the set."""

    account: Account
    findings: Tally
    rows: Sketches | None
    pairs: Pairs | None
    guidelines: tuple[Guideline, ...]

    def stats(self) -> dict[str, Any]:
        """What is said of the set beside its findings, ready for JSON."""
        if self.rows is None:
            return {"guidelines": []}
        languages, counts = np.unique(self.rows.language, return_counts=True)
        return {
            "guidelines": [each.as_json() for each in self.guidelines],
            "languages": {str(name) or "unknown": int(n) for name, n in zip(languages, counts, strict=True)},
            "prompt_characters": _quantiles(self.rows.prompt_length),
            "answer_characters": _quantiles(self.rows.answer_length),
        }


def lint_rows(
    config: Config,
    training: Sequence[SourceFile | Rows],
    validation: Sequence[SourceFile],
    *,
    selection: Selection,
    formatting: Formatting | None,
    listener: Listener,
) -> Linted:
    """Holds the rows against the rules of `selection` that need no tokenizer."""
    row_pass = _RowPass(RowPath(config.data), selection, len(training))
    account, findings, sketches, flagged = Account(), Tally(selection.ignoring), [], 0
    stage, inputs = "checking rows", [*training, *validation]
    with closing(NearIndex()) as near:
        for chunk in by_chunks(row_pass.run, inputs, formatting=formatting, num_proc=config.data.num_proc):
            account.add(chunk.account)
            findings.add(chunk.findings)
            sketches.append(chunk.sketches)
            flagged += chunk.flagged
            if chunk.near:
                near.add(chunk.near)
            listener.progress(stage, account.rows_read, None)
        listener.progress(stage, account.rows_read, account.rows_read)
        pairs = near.pairs()
    if not account.rows_kept:
        return Linted(account, findings, None, None, ())
    rows = Sketches.joined(sketches)
    whole = _SetPass(rows, pairs, account, selection, len(training))
    return Linted(account, findings, rows, pairs, whole.run(findings, flagged=flagged))


@dataclass(frozen=True, slots=True)
class _Chunk:
    account: Account
    findings: Tally
    sketches: Sketches
    near: Shingles | None
    flagged: int


@dataclass(frozen=True, slots=True)
class _RowPass:
    """Reads a chunk of rows, holds each against the rules of one row, and sketches it for those of the set."""

    path: RowPath
    selection: Selection
    training: int

    def run(self, chunk: Sequence[tuple[int, Record]]) -> _Chunk:
        account, findings = Account(Tally(self.selection.ignoring)), Tally(self.selection.ignoring)
        rows, flagged = [], 0
        for number, record, example in self.path.examples(chunk, account):
            parts = parts_of(example)
            account.keep(example, example.notes, number, record.where)
            rows.append(SketchedRow(example, parts, number, record.where.line))
            is_flagged = self._hold(example, parts, record.where, findings)
            flagged += is_flagged and number < self.training
        near = near_sketched([row.parts for row in rows]) if rows and self._wants(_NEAR_RULES) else None
        sketches = sketched(rows, with_languages=self._wants(_LANGUAGE_RULES))
        return _Chunk(account, findings, sketches, near, flagged)

    def _wants(self, rules: Sequence[str]) -> bool:
        return any(map(self.selection.holds, rules))

    def _hold(self, example: Example, parts: tuple[Part, ...], where: Location, findings: Tally) -> bool:
        """Adds the row's findings; True if one is more than a note."""
        told = [problem for problem in self._problems(example, parts, where) if findings.find(problem)]
        return any(self.selection.severities[problem.rule] != "note" for problem in told)

    def _problems(self, example: Example, parts: tuple[Part, ...], where: Location) -> Iterator[Problem]:
        for rule, look in TEXT_RULES.items():
            if self.selection.holds(rule) and (found := next(look(parts), None)):
                part, message = found
                yield Problem.found(rule, message, where, field=part.field)
        if isinstance(example, Conversation) and self._wants(TURN_RULES):
            seen = set()
            for rule, place, message in turn_findings(example):
                if rule not in seen and self.selection.holds(rule):
                    seen.add(rule)
                    yield Problem.found(rule, message, where, field=place)


class _SetPass:
    """Holds the sketches of all rows against the rules of the set."""

    def __init__(self, rows: Sketches, pairs: Pairs, account: Account, selection: Selection, training: int) -> None:
        self.rows = rows
        self.pairs = pairs
        self._account = account
        self._selection = selection
        self._is_held_out = rows.file >= training

    def where(self, row: int) -> Location:
        return self._account.where(self.rows.file[row], self.rows.line[row])

    def run(self, findings: Tally, *, flagged: int) -> tuple[Guideline, ...]:
        """Adds what the set shows; returns the guidelines' figures."""
        for problem in filter(self._is_held, self._found()):
            findings.find(problem)
        trained = self.rows.where(~self._is_held_out)
        measured = guidelines(trained, clusters=self._clusters(), flagged=flagged, forms=self._account.formats)
        figures = tuple(each for each in measured if self._is_measured(each.name))
        for problem in out_of_range(figures, self.where(0)):
            findings.find(problem)
        return figures

    def _is_held(self, problem: Problem) -> bool:
        return self._selection.holds(problem.rule)

    def _found(self) -> Iterator[Problem]:
        rows, pairs, where = self.rows, self.pairs, self.where
        yield from duplicates(rows, where, is_held_out=self._is_held_out)
        yield from near_duplicates(rows, pairs, where, is_held_out=self._is_held_out)
        yield from contradictions(rows, where)
        yield from leaks(rows, pairs, where, is_held_out=self._is_held_out)
        yield from strange_languages(rows, where)
        yield from strange_lengths(rows, where)
        yield from same_answers(rows, where)
        yield from too_few(int((~self._is_held_out).sum()), where(0))

    def _is_measured(self, name: str) -> bool:
        """True for a figure that is asked for; quality is measured by the rules of single rows that are held."""
        has_rules = name != "quality" or any(map(self._selection.holds, (*TEXT_RULES, *TURN_RULES)))
        return self._selection.holds(name) and has_rules

    def _clusters(self) -> int:
        """The training rows that are no near duplicate of an earlier one."""
        inside = ~self._is_held_out
        pairs = self.pairs.where(inside[self.pairs.first] & inside[self.pairs.second])
        return int((pairs.clusters(len(inside)) == np.arange(len(inside)))[inside].sum())


def _quantiles(lengths: Any) -> dict[str, int]:
    points = {"min": 0, "p5": 5, "p50": 50, "p95": 95, "p99": 99, "max": 100}
    return {name: int(np.percentile(lengths, point)) for name, point in points.items()}
