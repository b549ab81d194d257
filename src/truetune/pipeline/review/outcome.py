"""What a training came to, in words, by what its directory holds: told at its end."""

import math
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from truetune.figures import duration, figure, short_count
from truetune.pipeline.review.planned import planned_figures
from truetune.report.curves import DRAWN, Columns, Summary, logged, number, summary
from truetune.report.run_page import Pairs, Planned
from truetune.runs.columns import logged_columns
from truetune.runs.directory import RunDirectory
from truetune.runs.documents import json_object, mapping, text
from truetune.training.trackers import tracker_places


@dataclass(frozen=True, slots=True)
class Outcome:
    """A training at its end: `learned` in sentences, `places` of what it left, and the commands that come `next`.

    Each of these has a name for what it tells. `planned` is empty where the run did not come to its end, and tells no
    time of one that was resumed, which knows that of its last part only.
    """

    verdict: str
    learned: Pairs
    planned: tuple[Planned, ...]
    places: Pairs
    next: Pairs


def outcome(path: Path) -> Outcome:
    """What is told of the run in a directory that has just been trained, or stopped."""
    run = RunDirectory(path)
    record: dict[str, Any] = json_object(path, run.record).value
    columns: Columns = logged_columns(path, run.metrics, names=DRAWN).value
    stats = mapping(json_object(path, run.data_report).value, "stats")
    validation = _course(columns, "eval_loss")
    return Outcome(
        verdict=_verdict(record),
        learned=tuple(_learned(record, columns, stats, validation)),
        planned=tuple(_planned(record, run)),
        places=tuple(_places(record, run)),
        next=tuple(_next(record, run, is_validated=validation is not None)),
    )


def _verdict(record: Mapping[str, Any]) -> str:
    status, steps, total = text(record, "status"), number(record.get("steps")), number(record.get("total_steps"))
    by = f" by {text(record, 'stopped_by')}" if record.get("stopped_by") else ""
    since = ", since it was resumed" if record.get("resumed_from") else ""
    pace = number(record.get("tokens_per_second"))
    rate = f", {pace:,.0f} tokens a second" if pace > 0 else ""
    seconds = number(record.get("seconds"))
    took = "" if math.isnan(seconds) else f" in {duration(seconds)}{since}"
    return f"{status}{by}: {steps:,.0f} of {total:,.0f} steps{took}{rate}"


# --- what was learned -------------------------------------------------------------------------------------


def _learned(
    record: Mapping[str, Any],
    columns: Columns,
    stats: Mapping[str, Any],
    validation: Summary | None,
) -> Iterator[tuple[str, str]]:
    learned, read = number(record.get("supervised_tokens")), number(record.get("tokens"))
    if learned > 0:
        yield "learned", f"{short_count(learned)} tokens of {short_count(read)} read{_passes(columns, stats)}"
    if training := _course(columns, "loss"):
        yield "loss", _from_to(training)
    yield "validation", _validated(record, validation)
    name, best = text(record, "metric_for_best_model"), number(record.get("best_metric"))
    if name not in ("", "eval_loss") and not math.isnan(best):
        yield "best", f"{name} {figure(best)}{_at(record)}{_kept(record)}"


def _passes(columns: Columns, stats: Mapping[str, Any]) -> str:
    epochs = logged(columns, "epoch", name="epoch")
    rows = number(stats.get("train_rows"))
    if epochs is None or not rows > 0:
        return ""
    passed = round(float(epochs.values[-1]), 2)
    return f": {_counted(rows, 'row')}, {_counted(passed, 'epoch')}"


def _counted(count: float, unit: str) -> str:
    return f"{count:,g} {unit}{'' if count == 1 else 's'}"


def _course(columns: Columns, key: str) -> Summary | None:
    curve = logged(columns, key, name=key)
    return None if curve is None else summary(curve)


def _from_to(course: Summary) -> str:
    if course.points == 1:
        return f"{course.last:.4f}"
    before = "before training" if course.first_at == 0 else f"at step {course.first_at:,}"
    return f"from {course.first:.4f} {before} to {course.last:.4f}"


def _validated(record: Mapping[str, Any], course: Summary | None) -> str:
    if course is None:
        return "none: the training loss alone does not tell how it does on rows it has not seen"
    is_judge = text(record, "metric_for_best_model") in ("", "eval_loss")
    lowest = f", lowest {course.least:.4f} at step {course.least_at:,}" if course.least < course.last else ""
    return f"{_from_to(course)}{lowest}{_kept(record) if is_judge and lowest else ''}"


def _at(record: Mapping[str, Any]) -> str:
    return f" at step {record['best_step']:,}" if record.get("best_step") else ""


def _kept(record: Mapping[str, Any]) -> str:
    is_kept = mapping(record, "config", "evaluation").get("load_best_model_at_end")
    return ", whose weights these are" if is_kept and record.get("best_step") and record.get("adapter") else ""


# --- plan, places, commands -------------------------------------------------------------------------------


def _planned(record: Mapping[str, Any], run: RunDirectory) -> Iterator[Planned]:
    if record.get("status") == "finished":
        is_part = bool(record.get("resumed_from"))
        yield from (each for each in planned_figures(record, run) if not (is_part and each.name == "Time"))


def _places(record: Mapping[str, Any], run: RunDirectory) -> Iterator[tuple[str, str]]:
    yield "run", str(run.path)
    if record.get("adapter"):
        yield "weights", str(run.path / text(record, "adapter"))
    if run.log.is_file():
        yield "log", str(run.log)
    yield from tracker_places(run.path)


def _next(record: Mapping[str, Any], run: RunDirectory, *, is_validated: bool) -> Iterator[tuple[str, str]]:
    path = shlex.quote(str(run.path))
    if record.get("adapter"):
        yield "talk", f"truetune chat {path}"
        yield "judge", f"truetune eval {path}{'' if is_validated else ' --data ROWS'}"
    if record.get("status") == "stopped":
        yield "go on", f"truetune train {shlex.quote(str(run.config))} --resume"
    yield "look", f"truetune report {path}"
