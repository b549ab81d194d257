"""What a run's directory keeps of its figures: the curve of the training, and what evaluations found, row by row."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from truetune.config.load import load_config
from truetune.errors import CheckpointError
from truetune.runs.columns import Column, number, read_columns
from truetune.runs.directory import RunDirectory
from truetune.runs.documents import mapping
from truetune.runs.evaluations import StoredEvaluation, stored_evaluations
from truetune.runs.ledger import RunEntry, read_run

Numbers = NDArray[np.float64]
_Row = TypeVar("_Row")

_TAIL = 0.25
_MOST = 1000
"""Logged losses that a tail has at most: there the blocks that are drawn again are long enough."""
_NOTHING = Column(np.empty(0, np.int64), np.empty(0, np.float64))


@dataclass(frozen=True, slots=True)
class Curve:
    """The logged training losses that are numbers, by step and by tokens so far; evaluations by name and step."""

    steps: NDArray[np.int64]
    losses: Numbers
    tokens: Numbers
    evaluated: Mapping[str, Mapping[int, float]]

    @property
    def _start(self) -> int:
        count = len(self.losses)
        return count - min(_MOST, math.ceil(count * _TAIL))

    @property
    def tail(self) -> Numbers:
        """The last quarter of the losses."""
        return self.losses[self._start :]

    @property
    def tail_steps(self) -> NDArray[np.int64]:
        return self.steps[self._start :]

    def at_step(self, step: int) -> float:
        return float(self.losses[np.searchsorted(self.steps, step)])

    def at_tokens(self, tokens: int) -> float:
        """The loss after so many tokens, on the line between the two logged ones around it."""
        return float(np.interp(tokens, self.tokens, self.losses))


@dataclass(frozen=True, slots=True)
class Evaluated:
    """An evaluation: its figures, and what it kept of single rows.

    `losses` are sums and tokens by a digest of the row's text, `scores` those of the answers, by place and prompt.
    """

    figures: Mapping[str, float]
    losses: Mapping[str, tuple[float, int]] = field(default_factory=dict)
    scores: Mapping[tuple[str, int, str], Mapping[str, float]] = field(default_factory=dict)

    def losses_beside(self, other: "Evaluated") -> tuple[Numbers, Numbers]:
        """Loss and tokens of the rows that both have, (rows, 2) each, in the same order."""
        rows = [row for row, (_, tokens) in self.losses.items() if other.losses.get(row, (0.0, None))[1] == tokens]
        return _pairs(self.losses[row] for row in rows), _pairs(other.losses[row] for row in rows)

    def scores_beside(self, other: "Evaluated", name: str) -> tuple[Numbers, Numbers]:
        """A metric of the answers to the rows that both have, (rows, 2) each: the score, and 1."""
        rows = [row for row, scores in self.scores.items() if name in scores and name in other.scores.get(row, {})]
        mine, others = (_pairs((each[row][name], 1) for row in rows) for each in (self.scores, other.scores))
        return mine, others

    def means_of_rows(self) -> list[str]:
        """The metrics whose figure is the mean of the rows' scores, which that of a whole corpus is not."""
        return [name for name, figure in self.figures.items() if self._is_mean(name, figure)]

    def _is_mean(self, name: str, figure: float) -> bool:
        scores = [each[name] for each in self.scores.values() if name in each]
        return bool(scores) and math.isclose(sum(scores) / len(scores), figure, abs_tol=1e-9)


@dataclass(frozen=True, slots=True)
class KeptRun:
    """All that a run's directory tells about it; `settings` are the resolved ones, by dotted name."""

    entry: RunEntry
    record: Mapping[str, Any]
    settings: Mapping[str, Any]
    curve: Curve
    evaluations: Mapping[str, Evaluated]


def read_kept_run(path: Path) -> KeptRun:
    """What the directory keeps. CheckpointError where it holds no run, or a file that cannot be read."""
    directory = RunDirectory(path)
    record = directory.read_record()
    entry = read_run(path)
    if entry.status == "unreadable":
        raise CheckpointError(f"{path}: {entry.problem}")
    return KeptRun(entry, record, _settings(directory, record), _curve(directory), _evaluations(directory))


def _settings(directory: RunDirectory, record: Mapping[str, Any]) -> dict[str, Any]:
    if record.get("config") is None:  # A run from before run.json had it.
        return dict(_flat(load_config(directory.config).config.model_dump(mode="json")))
    return dict(_flat(mapping(record, "config")))


def _flat(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from ((f"{name}.{leaf}", inner) for leaf, inner in value.items())
        else:
            yield name, value


def _curve(directory: RunDirectory) -> Curve:
    try:
        text = directory.metrics.read_bytes() if directory.metrics.exists() else b""
    except OSError as error:
        raise CheckpointError(f"{directory.metrics} cannot be read: {error.strerror}") from error
    # What a killed process left half written at the end is no line.
    logged = read_columns(text[: text.rfind(b"\n") + 1], names=("loss", "num_tokens"))
    if logged.damaged:
        raise CheckpointError(f"{directory.metrics} is damaged: {logged.damaged:,} of its lines are none")
    columns = {name: column.in_order.numbers for name, column in logged.columns.items()}
    losses, tokens = columns.get("loss", _NOTHING), columns.get("num_tokens", _NOTHING)
    is_told = np.isin(losses.steps, tokens.steps).all()
    counted = tokens.values[np.isin(tokens.steps, losses.steps)] if is_told else _NOTHING.values
    return Curve(losses.steps, losses.values, counted, _evaluations_in(columns))


_COUNTED = ("_tokens", "_runtime", "_per_second")
"""Ends of the names of what an evaluation logs, and does not judge by."""


def _evaluations_in(columns: Mapping[str, Column]) -> dict[str, dict[int, float]]:
    """The figures of the evaluations in a training: eval_loss, and those of answers."""
    found = {name: column for name, column in columns.items() if name.startswith("eval_") and len(column.steps)}
    judging = {name: column for name, column in found.items() if not name.endswith(_COUNTED)}
    return {name: dict(zip(each.steps.tolist(), each.values.tolist(), strict=True)) for name, each in judging.items()}


# --- evaluations ------------------------------------------------------------------------------------------


def _evaluations(directory: RunDirectory) -> dict[str, Evaluated]:
    """The newest evaluation of each name; what cannot be read is none."""
    newest = {each.name: each for each in reversed(stored_evaluations(directory))}
    return {name: _evaluated(each) for name, each in newest.items()}


def _evaluated(stored: StoredEvaluation) -> Evaluated:
    return Evaluated(
        figures=_numbers({"eval_loss": stored.document.get("eval_loss"), **mapping(stored.document, "metrics")}),
        losses=dict(_of_rows(stored.losses, _loss)),
        scores=dict(_of_rows(stored.answers, _scores)),
    )


def _loss(line: Mapping[str, Any]) -> tuple[str, tuple[float, int]]:
    loss, tokens = number(line["loss"]), number(line["tokens"])
    if math.isnan(loss) or math.isnan(tokens):
        raise ValueError("a damaged line")
    return str(line["row"]), (loss, int(tokens))


def _scores(line: Mapping[str, Any]) -> tuple[tuple[str, int, str], Mapping[str, float]]:
    where = line["where"]
    return (str(where["path"]), int(where["line"]), str(line["prompt"])), _numbers(mapping(line, "scores"))


def _of_rows(lines: Iterable[Mapping[str, Any]], read: Callable[[Mapping[str, Any]], _Row]) -> Iterator[_Row]:
    """What is read of each line; one that lacks something of it is left out."""
    for line in lines:
        with suppress(KeyError, TypeError, ValueError, OverflowError):
            yield read(line)


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    return {name: figure for name, value in values.items() if not math.isnan(figure := number(value))}


def _pairs(rows: Iterator[tuple[Any, Any]]) -> Numbers:
    return np.array(list(rows), dtype=np.float64).reshape(-1, 2)
