"""eval --lm-eval: a trained model and its base on tasks of lm-evaluation-harness."""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from truetune.errors import ConfigError

if TYPE_CHECKING:
    from truetune.listener import Listener
    from truetune.pipeline.evaluation.result import Thresholds
    from truetune.pipeline.evaluation.task_result import TaskEvaluation, TaskFigure

_OF_ROWS = ("data", "metrics", "regex", "max_new_tokens", "loss_only", "no_forgetting", "reference")
_OF_TASKS = ("include", "num_fewshot", "batch_size")


def require_fitting(options: argparse.Namespace) -> None:
    """ConfigError for options of `eval` that belong to rows where tasks are asked, or to tasks where rows are."""
    if options.lm_eval is None:
        if given := _given(options, _OF_TASKS):
            raise ConfigError(f"{given} is for tasks of lm-evaluation-harness", hint="name them: --lm-eval arc_easy")
    elif given := _given(options, _OF_ROWS):
        raise ConfigError(
            f"{given} is for rows, and --lm-eval asks tasks", hint="evaluate rows in a command of its own"
        )


def _given(options: argparse.Namespace, names: Sequence[str]) -> str:
    given = [name for name in names if getattr(options, name) != options.parser.get_default(name)]
    return ", ".join(f"--{name.replace('_', '-')}" for name in given)


def measured(options: argparse.Namespace, thresholds: "Thresholds", listener: "Listener") -> "TaskEvaluation":
    from truetune.pipeline.evaluation.tasks import TaskSettings, evaluate_on_tasks

    settings = TaskSettings(
        tasks=tuple(name.strip() for name in options.lm_eval.split(",") if name.strip()),
        limit=options.limit,
        num_fewshot=options.num_fewshot,
        include=Path(options.include) if options.include else None,
        batch_size=options.batch_size,
        compares_base=not options.no_base,
        thresholds=thresholds,
    )
    return evaluate_on_tasks(
        options.run_directory, settings, base_model=options.base, device=options.device, listener=listener
    )


def show(found: "TaskEvaluation") -> None:
    from truetune.console import output

    columns = ["task", "shots", "documents", "metric", "tuned"]
    columns += ["base", "difference (95 %)"] if any(each.base is not None for each in found.figures) else []
    output.show_table("lm-evaluation-harness", columns, list(_lines(found)))
    output.show(found.proof.told())
    if found.path:
        output.show(f"all of it: {found.path}")


def _lines(found: "TaskEvaluation") -> Iterator[tuple[str, ...]]:
    has_base = any(each.base is not None for each in found.figures)
    for each in found.figures:
        facts = found.tasks[each.task]
        of = "" if facts.documents is None or facts.documents == facts.of else f" of {facts.of:,}"
        documents = "" if facts.documents is None else f"{facts.documents:,}{of}"
        shots = "" if facts.num_fewshot is None else str(facts.num_fewshot)
        line = (each.task, shots, documents, _metric(each), _figure(each.tuned, each.stderr))
        yield (*line, _figure(each.base, each.base_stderr), _difference(each)) if has_base else line


def _metric(figure: "TaskFigure") -> str:
    return figure.metric if figure.filter == "none" else f"{figure.metric}, {figure.filter}"


def _figure(value: float | None, stderr: float | None) -> str:
    """The harness's standard error behind ±."""
    if value is None:
        return ""
    return f"{value:.4g}" if stderr is None else f"{value:.4g} ± {stderr:.2g}"


def _difference(figure: "TaskFigure") -> str:
    if figure.comparison is None:
        return "" if figure.base is None else f"{figure.tuned - figure.base:+.3f}"
    low, high = figure.comparison.interval
    return f"{figure.comparison.difference:+.3f} ({low:+.3f} to {high:+.3f})"
