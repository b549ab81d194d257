"""eval --lm-eval: a trained model and its base on tasks of lm-evaluation-harness."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from truetune.errors import ConfigError

if TYPE_CHECKING:
    from truetune.listener import Listener
    from truetune.pipeline.evaluation.result import Thresholds
    from truetune.pipeline.evaluation.task_result import TaskEvaluation

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
