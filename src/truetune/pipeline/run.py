"""A run as it stands in its directory."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from truetune.config.load import load_config
from truetune.config.schema import Config
from truetune.errors import CheckpointError
from truetune.runs.directory import RunDirectory


@dataclass(frozen=True, slots=True, repr=False)
class Run:
    """A training run: `adapter` is the folder of its weights (of the whole model after full fine-tuning).

    `best_metric` is the best value of `metric_for_best_model`, at `best_step`, whether or not its weights were kept.
    """

    directory: Path
    config: Config
    status: str
    steps: int
    final_loss: float | None
    eval_loss: float | None
    adapter: Path | None
    stopped_by: str | None = None
    metric_for_best_model: str | None = None
    best_metric: float | None = None
    best_step: int | None = None

    def __repr__(self) -> str:
        """In a line: the whole config would fill a screen."""
        losses = {"final_loss": self.final_loss, "eval_loss": self.eval_loss}
        told = "".join(f", {name}={loss:.4g}" for name, loss in losses.items() if loss is not None)
        return f"Run({str(self.directory)!r}, {self.status}, {self.steps} steps{told})"

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The logged lines, in order: step, loss, learning_rate, grad_norm …"""
        return RunDirectory(self.directory).read_metrics()

    @property
    def losses(self) -> list[float]:
        """The logged training losses, in order."""
        return [line["loss"] for line in self.metrics if "loss" in line]


def open_run(path: str | Path) -> Run:
    """The run in a directory, as its run.json has it. CheckpointError if there is none."""
    directory = RunDirectory(Path(path))
    record = directory.read_record()
    return run_of(directory, record, load_config(directory.config).config)


def run_of(directory: RunDirectory, record: Mapping[str, Any], config: Config) -> Run:
    """The run of a record, as run.json has it."""
    adapter, status = record.get("adapter"), record.get("status")
    if not isinstance(status, str) or not isinstance(adapter, str | None):
        raise CheckpointError(f"{directory.record} is damaged: its status is {status!r}, its adapter {adapter!r}")
    return Run(
        directory=directory.path,
        config=config,
        status=status,
        steps=record.get("steps", 0),
        final_loss=record.get("final_loss"),
        eval_loss=record.get("eval_loss"),
        adapter=directory.path / adapter if adapter else None,
        stopped_by=record.get("stopped_by"),
        metric_for_best_model=record.get("metric_for_best_model"),
        best_metric=record.get("best_metric"),
        best_step=record.get("best_step"),
    )
