"""A run's directory: where everything about one training lies, written so that no reader sees half a file."""

import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from truetune.errors import CheckpointError
from truetune.files import write_json, write_text

Status = Literal["running", "finished", "stopped", "failed"]
Resume = Literal["never", "auto", "newest"]


@dataclass(frozen=True, slots=True)
class RunDirectory:
    """The paths of a run. Nothing is created before `start`."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def record(self) -> Path:
        return self.path / "run.json"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def data_report(self) -> Path:
        return self.path / "data-report.json"

    @property
    def own_data(self) -> Path:
        """Rows that came from Python, kept so that config.yaml can be run again."""
        return self.path / "data.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def adapter(self) -> Path:
        return self.path / "adapter"

    @property
    def model(self) -> Path:
        """The whole model, after full fine-tuning."""
        return self.path / "model"

    def holds_run(self) -> bool:
        return self.record.exists() or any(self.checkpoints.glob("checkpoint-*"))

    def complete_checkpoints(self) -> list[Path]:
        """The checkpoints that hold all they need to go on from, the newest first."""
        found = [path for path in self.checkpoints.glob("checkpoint-*") if not missing_files(path)]
        return sorted(found, key=checkpoint_step, reverse=True)

    def read_record(self) -> dict[str, Any]:
        """run.json. Raises CheckpointError if there is none."""
        try:
            record: dict[str, Any] = json.loads(self.record.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise CheckpointError(f"{self.path} holds no run: run.json is missing") from error
        except ValueError as error:
            raise CheckpointError(f"{self.record} is damaged: {error}") from error
        return record

    def update_record(self, **changes: Any) -> None:
        """Adds to run.json, which is there as a whole at any time."""
        record = self.read_record() if self.record.exists() else {}
        write_json(self.record, {**record, **changes})

    def append_metrics(self, line: Mapping[str, Any]) -> None:
        with self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def read_metrics(self) -> list[dict[str, Any]]:
        """The logged lines, without one that a killed process left half written at the end."""
        if not self.metrics.exists():
            return []
        lines = self.metrics.read_text(encoding="utf-8").split("\n")[:-1]
        return [json.loads(line) for line in lines]

    def forget_metrics_after(self, step: int) -> None:
        """Drops the lines of steps that a resumed run will take again."""
        kept = [line for line in self.read_metrics() if line["step"] <= step]
        write_text(self.metrics, "".join(json.dumps(line) + "\n" for line in kept))

    def clear(self) -> None:
        """Removes what a run wrote here, and nothing else."""
        for file in (self.config, self.record, self.metrics, self.data_report, self.own_data):
            file.unlink(missing_ok=True)
        for folder in (self.checkpoints, self.adapter, self.model, self.path / "tensorboard", self.path / "wandb"):
            shutil.rmtree(folder, ignore_errors=True)


def next_directory(data: str | None, *, root: Path = Path("runs")) -> Path:
    """runs/<data>-<n>, the first n that is free."""
    name = Path(data).stem if data else "run"
    return next(path for n in range(1, 1_000_000) if not (path := root / f"{name}-{n}").exists())


def checkpoint_step(path: Path) -> int:
    """The step in a checkpoint's name."""
    number = path.name.rpartition("-")[2]
    return int(number) if number.isdigit() else -1


def missing_files(checkpoint: Path) -> list[str]:
    """What a checkpoint lacks to be gone on from exactly; Trainer writes trainer_state.json last."""
    weights = ("adapter_model.safetensors", "model.safetensors", "model.safetensors.index.json")
    needed = ("optimizer.pt", "scheduler.pt", "trainer_state.json")
    missing = [name for name in needed if not (checkpoint / name).is_file()]
    if not any((checkpoint / name).is_file() for name in weights):
        missing.append("adapter_model.safetensors or model.safetensors")
    if not any(checkpoint.glob("rng_state*.pth")):
        missing.append("rng_state.pth")
    return missing


def now() -> str:
    """The time, in UTC, as ISO 8601."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
