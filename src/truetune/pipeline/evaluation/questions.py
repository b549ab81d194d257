"""What is asked of the evaluated rows, what is measured of the answers, and another model's answers beside them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from truetune.data.read import read_records
from truetune.data.store import evenly
from truetune.errors import ConfigError, DataError
from truetune.inference.metrics import Choice, Expected, Metric, choose_metrics, named_metrics
from truetune.pipeline.evaluation.result import Thresholds
from truetune.pipeline.evaluation.rows import Asked, EvaluationRows

_HINT = "each line needs an answer, and an id or the prompt of its row, or lines must be as many as rows, in order"


@dataclass(frozen=True, slots=True)
class Questions:
    """The rows to answer, what is measured of the answers and why, and another model's answers to them."""

    asked: Sequence[Asked] = ()
    metrics: Sequence[Metric] = ()
    reason: str = "no answers were asked for"
    reference: Sequence[str] | None = None

    @property
    def expected(self) -> list[Expected]:
        return [each.expected for each in self.asked]


def questions_of(
    rows: EvaluationRows,
    named: Sequence[Metric],
    *,
    is_auto: bool,
    limit: int,
    regex: str | None,
    reference: Path | None,
    thresholds: Thresholds,
) -> Questions:
    """What is asked, of at most `limit` rows, and measured: what is `named` and, if `is_auto`, what fits the rows.

    A metric that `thresholds` name is measured in any case.
    """
    asked = rows.asked(evenly(len(rows.stored), limit).tolist())
    if not asked:
        if named or thresholds.metrics or reference:
            raise ConfigError("the rows are bare texts, which ask for no answer", hint="leave metrics out")
        return Questions(reason="the rows are bare texts, which ask for no answer")
    answers = read_reference(reference, asked, rows=len(rows.stored)) if reference else None
    others = named_metrics([*(["regex"] if regex else []), *thresholds.metrics], pattern=regex)
    metrics, reason = chosen_metrics([each.expected for each in asked], [*others, *named], is_auto=is_auto)
    return Questions(asked, metrics, reason, answers)


def chosen_metrics(
    expected: Sequence[Expected], named: Sequence[Metric], *, is_auto: bool
) -> tuple[list[Metric], str]:
    """What is measured, each once: what fits the expected answers, if `is_auto`, then what is named; and why."""
    choice = choose_metrics(expected) if is_auto else Choice((), "as asked for")
    fitting = named_metrics(choice.names)
    return list({metric.name: metric for metric in (*fitting, *named)}.values()), choice.reason


def read_reference(path: Path, asked: Sequence[Asked], *, rows: int) -> list[str]:
    """The answer to each of the rows asked, of `rows` in all: found by id, by prompt, or by its place.

    DataError for a line without an answer, and where a row has none.
    """
    lines = [_answer(record.fields, str(record.where)) for record in read_records(str(path))]
    for name, wanted in (("id", [row.fields.get("id") for row in asked]), ("prompt", [row.prompt for row in asked])):
        if found := _by(name, lines, wanted):
            return found
    if len(lines) == rows:
        return [lines[row.place]["answer"] for row in asked]
    raise DataError(f"{path} has {len(lines)} answers, and not one for each of the {rows} rows", hint=_HINT)


def _answer(fields: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    if not isinstance(fields.get("answer"), str):
        raise DataError(f"{where}: no answer", hint=_HINT)
    return fields


def _by(name: str, lines: Sequence[Mapping[str, Any]], wanted: Sequence[Any]) -> list[str] | None:
    """The answers by what tells rows apart; None where that is missing, or is the same in two rows."""
    if not all(isinstance(each, str | int) for each in wanted):
        return None
    known = {line[name]: line["answer"] for line in lines if isinstance(line.get(name), str | int)}
    if len(known) < len(lines) or len(set(wanted)) < len(wanted) or not all(each in known for each in wanted):
        return None
    return [known[each] for each in wanted]
