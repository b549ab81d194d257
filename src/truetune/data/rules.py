"""What is found in the data: every code's meaning, a problem a finding, and the counts that the report prints."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from truetune.data.examples import Location, Note
from truetune.errors import DataError

Severity = Literal["error", "warning", "note"]

LISTED = 100
"""How many findings of one code a report lists in full; all are counted."""


class RowError(DataError):
    """One row that cannot be used: `code` names the reason, `field` the place in the row."""

    def __init__(self, code: str, message: str, *, field: str | None = None, hint: str | None = None) -> None:
        super().__init__(message, hint)
        self.code = code
        self.field = field


@dataclass(frozen=True, slots=True)
class NoteRule:
    """What a Note of one code means; `turns` says whether it counts turns beside rows."""

    severity: Severity
    message: str
    hint: str | None = None
    counts_turns: bool = False


NOTES: Mapping[str, NoteRule] = {
    "number-as-text": NoteRule("note", "numbers or booleans in text fields are read as their JSON text"),
    "not-rendered": NoteRule(
        "warning",
        'the field "{field}" is filled and not used by the prompt',
        "take it out of the rows, or name a data.template that uses it",
    ),
    "removed-by-template": NoteRule(
        "warning",
        "text (thinking, as a rule) was removed by the template",
        "data.one_example_per_turn: true makes a row of each turn, with its thinking",
        counts_turns=True,
    ),
    "system-folded": NoteRule(
        "note", "system messages were folded into the first user turn, since the template refuses the role"
    ),
    "turns-merged": NoteRule(
        "note", "neighbours of one role were merged, since the template refuses them", counts_turns=True
    ),
    "calls-as-text": NoteRule(
        "warning",
        "tool calls were written as text: the template has no place for them",
        "use a model (or a data.template) that knows tool calls",
        counts_turns=True,
    ),
    "parallel-calls": NoteRule(
        "warning",
        "several tool calls stand in one turn, though parallel_tool_calls is false",
        "split the turn, or take parallel_tool_calls out",
        counts_turns=True,
    ),
    "unlike-prompt": NoteRule(
        "warning",
        "the template opens answers otherwise in rows than at inference (around thinking, as a rule)",
        "set data.thinking to empty or mask, or train on answers with their thinking",
    ),
    "absent-group": NoteRule(
        "warning", 'the field "{field}" of data.group_by is missing or null: each such row is a group of its own'
    ),
    "unknown-column": NoteRule(
        "warning",
        'the field "{field}" of data.columns is missing',
        "correct the name in data.columns, if it is meant for these rows",
    ),
    "parts-reordered": NoteRule(
        "note",
        "typed parts of a turn were put into the order of templates: thinking, text, tool calls",
        counts_turns=True,
    ),
}
"""Every code of a finding that leaves its row in."""


@dataclass(frozen=True, slots=True)
class Problem:
    """A finding: an error leaves its row out, a warning or a note does not and speaks for all its `rows`."""

    code: str
    severity: Severity
    message: str
    where: Location
    field: str | None = None
    hint: str | None = None
    rows: int = 1

    @classmethod
    def of(cls, error: RowError, where: Location) -> "Problem":
        return cls(error.code, "error", error.message, where, error.field, error.hint)

    def __str__(self) -> str:
        place = f"{self.where}, field {self.field}" if self.field else str(self.where)
        return f"{place}: {self.message}"


@dataclass(frozen=True, slots=True)
class Report:
    """The problems of a data set (of each code of an error the first LISTED) and its counts (`stats`: JSON-ready).

    `rejected` counts the rows left out by code, the commonest first.
    """

    rows_read: int
    rows_kept: int
    problems: tuple[Problem, ...]
    rejected: Mapping[str, int] = field(default_factory=dict)
    stats: Mapping[str, Any] = field(default_factory=dict)

    @property
    def rows_rejected(self) -> int:
        return self.rows_read - self.rows_kept

    @property
    def warnings(self) -> tuple[Problem, ...]:
        """The findings that leave their rows in."""
        return tuple(problem for problem in self.problems if problem.severity != "error")

    def first(self, code: str) -> Problem:
        return next(problem for problem in self.problems if problem.code == code)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "Report":
        """The report that as_json made this document of."""
        problems = [Problem(**{**each, "where": Location(**each["where"])}) for each in document["problems"]]
        return cls(
            document["rows_read"], document["rows_kept"], tuple(problems), document["rejected"], document["stats"]
        )

    def as_json(self) -> dict[str, Any]:
        """The report as the document that `data-report.json` and `--json` carry."""
        return {
            "rows_read": self.rows_read,
            "rows_kept": self.rows_kept,
            "rows_rejected": self.rows_rejected,
            "rejected": dict(self.rejected),
            "problems": [asdict(problem) for problem in self.problems],
            "stats": dict(self.stats),
        }


@dataclass(slots=True)
class _Count:
    first: Location
    rows: int = 0
    turns: int = 0


class Tally:
    """Collects what becomes of rows, in memory that does not grow with them."""

    def __init__(self) -> None:
        self.rejected: Counter[str] = Counter()
        self._errors: list[Problem] = []
        self._notes: dict[tuple[str, str | None], _Count] = {}

    def reject(self, error: RowError, where: Location) -> None:
        """A row was left out."""
        self.rejected[error.code] += 1
        if self.rejected[error.code] <= LISTED:
            self._errors.append(Problem.of(error, where))

    def note(self, notes: Iterable[Note], where: Location) -> None:
        """A row is used, and this is to be told of it."""
        seen = set()
        for note in notes:
            key = (note.code, note.field)
            count = self._notes.setdefault(key, _Count(where))
            count.rows += key not in seen
            count.turns += note.count
            seen.add(key)

    def add(self, later: "Tally") -> None:
        """Adds what was found in rows that come behind."""
        self.rejected.update(later.rejected)
        listed = Counter(problem.code for problem in self._errors)
        for problem in later._errors:
            listed[problem.code] += 1
            if listed[problem.code] <= LISTED:
                self._errors.append(problem)
        for key, found in later._notes.items():
            count = self._notes.setdefault(key, _Count(found.first))
            count.rows += found.rows
            count.turns += found.turns

    @property
    def errors(self) -> list[Problem]:
        return self._errors

    def warnings(self) -> list[Problem]:
        """One Problem for each kind of note, the first place with the counts of all."""
        return [_counted(code, name, count) for (code, name), count in sorted(self._notes.items(), key=str)]


def _counted(code: str, name: str | None, count: _Count) -> Problem:
    rule = NOTES[code]
    rows = _plural(count.rows, "row")
    amount = f"{_plural(count.turns, 'turn')} in {rows}" if rule.counts_turns else f"in {rows}"
    message = f"{rule.message.format(field=name)}: {amount}"
    return Problem(code, rule.severity, message, count.first, name, rule.hint, count.rows)


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
