"""What an evaluation found: figures beside the base's, the hardest rows, answers, and tasks of a harness."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from truetune.console.output import show, show_table

if TYPE_CHECKING:
    from truetune.inference.bootstrap import Comparison
    from truetune.pipeline.evaluation.result import Evaluation, Figures
    from truetune.pipeline.evaluation.task_result import TaskEvaluation, TaskFigure

_ROWS, _EXCERPT = 5, 80
"""Rows that are shown, and characters of each text."""


# --- on rows ----------------------------------------------------------------------------------------------


def show_evaluation(found: "Evaluation") -> None:
    """The figures, what was forgotten, the rows with the highest loss, and some answers."""
    title = f"{found.data}: {found.rows:,} rows, {found.tokens:,} learned tokens, {len(found.answers)} answered"
    columns = ["", "tuned"]
    columns += ["base", "difference (95 %)", "better/worse/alike"] if found.base else []
    columns += ["reference"] if found.reference else []
    show_table(title, columns, list(_lines(found)))
    show(f"metrics: {', '.join(found.metrics) or 'none'} ({found.metrics_reason})")
    _show_forgetting(found)
    _show_hardest(found)
    if found.answers:
        _show_answers(found)
    if found.path:
        show(f"all of it: {found.path}")


def _lines(found: "Evaluation") -> Iterator[tuple[str, ...]]:
    tuned, base, reference = (_figures(each) for each in (found.tuned, found.base, found.reference))
    for name, value in tuned.items():
        line = [name, _number(value)]
        if found.base:
            line += [_number(base.get(name)), *_compared(found.comparison.get(name))]
        yield (*line, _number(reference.get(name))) if found.reference else tuple(line)


def _figures(figures: "Figures | None") -> dict[str, float]:
    if figures is None:
        return {}
    document = figures.as_json()
    metrics: dict[str, float] = document.pop("metrics")
    return {**document, **metrics}


def _compared(comparison: "Comparison | None") -> tuple[str, str]:
    if comparison is None:
        return "", ""
    return _between(comparison), f"{comparison.wins}/{comparison.losses}/{comparison.ties}"


def _between(comparison: "Comparison") -> str:
    low, high = comparison.interval
    return f"{comparison.difference:+.3f} ({low:+.3f} to {high:+.3f})"


def _show_forgetting(found: "Evaluation") -> None:
    gate = found.forgetting
    if gate is None:
        return
    before = "" if gate.base_passed is None else f", the base {gate.base_passed}"
    perplexity = f"perplexity on general texts {gate.general_perplexity:.2f}"
    base = "" if gate.base_general_perplexity is None else f", the base {gate.base_general_perplexity:.2f}"
    show(f"general instructions followed: {gate.passed} of {gate.instructions}{before}; {perplexity}{base}")
    for prompt in gate.lost:
        show(f"  no longer: {prompt}")


def _show_hardest(found: "Evaluation") -> None:
    rows = [
        (str(row.where), f"{row.loss:.2f}", _number(row.base_loss), _end(row.text), _start(row.answer))
        for row in found.worst_rows[:_ROWS]
    ]
    show_table("the rows with the highest loss", ["row", "loss", "base", "asks", "learns"], rows)


def _show_answers(found: "Evaluation") -> None:
    rows = [
        (
            str(each.where),
            *map(_start, (each.prompt, each.expected, each.answer)),
            *([_start(each.base_answer or "")] if found.base else []),
        )
        for each in found.answers[:_ROWS]
    ]
    show_table("answers", ["row", "asks", "expected", "tuned", *(["base"] if found.base else [])], rows)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _start(text: str) -> str:
    return text if len(text) <= _EXCERPT else f"{text[:_EXCERPT]}…"


def _end(text: str) -> str:
    return text if len(text) <= _EXCERPT else f"…{text[-_EXCERPT:]}"


# --- on tasks ---------------------------------------------------------------------------------------------


def show_task_evaluation(found: "TaskEvaluation") -> None:
    """Each task's figures with the harness's standard errors, and how the harness was checked."""
    has_base = any(each.base is not None for each in found.figures)
    columns = ["task", "shots", "documents", "metric", "tuned", *(["base", "difference (95 %)"] if has_base else [])]
    lines = [_task_line(found, each) for each in found.figures]
    show_table("lm-evaluation-harness", columns, [line[: len(columns)] for line in lines])
    show(found.proof.told())
    if found.path:
        show(f"all of it: {found.path}")


def _task_line(found: "TaskEvaluation", figure: "TaskFigure") -> tuple[str, ...]:
    facts = found.tasks[figure.task]
    of = "" if facts.documents is None or facts.documents == facts.of else f" of {facts.of:,}"
    return (
        figure.task,
        "" if facts.num_fewshot is None else str(facts.num_fewshot),
        "" if facts.documents is None else f"{facts.documents:,}{of}",
        figure.metric if figure.filter == "none" else f"{figure.metric}, {figure.filter}",
        _with_error(figure.tuned, figure.stderr),
        _with_error(figure.base, figure.base_stderr),
        _difference(figure),
    )


def _with_error(value: float | None, stderr: float | None) -> str:
    """The harness's standard error behind ±."""
    return _number(value) if value is None or stderr is None else f"{value:.4g} ± {stderr:.2g}"


def _difference(figure: "TaskFigure") -> str:
    if figure.comparison is None:
        return "" if figure.base is None else f"{figure.tuned - figure.base:+.3f}"
    return _between(figure.comparison)
