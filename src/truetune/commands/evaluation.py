"""eval: whether the trained model is better than its base, and on which rows it is not."""

import argparse
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from truetune.errors import ConfigError

if TYPE_CHECKING:
    from truetune.listener import Listener
    from truetune.pipeline.evaluation.evaluate import EvaluationSettings
    from truetune.pipeline.evaluation.result import Evaluation, Thresholds

_LIMIT = 100
"""Rows that are answered, unless --limit says otherwise."""


def evaluate(options: argparse.Namespace) -> int:
    """On rows, or on tasks; what becomes of the result is the same."""
    from truetune.commands import tasks
    from truetune.console.evaluations import show_evaluation, show_task_evaluation
    from truetune.console.listener import ConsoleListener
    from truetune.console.output import show_json
    from truetune.files import named_refusals, write_json

    tasks.require_fitting(options)
    thresholds = _thresholds(options)
    on_rows, on_tasks = (_on_rows, show_evaluation), (tasks.measured, show_task_evaluation)
    measured, show = on_rows if options.lm_eval is None else on_tasks
    with closing(ConsoleListener()) as listener:
        found: Any = measured(options, thresholds, listener)
        for missed in found.missed:
            listener.warn(f"threshold missed: {missed}")
    if options.output:
        with named_refusals(Path(options.output)):
            write_json(Path(options.output), found.as_json())
    if options.json:
        show_json(found.as_json())
    else:
        show(found)
    return 1 if found.missed else 0


def _on_rows(options: argparse.Namespace, thresholds: "Thresholds", listener: "Listener") -> "Evaluation":
    from truetune.pipeline.evaluation.evaluate import evaluate_run

    return evaluate_run(
        options.run_directory,
        data=options.data,
        settings=_settings(options, thresholds),
        base_model=options.base,
        device=options.device,
        listener=listener,
    )


def _thresholds(options: argparse.Namespace) -> "Thresholds":
    from truetune.pipeline.evaluation.result import Thresholds

    return Thresholds(_bounds(options.fail_under, "--fail-under"), _bounds(options.fail_over, "--fail-over"))


def _settings(options: argparse.Namespace, thresholds: "Thresholds") -> "EvaluationSettings":
    from truetune.pipeline.evaluation.evaluate import EvaluationSettings

    return EvaluationSettings(
        metrics=tuple(name.strip() for name in options.metrics.split(",") if name.strip()),
        regex=options.regex,
        limit=_LIMIT if options.limit is None else options.limit,
        max_new_tokens=options.max_new_tokens,
        compares_base=not options.no_base,
        generates=not options.loss_only,
        checks_forgetting=not options.no_forgetting,
        reference=Path(options.reference) if options.reference else None,
        thresholds=thresholds,
    )


def _bounds(words: Sequence[str], option: str) -> Mapping[str, float]:
    return dict(_bound(word, option) for words_ in words for word in words_)


def _bound(word: str, option: str) -> tuple[str, float]:
    name, _, value = word.partition("=")
    try:
        return name.strip(), float(value)
    except ValueError:
        raise ConfigError(f"{option} {word}: a figure and a number are expected", hint="exact_match=0.8") from None
