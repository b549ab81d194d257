"""`truetune find-lr`: a range test of the learning rate, on the run's own rows, model, batch and precision."""

import math
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from truetune.config.schema import Config
from truetune.errors import BackendError, ConfigError
from truetune.listener import Listener, LogListener
from truetune.pipeline.backends import open_session
from truetune.pipeline.check import prepare_for
from truetune.pipeline.job import train_job
from truetune.pipeline.machine import Machine, ask_machine, model_request
from truetune.pipeline.plan import plan_run, plan_without_packs
from truetune.pipeline.prepare import PreparedDataset
from truetune.pipeline.stages import Formatting, require_rows
from truetune.planning.hyperparameters import learning_rate, learning_rate_warning
from truetune.planning.range_test import (
    LEAST_STEPS,
    Curve,
    Reading,
    default_steps,
    draw_curve,
    is_lost,
    read_curve,
    rising_rates,
)
from truetune.training.job import TrainJob, TrainResult
from truetune.training.session import Session, Tracking, TrainingRows

if TYPE_CHECKING:
    from truetune.training.range_test import RisingRate

_CLOSE = 3.0
"""Rates within this factor of each other are one to a range test."""


@dataclass(frozen=True, slots=True)
class RangeTest:
    """What a range test found: the curve, what it says, and `configured`, the rate that the run would use.

    `notes` are its comparisons and limits; `held` is what was held fixed; `stopped_by` names a signal.
    """

    curve: Curve
    reading: Reading
    configured: float
    held: Mapping[str, Any]
    notes: tuple[str, ...]
    stopped_by: str | None

    @property
    def suggestion(self) -> float | None:
        return self.reading.suggestion

    @property
    def setting(self) -> str | None:
        """The suggestion as `truetune train` takes it."""
        return None if self.suggestion is None else f"training.learning_rate={self.suggestion:g}"

    def as_json(self) -> dict[str, Any]:
        """JSON has no NaN: a loss that is none is null."""
        points = [
            {
                "learning_rate": point.learning_rate,
                "loss": _finite(point.loss),
                "smoothed_loss": _finite(point.smoothed_loss),
            }
            for point in self.curve.points
        ]
        return {
            "points": points,
            "start_loss": _finite(self.curve.start),
            "suggestion": self.suggestion,
            "setting": self.setting,
            "steepest": self.reading.steepest,
            "lowest": self.reading.lowest,
            "diverged_at": self.curve.diverged_at,
            "configured": self.configured,
            "reason": self.reading.reason,
            "notes": list(self.notes),
            "held": dict(self.held),
            "stopped_by": self.stopped_by,
        }


def find_learning_rate(
    config: Config,
    *,
    rows: Iterable[Mapping[str, Any]] | None = None,
    formatting: Formatting | None = None,
    steps: int | None = None,
    listener: Listener | None = None,
) -> RangeTest:
    """Trains for so many steps, each at a higher rate, and throws the weights away. Leaves nothing but prepared rows.

    The engine is TRL's. Raises ConfigError, DataError or BackendError, as training does.
    """
    listener = listener or LogListener()
    if steps is not None and steps < LEAST_STEPS:
        raise ConfigError(f"steps must be at least {LEAST_STEPS} (got {steps}): fewer make no curve")
    require_rows(config.data, rows)
    config = _for_a_test(config, listener)
    machine = ask_machine(config, listener, has_callbacks=True)
    if machine.num_processes > 1:
        raise BackendError(
            f"a range test takes one process, and this run has {machine.num_processes}",
            hint="try training.num_processes=1, with an accumulation that gives as many rows a step",
        )
    prepared = prepare_for(machine, config, source=rows, formatting=formatting, listener=listener)
    return _RangeTraining(config, machine, prepared, listener).run(steps)


def _for_a_test(config: Config, listener: Listener) -> Config:
    """The config on TRL and without trackers: what sets the rate cannot reach Unsloth's process."""
    if config.training.backend == "unsloth":
        listener.warn(
            "training.backend: the test runs on trl, since nothing can set the rate in Unsloth's process; both "
            "engines train on the same tokens and loss, so that what is found holds for unsloth"
        )
    training = config.training.model_copy(update={"backend": "trl"})
    logging = config.logging.model_copy(update={"report_to": []})
    return config.model_copy(update={"training": training, "logging": logging})


class _RangeTraining:
    """One test, from prepared rows to a curve."""

    def __init__(self, config: Config, machine: Machine, prepared: PreparedDataset, listener: Listener) -> None:
        self.config = config
        self.machine = machine
        self.prepared = prepared
        self.listener = listener
        self.plan = plan_run(config, machine=machine, prepared=prepared)

    def run(self, steps: int | None) -> RangeTest:
        with tempfile.TemporaryDirectory(prefix="truetune-") as folder:
            session = open_session(
                self.machine.backend,
                device=self.machine.device,
                directory=Path(folder),
                listener=self.listener,
                write_metrics=lambda _: None,
            )
            try:
                return self._train(session, Path(folder), isolates=self._load(session), steps=steps)
            finally:
                session.close()

    def _load(self, session: Session) -> bool:
        """Loads the model; True if it keeps concatenated rows apart. Else rows are padded, as in training."""
        self.listener.say(f"loading {self.machine.source.name} on {self.machine.device}")
        max_length = self.prepared.report.stats["max_length"]
        model = session.load(model_request(self.plan.config, self.machine, max_length=max_length))
        if not model.isolates:
            self.plan = plan_without_packs(self.config, self.machine, self.prepared, self.listener)
        return model.isolates

    def _train(self, session: Session, folder: Path, *, isolates: bool, steps: int | None) -> RangeTest:
        from truetune.training.range_test import RisingRate

        rates = rising_rates(self._around(), steps or default_steps(self.plan.steps.steps_per_epoch))
        self._tell(rates)
        job = train_job(self.plan, machine=self.machine, checkpoints=folder, is_padding_free=isolates)
        lost = partial(is_lost, steps=len(rates))
        rising = RisingRate(rates, is_over=lost)
        rows = TrainingRows(self.plan.sequences, [], self.machine.tokenizer)
        result = _train_rising(session, range_job(job, steps=len(rates)), rows, folder, rising)
        curve = draw_curve(rates, rising.losses, diverged=result is None or lost(rising.losses))
        stopped_by = result.stopped_by if result else None
        reading = _unfinished(stopped_by) if stopped_by else read_curve(curve)
        return RangeTest(curve, reading, self.configured, self._held(), self._notes(curve, reading), stopped_by)

    @property
    def configured(self) -> float:
        return float(self.plan.config.training.learning_rate)

    def _around(self) -> tuple[float, float]:
        """The run's rate and that of the rules: the test shows both, whatever the config says."""
        rule = learning_rate(
            method=self.config.adapter.method,
            parameters=self.machine.parameters,
            is_quantized=self.machine.quantization != "none",
        )
        return self.configured, float(rule.value)

    def _tell(self, rates: list[float]) -> None:
        self.listener.say(
            f"{len(rates)} learning rates from {rates[0]:.1e} to {rates[-1]:.1e}, a step of "
            f"{self.plan.steps.effective_batch_size} sequences at each; from a hundredth of the lowest to a hundred "
            f"times the highest of {_list(self._around())}, the run's rate and the rules'"
        )

    def _held(self) -> dict[str, Any]:
        training, adapter = self.plan.config.training, self.plan.config.adapter
        rank = {"r": adapter.r, "lora_alpha": adapter.lora_alpha} if adapter.method == "lora" else {}
        return {
            "method": adapter.method,
            **rank,
            "backend": self.machine.backend,
            "precision": self.machine.precision,
            "effective_batch_size": self.plan.steps.effective_batch_size,
            "packing": self.plan.is_packed,
            "optim": training.optim,
            "weight_decay": training.weight_decay,
            "max_grad_norm": training.max_grad_norm,
            "warmup_steps": 0,
            "seed": training.seed,
        }

    def _notes(self, curve: Curve, reading: Reading) -> tuple[str, ...]:
        notes = []
        if reading.suggestion is not None:
            notes.append(compared(reading.suggestion, self.configured))
        if (edge := curve.diverged_at) and self.configured * _CLOSE > edge:
            notes.append(
                f"the run's own rate, {self.configured:g}, is near or above {edge:.1e}, where training broke"
            )
        if reading.suggestion is not None and (warning := self._warning(reading.suggestion)):
            notes.append(warning)
        passes = len(curve.points) / self.plan.steps.steps_per_epoch
        if passes > 1:
            notes.append(f"the rows were read {passes:.1f} times: some of the fall is rows learned by heart")
        notes.append(
            f"a rough guide: {len(curve.points)} steps, one at each rate; no rate had time to show what it does to a "
            "whole run, or to validation rows: where it matters, train with two rates and compare"
        )
        return tuple(notes)

    def _warning(self, rate: float) -> str | None:
        method, parameters = self.config.adapter.method, self.machine.parameters
        return learning_rate_warning(method=method, value=rate, parameters=parameters)


def range_job(job: TrainJob, *, steps: int) -> TrainJob:
    """The run's job as a test of so many rates: one more step, which reads the loss that the last rate left.

    No warm-up, no schedule, no validation, no checkpoint, nothing compiled; all else is the run's.
    """
    return replace(
        job,
        max_steps=steps + 1,
        lr_scheduler_type="constant",
        warmup_steps=0,
        eval_strategy="no",
        load_best_model_at_end=False,
        early_stopping_patience=None,
        save_strategy="no",
        torch_compile=False,
        strategy="ddp",
        logging_steps=1,
    )


def _train_rising(
    session: Session, job: TrainJob, rows: TrainingRows, folder: Path, rising: "RisingRate"
) -> TrainResult | None:
    """Trains until the rates or the losses end it; None where the engine gave up, which is an end like another."""
    try:
        return session.train(job, rows, Tracking(folder), [rising])
    except BackendError:
        if not rising.is_broken:
            raise
        return None


def _unfinished(signal: str) -> Reading:
    """Half a curve seems to fall for ever."""
    return Reading(None, None, None, f"{signal} stopped the test before the curve was whole")


def compared(suggestion: float, configured: float) -> str:
    """What the suggestion means for the rate that the run would use."""
    factor = suggestion / configured
    if 1 / _CLOSE <= factor <= _CLOSE:
        return f"the run's own rate, {configured:g}, is within a factor of {_CLOSE:g}: nothing speaks against it"
    side = f"{factor:.2g} times" if factor > 1 else f"a {1 / factor:.2g}th of"
    return f"that is {side} the run's own rate, {configured:g}"


def _list(rates: Iterable[float]) -> str:
    return " and ".join(dict.fromkeys(f"{rate:g}" for rate in rates))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
