"""`truetune plan --probe`: some steps of the run itself, at its largest and its usual batch, timed and weighed."""

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from truetune.data.examples import Packed, Tokenized
from truetune.errors import BackendError
from truetune.listener import Listener, StepEvent
from truetune.pipeline.backends import open_session
from truetune.pipeline.job import train_job
from truetune.pipeline.machine import Machine, model_request
from truetune.pipeline.plan import RunPlan
from truetune.pipeline.prepare import PreparedDataset
from truetune.planning.timing import Probed, Timed, spread
from truetune.training.job import TrainJob
from truetune.training.session import Session, Tracking, TrainingRows

_STEPS = 4
"""The largest and the usual batch in turns: each warms up once, and is timed the second time."""

_EVALUATED = 4
"""Batches of validation rows that are evaluated."""


@dataclass
class _Clock:
    """A listener that notes when steps and evaluations end, and passes on what is said."""

    listener: Listener
    steps: list[float] = field(default_factory=list)
    evaluated: float | None = None

    def say(self, message: str) -> None:
        pass

    def warn(self, message: str) -> None:
        self.listener.warn(message)

    def progress(self, stage: str, done: int, total: int | None) -> None:
        if stage == "evaluating" and done == total:
            self.evaluated = time.perf_counter()

    def step(self, event: StepEvent) -> None:
        self.steps.append(time.perf_counter())
        self.listener.progress("probing", len(self.steps), _STEPS)


def probe_run(plan: RunPlan, *, machine: Machine, prepared: PreparedDataset, listener: Listener) -> Probed:
    """What real steps of the planned run take here. Loads the weights, trains them for four steps, keeps nothing.

    Raises BackendError as training does, where memory runs out too.
    """
    if machine.num_processes > 1:
        raise BackendError(
            f"a probe trains in one process, and this run has {machine.num_processes}",
            hint="plan without --probe, or probe with training.num_processes=1",
        )
    clock = _Clock(listener)
    with tempfile.TemporaryDirectory(prefix="truetune-") as folder:
        session = open_session(
            machine.backend,
            device=machine.device,
            directory=Path(folder),
            listener=clock,
            write_metrics=lambda _: None,
        )
        try:
            return _probed(session, clock, plan, machine, prepared, Path(folder))
        finally:
            session.close()


def _probed(
    session: Session, clock: _Clock, plan: RunPlan, machine: Machine, prepared: PreparedDataset, folder: Path
) -> Probed:
    clock.listener.say(f"probing: {_STEPS} steps of {machine.source.name} on {machine.device}")
    began = time.perf_counter()
    max_length = prepared.report.stats["max_length"]
    model = session.load(model_request(plan.config, machine, max_length=max_length))
    loaded = time.perf_counter()
    groups = _groups(plan)
    rows = TrainingRows(
        [plan.sequences[place] for group in groups for place in group],
        _some(prepared.validation, plan),
        machine.tokenizer,
    )
    job = train_job(plan, machine=machine, checkpoints=folder, is_padding_free=model.isolates)
    result = session.train(_probe_job(job, plan), rows, Tracking(folder), [])
    ended = time.perf_counter()
    tokens = [sum(_tokens(plan.sequences[place]) for place in group) for group in groups]
    return replace(
        _read(clock, tokens * (_STEPS // len(groups)), ended - result.seconds, ended, rows.validation),
        loading=loaded - began,
        peak_bytes=result.peak_memory_bytes,
    )


def _groups(plan: RunPlan) -> list[list[int]]:
    """The places of each step's sequences: largest, usual, largest, usual; of fewer than a step all, every time."""
    lengths = [_tokens(each) for each in plan.sequences]
    size = plan.steps.effective_batch_size
    if len(lengths) <= size:
        return [list(range(len(lengths)))]
    largest = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)[:size]
    usual = [spread(lengths, size, offset=offset) for offset in (0.25, 0.75)]
    return [largest, usual[0], largest, usual[1]]


def _tokens(sequence: Tokenized | Packed) -> int:
    return len(sequence.input_ids)


def _some(validation: Sequence[Tokenized], plan: RunPlan) -> Sequence[Tokenized]:
    """Some batches of validation rows, of all lengths; none where the run evaluates none."""
    if not plan.amount.evaluations:
        return []
    config = plan.config
    size = config.evaluation.per_device_eval_batch_size or int(config.training.per_device_train_batch_size)
    lengths = [_tokens(row) for row in validation]
    return [validation[place] for place in spread(lengths, min(len(lengths), _EVALUATED * size), offset=0.5)]


def _probe_job(job: TrainJob, plan: RunPlan) -> TrainJob:
    """The run's job for a few steps in the rows' order, evaluated (by loss) and saved at the end if the run is."""
    last: Mapping[str, Any] = {"eval_steps": _STEPS, "save_steps": _STEPS}
    return replace(
        job,
        max_steps=_STEPS,
        warmup_steps=0,
        is_shuffled=False,
        eval_strategy="steps" if plan.amount.evaluations else "no",
        save_strategy="steps" if plan.amount.checkpoints else "no",
        load_best_model_at_end=False,
        early_stopping_patience=None,
        metric_for_best_model="eval_loss",
        logging_steps=1,
        report_to=(),
        **last,
    )


def _read(
    clock: _Clock, tokens: Sequence[int], began: float, ended: float, validation: Sequence[Tokenized]
) -> Probed:
    """What the clock's notes say of a training between two moments; the first step has what warms up before it.

    The training begins where run.json's `seconds` do: the trainer has been built.
    """
    first, *others = [after - before for before, after in zip([began, *clock.steps], clock.steps, strict=False)]
    evaluated = clock.evaluated if clock.evaluated and clock.evaluated > clock.steps[-1] else None
    return Probed(
        first=Timed(tokens[0], first),
        largest=Timed(tokens[2], others[1]),
        usual=Timed(tokens[3], others[2]),
        evaluation=Timed(sum(map(_tokens, validation)), evaluated - clock.steps[-1]) if evaluated else None,
        saving=ended - (evaluated or clock.steps[-1]),
        loading=0.0,
        peak_bytes=0,
    )
