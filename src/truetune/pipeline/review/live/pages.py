"""What the live pages show of runs: a line of the list, the head of one, several side by side."""

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from truetune.errors import TruetuneError, first_line
from truetune.figures import figure
from truetune.lint.private import without_secrets
from truetune.pipeline.review.compare import Compared, RunComparison, Verdict, compare_runs
from truetune.pipeline.review.evaluations import judged
from truetune.pipeline.review.live.shelf import Shelved
from truetune.report.curves import number
from truetune.report.live_page import ComparedPage, Line, NamedRun, SameRow, Table, ToldVerdict
from truetune.report.run_page import AnsweredRow, Tone, tone_of
from truetune.runs.directory import RunDirectory
from truetune.runs.documents import json_objects, last_lines, open_plain

_MOST_SAMPLES = 12
_LONG = 200
_LARGEST = 200_000_000
"""Bytes of a file that is compared, or reported; those of a million logged steps."""


def named(run: Shelved) -> NamedRun:
    """A run as a page names it."""
    return NamedRun(run.id, run.name, run.entry.status, _tone(run))


def _tone(run: Shelved) -> Tone:
    return tone_of(run.entry.status, while_running="busy")


# --- the list, and the head of a run ----------------------------------------------------------------------


def line_of(run: Shelved) -> dict[str, Any]:
    """A run's line in the list."""
    entry = run.entry
    return {
        "id": run.id,
        "name": run.name,
        "status": entry.status,
        "tone": _tone(run),
        "problem": _cut(entry.problem),
        "model": _cut(entry.model),
        "data": _cut(entry.data),
        "started": _cut(entry.started),
        "steps": _known(entry.steps),
        "total_steps": _known(entry.total_steps),
        "loss": _known(entry.final_loss),
        "eval_loss": _known(entry.eval_loss),
        "speed": _known(entry.tokens_per_second),
    }


def head_of(run: Shelved) -> dict[str, Any]:
    """What stands above a run's curves: its line, and what its last logged step tells besides."""
    entry, last = run.entry, _last_step(run.directory)
    steps, total = number(entry.steps), number(entry.total_steps)
    tokens, speed = number(last.get("num_tokens")), number(entry.tokens_per_second)
    left = (total - steps) * tokens / steps / speed if steps > 0 and speed > 0 else math.nan
    is_running = entry.status == "running"
    return {
        **line_of(run),
        "best_eval_loss": _known(entry.best_eval_loss),
        "seconds": _known(entry.seconds),
        "seconds_left": _known(left) if is_running else None,
        "learning_rate": _known(last.get("learning_rate")) if is_running else None,
        "memory": _known(last.get("memory_bytes")) if is_running else _known(entry.peak_memory_bytes),
    }


def _last_step(run: RunDirectory) -> Mapping[str, Any]:
    """The last line of a training step, by the end of the metrics; empty where there is none."""
    try:
        with open_plain(run.metrics) as file:
            lines, _ = json_objects(last_lines(file).decode("utf-8", "replace"))
    except OSError:
        return {}
    return next((line for line in reversed(lines) if "loss" in line), {})


def _known(value: Any) -> float | None:
    found = number(value)
    return None if math.isnan(found) else found


def _cut(text: str | None) -> str | None:
    if text is None:
        return None
    text = without_secrets(text.split("\n", 1)[0][: 2 * _LONG])
    return text if len(text) <= _LONG else f"{text[:_LONG]}…"


# --- side by side -----------------------------------------------------------------------------------------


def compared_page(runs: Sequence[Shelved]) -> ComparedPage:
    """Runs side by side. What cannot be compared, or read, is told in the page, and never raised."""
    labels = {str(run.entry.path): run.name for run in runs}
    names = tuple(map(named, runs))
    answers = [_answers(run) for run in runs]
    samples = tuple(_same_rows(answers))
    unanswered = tuple(_unanswered(run) for run, found in zip(runs, answers, strict=True) if not found)
    try:
        for run in runs:
            require_plain(run.directory)
        found = compare_runs([run.entry.path for run in runs])
        tables = tuple(_tables(found))
        verdicts = tuple(_told(each, labels) for each in found.verdicts)
    except TruetuneError as error:
        problem = f"The runs cannot be compared: {error.message}."
        return ComparedPage(names, samples=samples, unanswered=unanswered, problem=problem)
    except (OSError, ValueError, TypeError, AttributeError, LookupError, OverflowError, RecursionError) as error:
        # Files that no training of ours has written; the curves are read with more care, and may be drawn.
        problem = (
            f"The runs cannot be compared: their files are damaged ({type(error).__name__}: {first_line(error)})."
        )
        return ComparedPage(names, samples=samples, unanswered=unanswered, problem=problem)
    notes = tuple(_sentence(note, labels) for note in found.notes)
    return ComparedPage(names, tables, verdicts, notes, samples, unanswered)


def require_plain(run: RunDirectory) -> None:
    """OSError where a file of the run is a link, a pipe, or anything else that no run has written."""
    evaluations = [*run.evaluations.glob("*.json"), *run.evaluations.glob("*.jsonl")]
    for path in (run.record, run.metrics, run.config, *evaluations):
        if os.path.lexists(path):
            with open_plain(path) as file:
                if file.seek(0, os.SEEK_END) > _LARGEST:
                    raise OSError(f"{path.name} is too large")


def _tables(found: RunComparison) -> Iterator[Table]:
    kinds = (
        ("Settings that differ", "setting", found.settings, "The runs have the same settings."),
        ("Data and base that differ", "", found.data, "The same data, on the same base."),
        ("Figures", "figure", found.figures, "No figures yet."),
        (
            "Versions and hardware that differ",
            "",
            (*found.versions, *found.hardware),
            "The same versions and hardware.",
        ),
    )
    for title, first, compared, nothing in kinds:
        yield Table(title, first, tuple(map(_line, compared)), nothing)


def _line(compared: Compared) -> Line:
    return Line(_cut(compared.name) or "", tuple(map(_word, compared.values)))


def _word(value: Any) -> str:
    match value:
        case None:
            return "–"
        case bool():
            return str(value).lower()
        case int() if abs(value) < 10**15:
            return f"{value:,}"
        case float():
            return figure(value)
        case _:
            return _cut(str(value)) or ""


def _told(verdict: Verdict, labels: Mapping[str, str]) -> ToldVerdict:
    between = "" if verdict.interval is None else f"{verdict.interval[0]:+.4f} to {verdict.interval[1]:+.4f}"
    answer = {True: "yes", False: "no", None: "not known"}[verdict.exceeds_noise]
    other = labels[verdict.other]
    return ToldVerdict(verdict.figure, other, f"{verdict.difference:+.4f}", between, answer, verdict.how)


def _sentence(note: str, labels: Mapping[str, str]) -> str:
    """A note with the runs' names in place of their paths."""
    for path in sorted(labels, key=len, reverse=True):
        note = note.replace(path, labels[path])
    return f"{note}."


# --- answers ----------------------------------------------------------------------------------------------

_Row = tuple[str, str]
"""Where a row is, and what it asks: it is the same row where both are."""


def _answers(run: Shelved) -> dict[_Row, AnsweredRow]:
    """What a run answered in its newest evaluation."""
    found = judged(run.directory)
    return {(each.where, each.prompt): each for each in found.answers} if found else {}


def _same_rows(answers: Sequence[Mapping[_Row, AnsweredRow]]) -> Iterator[SameRow]:
    """Rows that two runs or more have answered, those first that most have."""
    rows = dict.fromkeys(row for each in answers for row in each)
    counts = {row: sum(row in each for each in answers) for row in rows}
    shared = sorted((row for row in rows if counts[row] > 1), key=lambda row: -counts[row])
    for row in shared[:_MOST_SAMPLES]:
        asked = [each.get(row) for each in answers]
        first = next(each for each in asked if each)
        told = tuple(each.tuned if each else None for each in asked)
        yield SameRow(first.where, first.prompt, first.expected, told)


def _unanswered(run: Shelved) -> str:
    return f"{run.name} has answered no rows yet: truetune eval {run.entry.path}"
