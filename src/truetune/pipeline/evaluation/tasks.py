"""`truetune eval --lm-eval`: a model and its base on lm-evaluation-harness's tasks, with proof of what ran."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from truetune.errors import CheckpointError, ConfigError
from truetune.files import write_json, write_text
from truetune.inference.bootstrap import Comparison, compare
from truetune.inference.generate import TrainedModel, load_opened
from truetune.inference.harness import Tasks, ask, asks_as_chat, compare_prompts, load_tasks, require_harness, watched
from truetune.inference.metrics import mean
from truetune.inference.parity import Parity, read_fixtures, replay
from truetune.listener import Listener, LogListener
from truetune.pipeline.doctor.libraries import installed_version, installed_versions
from truetune.pipeline.evaluation.result import Thresholds
from truetune.pipeline.evaluation.rows import Subject, read_subject, require_base
from truetune.pipeline.evaluation.task_result import HarnessProof, Sample, TaskEvaluation, TaskFacts, TaskFigure
from truetune.runs.checkpoints import checkpoint_step
from truetune.runs.directory import now
from truetune.runs.evaluations import OF_TASKS

if TYPE_CHECKING:
    from truetune.inference.harness_model import WatchedModel


@dataclass(frozen=True, slots=True)
class TaskSettings:
    """Which tasks, groups or tags are asked, and how. `limit` documents of each (None: all), `batch_size` at a time.

    `num_fewshot` is how many examples are shown before, unless a task forbids it (None: as each task asks for);
    `include` is a folder of tasks of one's own.
    """

    tasks: tuple[str, ...]
    limit: int | None = None
    num_fewshot: int | None = None
    include: Path | None = None
    batch_size: int = 1
    compares_base: bool = True
    thresholds: Thresholds = field(default_factory=Thresholds)


def evaluate_on_tasks(
    path: str | Path,
    settings: TaskSettings,
    *,
    base_model: str | None = None,
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    listener: Listener | None = None,
) -> TaskEvaluation:
    """Asks a run's model, and its base, the harness's tasks by the prompts and the stops of its training.

    What is wrong with the command, the tasks or their data is told before weights load. Raises ConfigError,
    DataError, CheckpointError (also for a model that does not give its recorded answers) or BackendError; a
    threshold that is missed raises nothing (`missed`). The result is stored in the run, under evaluations/lm-eval/.
    """
    listener = listener or LogListener()
    require_harness()
    _require_sense(settings)
    subject = read_subject(path, base_model=base_model, listener=listener)
    if settings.compares_base and not subject.opened.has_base:
        listener.say(f"{subject.opened.source.name} is a base itself: there is none to compare it with")
        settings = replace(settings, compares_base=False)
    if settings.compares_base:
        require_base(subject)
    tasks = load_tasks(settings.tasks, include=settings.include, num_fewshot=settings.num_fewshot)
    settings.thresholds.require_known(tasks.figures)
    trained = load_opened(subject.opened, device=device)
    return _stored(_Asking(trained, subject, tasks, settings, listener).run(), subject)


def _require_sense(settings: TaskSettings) -> None:
    if not settings.tasks:
        raise ConfigError("--lm-eval: no task is named", hint="--lm-eval arc_easy,gsm8k")
    for name, value, least in (
        ("--limit", settings.limit, 1),
        ("--num-fewshot", settings.num_fewshot, 0),
        ("--batch-size", settings.batch_size, 1),
    ):
        if value is not None and value < least:
            raise ConfigError(f"{name} must be at least {least} (got {value})")


def _recorded_answers(model: Any, subject: Subject) -> Parity | None:
    """What the model makes of the recorded prompts; None where none were. CheckpointError if it is another."""
    folder = Path(subject.opened.source.path)
    is_whole_run = subject.run is not None and checkpoint_step(folder) < 0
    fixtures = read_fixtures(subject.run.path if subject.run and is_whole_run else folder)
    if fixtures is None:
        return None
    found = replay(model, fixtures)
    if not found.is_same:
        raise CheckpointError(
            f"{subject.opened.source.name} does not answer as it did when it was trained: {found.first_difference}",
            hint="truetune verify RUN tells which part of the run has changed",
        )
    return found


# --- asking -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Asking:
    """The tasks, asked of a loaded model and its base."""

    trained: TrainedModel
    subject: Subject
    tasks: Tasks
    settings: TaskSettings
    listener: Listener

    def run(self) -> TaskEvaluation:
        model = self._watched(self.trained, "tuned")
        answers = _recorded_answers(model.model, self.subject)  # Behind the harness's own preparations.
        tuned = self._asked(model)
        prompts = compare_prompts(model, self.trained.prompts, as_chat=self._as_chat)
        base, moved = self._base(model)
        proof = HarnessProof(answers, moved, prompts, model.cut)
        for warning in proof.warnings():
            self.listener.warn(warning)
        figures = tuple(_figures(tuned, base))
        return TaskEvaluation(
            tasks={name: _facts(tuned, name) for name in tuned["results"]},
            figures=figures,
            samples=tuple(_samples(tuned, base)),
            proof=proof,
            missed=tuple(self.settings.thresholds.missed({each.name: each.tuned for each in figures})),
            record=self._record(),
        )

    @property
    def _as_chat(self) -> bool:
        return asks_as_chat(self.trained)

    def _watched(self, trained: TrainedModel, name: str) -> "WatchedModel":
        def tell(kind: str, done: int, total: int) -> None:
            self.listener.progress(f"{name}: {kind}", done, total)

        return watched(trained, batch_size=self.settings.batch_size, tell=tell)

    def _asked(self, model: "WatchedModel") -> dict[str, Any]:
        return ask(model, self.tasks, self.trained.prompts, limit=self.settings.limit, as_chat=self._as_chat)

    def _base(self, tuned: "WatchedModel") -> tuple[dict[str, Any] | None, float | None]:
        """What the base makes of the tasks, and how far its logits are off; of an adapter the second in any case."""
        first = next((sent.ids for sent in tuned.sent.values()), None)
        mine: Any = None if first is None else tuned.next_logits(first)
        if self.settings.compares_base:
            with self.trained.without_adapter() as trained:
                model = self._watched(trained, "base")
                return self._asked(model), _distance(mine, model, first)
        if not self.subject.opened.is_adapter:
            return None, None
        with self.trained.model.disable_adapter():
            return None, _distance(mine, tuned, first)

    def _record(self) -> dict[str, Any]:
        model, settings = self.trained.model, self.settings
        return {
            "time": now(),
            "weights": self.subject.opened.source.path,
            "settings": {**asdict(settings), "include": settings.include and str(settings.include)},
            "as_chat": self._as_chat,
            "device": model.device.type,
            "dtype": str(model.dtype).removeprefix("torch."),
            "versions": {**installed_versions(), "lm-eval": installed_version("lm-eval")},
        }


def _distance(logits: Any, model: "WatchedModel", ids: Sequence[int] | None) -> float | None:
    """By how much a model's logits behind the ids differ at most; None where no prompt was sent."""
    return None if ids is None else float((logits - model.next_logits(ids)).abs().max())


# --- what the harness found -------------------------------------------------------------------------------


def _figures(tuned: Mapping[str, Any], base: Mapping[str, Any] | None) -> Iterator[TaskFigure]:
    for task, found in tuned["results"].items():
        others = base["results"][task] if base else {}
        for metric, name in _metrics(found):
            key, error = f"{metric},{name}", f"{metric}_stderr,{name}"
            higher = (tuned["higher_is_better"].get(task) or {}).get(metric)
            yield TaskFigure(
                task=task,
                metric=metric,
                filter=name,
                tuned=float(found[key]),
                stderr=_number(found.get(error)),
                base=_number(others.get(key)),
                base_stderr=_number(others.get(error)),
                higher_is_better=higher,
                comparison=_comparison(tuned, base, task, (metric, name), is_better_higher=higher is not False),
            )


def _metrics(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The metric and the filter of each figure: the harness's keys are "acc,none" and "acc_stderr,none"."""
    for key, value in found.items():
        metric, comma, name = key.partition(",")
        if comma and not metric.endswith("_stderr") and _number(value) is not None:
            yield metric, name


def _number(value: Any) -> float | None:
    """A figure; None for "N/A", which the harness writes, and for what is no number."""
    is_number = isinstance(value, int | float | np.number) and math.isfinite(value)
    return float(value) if is_number else None


def _comparison(
    tuned: Mapping[str, Any],
    base: Mapping[str, Any] | None,
    task: str,
    key: tuple[str, str],
    *,
    is_better_higher: bool,
) -> Comparison | None:
    """Tuned less base, row by row; None for a figure that is no mean over rows (a group's, an F1, a perplexity)."""
    if base is None:
        return None
    mine, others = _row_values(tuned, task, *key), _row_values(base, task, *key)
    if mine is None or others is None or len(mine) != len(others):
        return None
    return compare(_as_mean(mine), _as_mean(others), mean, higher_is_better=is_better_higher)


def _row_values(found: Mapping[str, Any], task: str, metric: str, name: str) -> Any:
    rows = [each for each in found["samples"].get(task, ()) if each["filter"] == name and metric in each]
    with suppress(TypeError, ValueError):
        values = np.array([each[metric] for each in rows], dtype=np.float64)
        if (
            values.ndim == 1
            and len(values)
            and math.isclose(values.mean(), found["results"][task][f"{metric},{name}"], abs_tol=1e-9)
        ):
            return values
    return None


def _as_mean(values: Any) -> Any:
    """The statistics of a mean."""
    return np.stack([values, np.ones(len(values))], axis=1)


def _facts(found: Mapping[str, Any], task: str) -> TaskFacts:
    counts = found["n-samples"].get(task) or {}
    return TaskFacts(
        num_fewshot=found["n-shot"].get(task),
        documents=counts.get("effective"),
        of=counts.get("original"),
        version=found["versions"].get(task),
    )


def _samples(tuned: Mapping[str, Any], base: Mapping[str, Any] | None) -> Iterator[Sample]:
    for task, rows in tuned["samples"].items():
        others = base["samples"][task] if base else [None] * len(rows)
        for mine, other in zip(rows, others, strict=True):
            yield Sample(
                task=task,
                filter=mine["filter"],
                document=mine["doc_id"],
                prompt=mine["arguments"][0][0],
                target=mine["target"],
                tuned=mine["filtered_resps"],
                scores=_scores(mine),
                base=other and other["filtered_resps"],
                base_scores=other and _scores(other),
            )


def _scores(row: Mapping[str, Any]) -> dict[str, Any]:
    names: Sequence[str] = row["metrics"]
    return {name: row[name] for name in names}


# --- the store --------------------------------------------------------------------------------------------


def _stored(found: TaskEvaluation, subject: Subject) -> TaskEvaluation:
    """The evaluation with its place in the run: evaluations/lm-eval/<tasks>-<n>.json, and its samples beside it."""
    asked = found.record["settings"]["tasks"]
    path = subject.place("+".join(asked).replace("/", "-")[:80], under=OF_TASKS)
    if path is None:
        return found
    lines = (json.dumps(asdict(each), ensure_ascii=False, default=str) + "\n" for each in found.samples)
    write_text(path.with_suffix(".samples.jsonl"), "".join(lines))
    found = replace(found, path=path)
    write_json(path, found.as_json())
    return found
