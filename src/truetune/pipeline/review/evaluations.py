"""What the report of a run says of its evaluations: figures beside the base's, answers side by side, worst rows."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from truetune.figures import figure
from truetune.lint.private import without_secrets
from truetune.pipeline.review.rows import where_of
from truetune.report.curves import number
from truetune.report.run_page import AnsweredRow, Compared, HardRow, Judged, Pairs
from truetune.report.stretches import cut
from truetune.runs.directory import RunDirectory
from truetune.runs.documents import json_lines, mapping, mappings, text
from truetune.runs.evaluations import StoredEvaluation, stored_evaluations

_ANSWERS, _WORST, _FIGURES, _PART = 24, 10, 8, 1_500
"""Answers, rows and figures of tasks that are shown, and characters of each text."""
_OF_LOSS = ("eval_loss", "perplexity", "token_accuracy")


def judged(run: RunDirectory) -> Judged | None:
    """The newest of what `truetune eval` stored, with a line for each other one; else what it answered in training.

    None where there is neither.
    """
    stored = stored_evaluations(run)
    newest = next((each for each in stored if not math.isnan(number(each.document.get("eval_loss")))), None)
    if newest is None:
        return _in_training(run, stored)
    document, answers = newest.document, newest.answers
    forgetting = mapping(document, "forgetting")
    return Judged(
        title=_title(document),
        about=_about(document),
        compared=tuple(_compared(document)),
        answers=tuple(map(_answer, answers[:_ANSWERS])),
        answered=len(answers),
        worst=tuple(map(_hard, mappings(document, "worst_rows")[:_WORST])),
        forgotten=_forgotten(forgetting),
        lost=tuple(_strings(forgetting, "lost")),
        missed=tuple(_strings(document, "missed")),
        others=_in_short(each for each in stored if each is not newest),
    )


def _in_training(run: RunDirectory, stored: Sequence[StoredEvaluation]) -> Judged | None:
    """The answers of the last evaluation while it trained, which are not the base's."""
    files = {path: path.stem.removeprefix("step-") for path in run.answers.glob("step-*.jsonl")}
    steps = sorted((int(step), path) for path, step in files.items() if step.isascii() and step.isdigit())
    others = _in_short(stored)
    if not steps:
        return Judged("No row was asked", "", (), 0, others) if others else None
    step, path = steps[-1]
    answers = json_lines(run.path, path).value
    return Judged(
        title=f"At step {step:,} of the training",
        about="the base was not asked: truetune eval does that",
        answers=tuple(map(_answer, answers[:_ANSWERS])),
        answered=len(answers),
        others=others,
    )


def _in_short(found: Iterable[StoredEvaluation]) -> Pairs:
    """A line for each: the loss, or the figures of lm-evaluation-harness's tasks."""
    return tuple((each.path.name, told) for each in found if (told := _line(each.document)))


def _line(document: Mapping[str, Any]) -> str:
    if told := _number(document, "eval_loss"):
        base = _number(mapping(document, "base"), "eval_loss")
        return f"{_title(document)}: loss {told}" + (f", the base {base}" if base else "")
    tasks = mappings(document, "figures")[:_FIGURES]
    return "; ".join(_of_task(each) for each in tasks if _number(each, "tuned"))


def _of_task(task: Mapping[str, Any]) -> str:
    base = _number(task, "base")
    beside = f", the base {base}" if base else ""
    return f"{text(task, 'task')} {text(task, 'metric')} {_number(task, 'tuned')}{beside}"


def _title(document: Mapping[str, Any]) -> str:
    return f"On {text(document, 'data') or 'rows that are not known'}"


def _about(document: Mapping[str, Any]) -> str:
    record = mapping(document, "record")
    told = [f"{_number(document, name)} {words}" for name, words in (("rows", "rows"), ("tokens", "learned tokens"))]
    told += [text(record, "weights"), text(record, "time")]
    return ", ".join(filter(None, told))


def _compared(document: Mapping[str, Any]) -> Iterator[Compared]:
    base = mapping(document, "base")
    tuned = {**{name: document.get(name) for name in _OF_LOSS}, **mapping(document, "metrics")}
    before = {**{name: base.get(name) for name in _OF_LOSS}, **mapping(base, "metrics")}
    for name in tuned:
        difference = mapping(document, "comparison", name)
        low, high = _interval(difference)
        known = not (math.isnan(low) or math.isnan(high))
        yield Compared(
            name=name,
            tuned=_number(tuned, name),
            base=_number(before, name),
            difference=f"{number(difference.get('difference')):+.3f} ({low:+.3f} to {high:+.3f})" if known else "",
            counts=" / ".join(_number(difference, each) for each in ("wins", "losses", "ties")) if known else "",
            is_sure=low > 0 or high < 0,
        )


def _interval(difference: Mapping[str, Any]) -> tuple[float, float]:
    interval = difference.get("interval")
    if not isinstance(interval, list) or len(interval) != 2:
        return math.nan, math.nan
    return number(interval[0]), number(interval[1])


def _number(document: Mapping[str, Any], name: str) -> str:
    value = number(document.get(name))
    return "" if math.isnan(value) else figure(value)


def _answer(line: Mapping[str, Any]) -> AnsweredRow:
    scores = [f"{name} {_number(mapping(line, 'scores'), name) or 'none'}" for name in mapping(line, "scores")]
    cut_off = ["reached its limit"] if line.get("stop_reason") == "length" else []
    return AnsweredRow(
        where=where_of(line),
        prompt=_shown(line, "prompt"),
        expected=_shown(line, "expected"),
        tuned=_shown(line, "answer"),
        base=None if line.get("base_answer") is None else _shown(line, "base_answer"),
        about=", ".join([*scores, *cut_off]),
    )


def _hard(row: Mapping[str, Any]) -> HardRow:
    return HardRow(
        where=where_of(row),
        loss=_number(row, "loss"),
        base_loss=_number(row, "base_loss"),
        tokens=_number(row, "tokens"),
        text=_shown(row, "text"),
        answer=_shown(row, "answer"),
    )


def _shown(document: Mapping[str, Any], name: str) -> str:
    return "".join(each.text for each in cut(without_secrets(text(document, name)), most=_PART))


def _forgotten(gate: Mapping[str, Any]) -> str:
    if not gate:
        return ""
    followed = f"General instructions followed: {_number(gate, 'passed')} of {_number(gate, 'instructions')}"
    followed += f", the base {before}" if (before := _number(gate, "base_passed")) else ""
    perplexity = f"perplexity on general texts: {_number(gate, 'general_perplexity')}"
    perplexity += f", the base {before}" if (before := _number(gate, "base_general_perplexity")) else ""
    return f"{followed}. {perplexity[:1].upper()}{perplexity[1:]}."


def _strings(document: Mapping[str, Any], name: str) -> list[str]:
    found = document.get(name)
    return [each for each in found if isinstance(each, str)] if isinstance(found, list) else []
