"""What was found in the data: a problem a row, and the counts that the report prints."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from truetune.data.examples import Location
from truetune.errors import DataError


class RowError(DataError):
    """One row that cannot be used: `code` names the reason, `field` the place in the row."""

    def __init__(self, code: str, message: str, *, field: str | None = None, hint: str | None = None) -> None:
        super().__init__(message, hint)
        self.code = code
        self.field = field


@dataclass(frozen=True, slots=True)
class Problem:
    """A finding: an error leaves its row out, a warning or a note does not."""

    code: str
    severity: Literal["error", "warning", "note"]
    message: str
    where: Location
    field: str | None = None
    hint: str | None = None

    @classmethod
    def of(cls, error: RowError, where: Location) -> "Problem":
        return cls(error.code, "error", error.message, where, error.field, error.hint)

    def __str__(self) -> str:
        place = f"{self.where}, field {self.field}" if self.field else str(self.where)
        return f"{place}: {self.message}"


@dataclass(frozen=True, slots=True)
class Report:
    """All problems of a data set and its counts (`stats` is JSON-ready)."""

    rows_read: int
    rows_kept: int
    problems: tuple[Problem, ...]
    stats: Mapping[str, Any] = field(default_factory=dict)

    @property
    def rows_rejected(self) -> int:
        return self.rows_read - self.rows_kept

    def counts(self) -> dict[str, int]:
        """How many findings each code has, the commonest first."""
        return dict(Counter(problem.code for problem in self.problems).most_common())

    def first(self, code: str) -> Problem:
        return next(problem for problem in self.problems if problem.code == code)

    def as_json(self) -> dict[str, Any]:
        """The report as the document that `data-report.json` and `--json` carry."""
        problems = [asdict(problem) for problem in self.problems]
        return {
            "rows_read": self.rows_read,
            "rows_kept": self.rows_kept,
            "rows_rejected": self.rows_rejected,
            "problems": problems,
            "stats": dict(self.stats),
        }
