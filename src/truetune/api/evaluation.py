"""What a trained model is worth: evaluate, evaluate_tasks."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from truetune.api.inputs import Data, directory_of, path_of
from truetune.errors import ConfigError
from truetune.listener import Listener
from truetune.pipeline.evaluation.evaluate import EvaluationSettings, evaluate_run
from truetune.pipeline.evaluation.result import Evaluation, Thresholds
from truetune.pipeline.evaluation.task_result import TaskEvaluation
from truetune.pipeline.evaluation.tasks import TaskSettings, evaluate_on_tasks
from truetune.pipeline.run import Run
from truetune.pipeline.stages import Formatting


def evaluate(
    run: Run | str | Path,
    *,
    data: Data | None = None,
    formatting: Formatting | None = None,
    metrics: str | Sequence[str] = "auto",
    regex: str | None = None,
    limit: int = 100,
    max_new_tokens: int = 256,
    compare_base: bool = True,
    generate: bool = True,
    forgetting: bool = True,
    reference: str | Path | None = None,
    fail_under: Mapping[str, float] | None = None,
    fail_over: Mapping[str, float] | None = None,
    base_model: str | None = None,
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    listener: Listener | None = None,
) -> Evaluation:
    """Loss, perplexity and answers of a run's model beside its base's, on `data` or on the run's validation rows.

    `run` is also a folder of weights, or "RUN@STEP". `metrics` are of the last answers of up to `limit` rows, by
    default those that fit the rows; `forgetting` asks general instructions as well; `reference` is a file of another
    model's answers. A figure outside `fail_under` and `fail_over` is told in the result's `missed`, and not raised.
    The result is stored in the run's directory too. Raises ConfigError, DataError, BackendError or CheckpointError.
    """
    path = path_of(data)
    if isinstance(path, list):
        raise ConfigError("data: one path is expected, or rows")
    settings = EvaluationSettings(
        metrics=(metrics,) if isinstance(metrics, str) else tuple(metrics),
        regex=regex,
        limit=limit,
        max_new_tokens=max_new_tokens,
        compares_base=compare_base,
        generates=generate,
        checks_forgetting=forgetting,
        reference=None if reference is None else Path(reference),
        thresholds=Thresholds(fail_under or {}, fail_over or {}),
    )
    return evaluate_run(
        directory_of(run),
        data=path,
        rows=None if path else data,  # type: ignore[arg-type]
        formatting=formatting,
        settings=settings,
        base_model=base_model,
        device=device,
        listener=listener,
    )


def evaluate_tasks(
    run: Run | str | Path,
    tasks: str | Sequence[str],
    *,
    limit: int | None = None,
    num_fewshot: int | None = None,
    include: str | Path | None = None,
    batch_size: int = 1,
    compare_base: bool = True,
    fail_under: Mapping[str, float] | None = None,
    fail_over: Mapping[str, float] | None = None,
    base_model: str | None = None,
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    listener: Listener | None = None,
) -> TaskEvaluation:
    """Figures of lm-evaluation-harness's tasks for a run's model beside its base's, with proof of what was asked.

    `limit` is of each task's documents, `num_fewshot` the examples shown, `include` a folder of tasks of one's own.
    A figure outside `fail_under` and `fail_over` ("arc_easy.acc") is told in the result's `missed`, and not raised.
    The result is stored in the run's directory too. Raises ConfigError, DataError, BackendError or CheckpointError.
    """
    settings = TaskSettings(
        tasks=(tasks,) if isinstance(tasks, str) else tuple(tasks),
        limit=limit,
        num_fewshot=num_fewshot,
        include=None if include is None else Path(include),
        batch_size=batch_size,
        compares_base=compare_base,
        thresholds=Thresholds(fail_under or {}, fail_over or {}),
    )
    directory = directory_of(run)
    return evaluate_on_tasks(directory, settings, base_model=base_model, device=device, listener=listener)
