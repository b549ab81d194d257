"""A plan without rows: what training this model so takes on rows of the longest length that it may be given."""

from dataclasses import asdict, dataclass
from typing import Any

from truetune.config.schema import Config
from truetune.listener import Listener
from truetune.pipeline.deployment import serving_warnings
from truetune.pipeline.fitting import Change, fitting_changes
from truetune.pipeline.machine import Place, ask_machine
from truetune.pipeline.plan import decided_without_rows
from truetune.pipeline.read_machine import read_machine
from truetune.pipeline.workload import Longest, memory_of, memory_of_files
from truetune.planning.disk import run_bytes
from truetune.planning.hyperparameters import Choice
from truetune.planning.memory import Memory

_NEEDS_ROWS = (
    "total_steps",
    "steps_per_epoch",
    "warmup_steps",
    "sequences",
    "tokens",
    "supervised_tokens",
    "seconds",
)


@dataclass(frozen=True, slots=True)
class Outline:
    """What is known of a run whose rows are not: memory at `length` tokens a row, a checkpoint's bytes, settings."""

    config: Config
    device: str
    length: int
    memory: Memory
    free_memory: int | None
    checkpoint_bytes: int
    choices: tuple[Choice, ...]
    changes: tuple[Change, ...] | None
    warnings: tuple[str, ...]

    @property
    def fits(self) -> bool | None:
        """Whether the estimated peak fits what is free; None where that is not known."""
        return None if self.free_memory is None else self.memory.peak <= self.free_memory

    def as_json(self) -> dict[str, Any]:
        """As a Forecast's, null where it needs rows."""
        return {
            **dict.fromkeys(_NEEDS_ROWS),
            "max_length": self.length,
            "per_device_train_batch_size": self.config.training.per_device_train_batch_size,
            "device": self.device,
            "memory": {"peak_bytes": self.memory.peak, "parts": self.memory.parts, "free_bytes": self.free_memory},
            "fits": self.fits,
            "changes": None if self.changes is None else [change.as_json() for change in self.changes],
            "disk_bytes": self.checkpoint_bytes,
            "settings": [asdict(choice) for choice in self.choices],
            "warnings": list(self.warnings),
        }


def outline_run(config: Config, *, place: Place | None, listener: Listener) -> Outline:
    """The outline, from the model's configuration alone: no tokenizer and no weights are loaded."""
    machine = read_machine(config, listener, place=place)
    machine = machine or ask_machine(config, listener, place=place, with_tokenizer=False)
    length = min(config.data.max_length, machine.facts.context_length or config.data.max_length)
    longest = Longest(length, length)
    config, choices = decided_without_rows(config, machine, longest)
    memory = memory_of(config, machine, longest)
    return Outline(
        config=config,
        device=named_place(config, place) if place else machine.device,
        length=length,
        memory=memory,
        free_memory=machine.free_memory,
        checkpoint_bytes=run_bytes(memory_of_files(config, machine, longest), checkpoints=1),
        choices=choices,
        changes=fitting_changes(config, machine, longest, [longest.row]),
        warnings=serving_warnings(config, machine.facts, machine.shape),
    )


def named_place(config: Config, place: Place) -> str:
    """The place as people are told of it; of several devices with how they hold the model together."""
    return place.name if place.num_processes == 1 else f"{place.name} ({config.training.strategy.upper()})"
