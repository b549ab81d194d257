"""Which validation rows a training is judged by as it answers them, and what is measured of its answers."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from truetune.config.schema import Config
from truetune.data.render import render_prompt
from truetune.data.store import evenly
from truetune.data.templates import Template
from truetune.data.tokenize import tokenize_prompt
from truetune.errors import ConfigError
from truetune.inference.answers import stops_of
from truetune.inference.metrics import Expected, Metric, named_metrics
from truetune.listener import Listener
from truetune.pipeline.evaluation.questions import chosen_metrics
from truetune.pipeline.evaluation.rows import Asked, EvaluationRows
from truetune.training.scored import ScoredRow, ScoredRows


def scored_rows(
    rows: EvaluationRows, *, context_length: int | None, folder: Path, listener: Listener
) -> ScoredRows | None:
    """The rows that `evaluation.generate` asks for: those that `truetune eval` takes, by the same prompts and stops.

    None where it asks for none, or there is none; ConfigError where rows ask for no answer, or metrics do not apply.
    """
    evaluation = rows.config.evaluation
    if not evaluation.generate or evaluation.eval_strategy == "no":
        return None
    if not len(rows.stored):
        listener.warn("evaluation.generate: there are no validation rows to answer")
        return None
    asked = rows.asked(evenly(len(rows.stored), evaluation.generate).tolist())
    template, room = rows.prepared.template, evaluation.generate_max_new_tokens
    scored = tuple(row for each in asked if (row := _scored(each, template, room, context_length)))
    if len(scored) < len(asked):
        listener.warn(
            f"evaluation.generate: {len(asked) - len(scored)} rows are not answered, their prompts leave no room"
        )
    if not scored:
        raise ConfigError(
            "evaluation.generate: no validation row asks for an answer that could be given",
            hint="leave it out: of bare texts the loss alone can be told",
        )
    metrics, reason = _metrics(rows.config, [row.expected for row in scored])
    names = tuple(metric.name for metric in metrics)
    listener.say(
        f"{len(scored)} validation rows are answered at each evaluation, and scored by {', '.join(names)} ({reason})"
    )
    return ScoredRows(scored, names, stops_of(template), folder)


def _scored(asked: Asked, template: Template, room: int, context_length: int | None) -> ScoredRow | None:
    """The row; None where the model could say nothing behind its prompt."""
    prompt = tokenize_prompt(render_prompt(asked.example, template=template), tokenizer=template.tokenizer)
    limit = room if context_length is None else min(room, context_length - len(prompt))
    own = asked.fields.get("id")
    name = own if isinstance(own, str | int) else None
    return ScoredRow(tuple(prompt), limit, asked.expected, asked.prompt, asked.where, name) if limit > 0 else None


def _metrics(config: Config, expected: Sequence[Expected]) -> tuple[list[Metric], str]:
    """What is measured, the figure that decides among it. ConfigError for what says nothing of any of the rows."""
    asked, best = config.evaluation.generate_metrics, config.evaluation.metric_for_best_model
    named: list[str] = [name for name in asked if name != "auto"]
    if best != "eval_loss":
        named.append(best.removeprefix("eval_"))
    metrics, reason = chosen_metrics(expected, named_metrics(named), is_auto="auto" in asked)
    for metric in metrics:
        if not _applies(metric, expected):
            raise ConfigError(
                f"evaluation.generate_metrics: {metric.name} ({metric.meaning}) says nothing of these rows' answers",
                hint="auto takes what fits the rows",
            )
    return metrics, reason


def _applies(metric: Metric, expected: Sequence[Expected]) -> bool:
    """True if the metric has a figure of the expected answers themselves."""
    return bool(np.isfinite(metric.figure(metric.statistics([each.text for each in expected], expected).sum(0))))
