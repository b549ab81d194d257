"""What is found in the data: a problem a finding, and the counts that the report prints."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from truetune.data.catalog import RULES, SEVERITIES, Severity
from truetune.data.examples import Location, Note
from truetune.errors import DataError

LISTED = 100
"""How many findings of one rule a report lists in full; all are counted."""


class RowError(DataError):
    """One row that cannot be used: `rule` names the reason (catalog.RULES), `field` the place in the row."""

    def __init__(self, rule: str, message: str, *, field: str | None = None, hint: str | None = None) -> None:
        super().__init__(message, hint)
        self.rule = rule
        self.field = field


@dataclass(frozen=True, slots=True)
class Problem:
    """A finding of a rule (its name), which speaks for `rows` rows and shows the first of them.

    `related` names other places that belong to it: the row that this one equals.
    """

    rule: str
    severity: Severity
    message: str
    where: Location
    field: str | None = None
    hint: str | None = None
    rows: int = 1
    related: tuple[Location, ...] = ()

    @classmethod
    def of(cls, error: RowError, where: Location) -> "Problem":
        return cls.found(error.rule, error.message, where, field=error.field, hint=error.hint)

    @classmethod
    def found(cls, rule: str, message: str, where: Location, *, hint: str | None = None, **options: Any) -> "Problem":
        """A finding with the severity of its rule and, unless it has its own, the rule's hint."""
        known = RULES[rule]
        return cls(rule, known.severity, message, where, hint=hint or known.hint, **options)

    @property
    def code(self) -> str:
        """The rule's code: TT101."""
        return RULES[self.rule].code

    def as_json(self) -> dict[str, Any]:
        return {
            "code": self.code,
            "name": self.rule,
            "severity": self.severity,
            "message": self.message,
            "where": asdict(self.where),
            "field": self.field,
            "hint": self.hint,
            "rows": self.rows,
            **({"related": [asdict(where) for where in self.related]} if self.related else {}),
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "Problem":
        """The problem that as_json made this document of."""
        where, *related = (Location(**place) for place in (document["where"], *document.get("related", ())))
        same = {name: document[name] for name in ("severity", "message", "field", "hint", "rows")}
        return cls(rule=document["name"], where=where, related=tuple(related), **same)

    def __str__(self) -> str:
        place = f"{self.where}, field {self.field}" if self.field else str(self.where)
        return f"{place}: {self.message}"


@dataclass(frozen=True, slots=True)
class Report:
    """The problems of a data set (of each rule the first LISTED) and its counts (`stats`: JSON-ready).

    `rejected` counts the rows left out by rule, the commonest first; `found` those of every rule that is told row by
    row.
    """

    rows_read: int
    rows_kept: int
    problems: tuple[Problem, ...]
    rejected: Mapping[str, int] = field(default_factory=dict)
    stats: Mapping[str, Any] = field(default_factory=dict)
    found: Mapping[str, int] = field(default_factory=dict)

    @property
    def rows_rejected(self) -> int:
        return self.rows_read - self.rows_kept

    @property
    def kept_problems(self) -> tuple[Problem, ...]:
        """The findings that leave their rows in."""
        return tuple(problem for problem in self.problems if problem.rule not in self.rejected)

    def fails(self, least: Severity | Literal["never"]) -> bool:
        """True if no row is left, or a finding is as severe as `least` or more."""
        if least == "never":
            return False
        failing = SEVERITIES[: SEVERITIES.index(least) + 1]
        return not self.rows_kept or any(problem.severity in failing for problem in self.problems)

    def first(self, rule: str) -> Problem:
        return next(problem for problem in self.problems if problem.rule == rule)

    def rows_of(self, rule: str) -> int:
        """How many rows the rule found."""
        return self.found.get(rule) or sum(problem.rows for problem in self.problems if problem.rule == rule)

    def joined(self, tally: "Tally", **stats: Any) -> "Report":
        """The report with further findings of rows, and further counts."""
        return replace(
            self,
            problems=(*self.problems, *tally.problems),
            found={**self.found, **tally.found},
            stats={**self.stats, **stats},
        )

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "Report":
        """The report that as_json made this document of."""
        problems = tuple(map(Problem.from_json, document["problems"]))
        counts = (document[name] for name in ("rejected", "stats", "found"))
        return cls(document["rows_read"], document["rows_kept"], problems, *counts)

    def as_json(self) -> dict[str, Any]:
        """The report as the document that `data-report.json` and `--json` carry."""
        return {
            "rows_read": self.rows_read,
            "rows_kept": self.rows_kept,
            "rows_rejected": self.rows_rejected,
            "rejected": dict(self.rejected),
            "found": dict(self.found),
            "problems": [problem.as_json() for problem in self.problems],
            "stats": dict(self.stats),
        }


@dataclass(slots=True)
class _Count:
    first: Location
    rows: int = 0
    turns: int = 0


class Tally:
    """Collects what becomes of rows, in memory that does not grow with them."""

    def __init__(self, ignored: Callable[[str, Location], Location | None] | None = None) -> None:
        """`ignored` names the place that leaves a rule's finding at a row alone, if there is one."""
        self._ignored = ignored
        self.ignored: set[Location] = set()
        self.rejected: Counter[str] = Counter()
        self.found: Counter[str] = Counter()
        self.problems: list[Problem] = []
        self._notes: dict[tuple[str, str | None], _Count] = {}

    def reject(self, error: RowError, where: Location) -> None:
        """A row was left out."""
        self.rejected[error.rule] += 1
        self.find(Problem.of(error, where))

    def find(self, problem: Problem) -> bool:
        """A row has this finding; False if it is left alone."""
        place = self._ignored and self._ignored(problem.rule, problem.where)
        if place:
            self.ignored.add(place)
            return False
        self.found[problem.rule] += 1
        if self.found[problem.rule] <= LISTED:
            self.problems.append(problem)
        return True

    def note(self, notes: Iterable[Note], where: Location) -> None:
        """A row is used, and this is to be told of it, once for all rows."""
        seen = set()
        for note in notes:
            key = (note.rule, note.field)
            count = self._notes.setdefault(key, _Count(where))
            count.rows += key not in seen
            count.turns += note.count
            seen.add(key)

    def add(self, later: "Tally") -> None:
        """Adds what was found in rows that come behind."""
        listed = Counter(problem.rule for problem in self.problems)
        for problem in later.problems:
            listed[problem.rule] += 1
            if listed[problem.rule] <= LISTED:
                self.problems.append(problem)
        self.ignored |= later.ignored
        self.rejected.update(later.rejected)
        self.found.update(later.found)
        for key, found in later._notes.items():
            count = self._notes.setdefault(key, _Count(found.first))
            count.rows += found.rows
            count.turns += found.turns

    def as_json(self) -> dict[str, Any]:
        """What was collected as a document, for `from_json`; what was left alone is not in it."""
        return {
            "rejected": dict(self.rejected),
            "found": dict(self.found),
            "problems": [problem.as_json() for problem in self.problems],
            "notes": [[*key, asdict(count)] for key, count in self._notes.items()],
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "Tally":
        """The tally that as_json made this document of."""
        tally = cls()
        tally.rejected.update(document["rejected"])
        tally.found.update(document["found"])
        tally.problems += map(Problem.from_json, document["problems"])
        for rule, field_, count in document["notes"]:
            tally._notes[rule, field_] = _Count(Location(**count["first"]), count["rows"], count["turns"])
        return tally

    def noted(self) -> list[Problem]:
        """One Problem for each kind of note, the first place with the counts of all."""
        return [_counted(rule, name, count) for (rule, name), count in sorted(self._notes.items(), key=str)]


def _counted(name: str, field: str | None, count: _Count) -> Problem:
    rule = RULES[name]
    rows = _plural(count.rows, "row")
    amount = f"{_plural(count.turns, 'turn')} in {rows}" if rule.counts_turns else f"in {rows}"
    message = f"{rule.message.format(field=field)}: {amount}"
    return Problem.found(name, message, count.first, field=field, hint=_HINTS.get((name, field)), rows=count.rows)


_NO_TOOLS = (
    "take a model whose chat template has a place for tools, or name a data.template that has one (a .jinja file)"
)
_HINTS: Mapping[tuple[str, str | None], str] = {("not-rendered", "tools"): _NO_TOOLS}
"""Remedies of what is noted of one field, where the rule's own would mislead."""


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
