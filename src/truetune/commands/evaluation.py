"""eval: whether the trained model is better than its base, and on which rows it is not."""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from truetune.errors import ConfigError

if TYPE_CHECKING:
    from truetune.inference.bootstrap import Comparison
    from truetune.listener import Listener
    from truetune.pipeline.evaluation.evaluate import EvaluationSettings
    from truetune.pipeline.evaluation.result import Evaluation, Figures, Thresholds

_LIMIT = 100
"""Rows that are answered, unless --limit says otherwise."""
_ROWS = 5
_EXCERPT = 80


def evaluate(options: argparse.Namespace) -> int:
    """On rows, or on tasks; what becomes of the result is the same."""
    from truetune.commands import tasks
    from truetune.console.listener import ConsoleListener
    from truetune.console.output import show_json
    from truetune.files import named_refusals, write_json

    tasks.require_fitting(options)
    thresholds = _thresholds(options)
    measured, show = (_on_rows, _show) if options.lm_eval is None else (tasks.measured, tasks.show)
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


# --- on a terminal ----------------------------------------------------------------------------------------


def _show(found: "Evaluation") -> None:
    from truetune.console.output import show, show_table

    title = f"{found.data}: {found.rows:,} rows, {found.tokens:,} learned tokens, {len(found.answers)} answered"
    columns = ["", "tuned"]
    columns += ["base", "difference (95 %)", "better/worse/alike"] if found.base else []
    columns += ["reference"] if found.reference else []
    show_table(title, columns, list(_lines(found)))
    show(f"metrics: {', '.join(found.metrics) or 'none'} ({found.metrics_reason})")
    _show_forgetting(found)
    show_table(
        "the rows with the highest loss",
        ["row", "loss", "base", "asks", "learns"],
        [
            (str(row.where), f"{row.loss:.2f}", _number(row.base_loss), _end(row.text), _start(row.answer))
            for row in found.worst_rows[:_ROWS]
        ],
    )
    if found.answers:
        _show_answers(found)
    if found.path:
        show(f"all of it: {found.path}")


def _lines(found: "Evaluation") -> Iterator[tuple[str, ...]]:
    tuned, base, reference = (_figures(each) for each in (found.tuned, found.base, found.reference))
    for name, value in tuned.items():
        line = [name, _number(value)]
        if found.base:
            comparison = found.comparison.get(name)
            line += [_number(base.get(name)), *_compared(comparison)]
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
    low, high = comparison.interval
    counts = f"{comparison.wins}/{comparison.losses}/{comparison.ties}"
    return f"{comparison.difference:+.3f} ({low:+.3f} to {high:+.3f})", counts


def _show_forgetting(found: "Evaluation") -> None:
    from truetune.console.output import show

    gate = found.forgetting
    if gate is None:
        return
    before = "" if gate.base_passed is None else f", the base {gate.base_passed}"
    perplexity = f"perplexity on general texts {gate.general_perplexity:.2f}"
    base = "" if gate.base_general_perplexity is None else f", the base {gate.base_general_perplexity:.2f}"
    show(f"general instructions followed: {gate.passed} of {gate.instructions}{before}; {perplexity}{base}")
    for prompt in gate.lost:
        show(f"  no longer: {prompt}")


def _show_answers(found: "Evaluation") -> None:
    from truetune.console.output import show_table

    show_table(
        "answers",
        ["row", "asks", "expected", "tuned", *(["base"] if found.base else [])],
        [
            (
                str(each.where),
                *map(_start, (each.prompt, each.expected, each.answer)),
                *([_start(each.base_answer or "")] if found.base else []),
            )
            for each in found.answers[:_ROWS]
        ],
    )


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _start(text: str) -> str:
    return text if len(text) <= _EXCERPT else f"{text[:_EXCERPT]}…"


def _end(text: str) -> str:
    return text if len(text) <= _EXCERPT else f"…{text[-_EXCERPT:]}"
