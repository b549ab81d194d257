"""What a training that is measured is given and gives back, whoever trains: values, and the watch over a trainer.

Nothing but the standard library is imported before a task starts: this file is read in other environments too.
"""

import json
import resource
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Loss = Literal["all", "answers"]
Sequence_ = dict[str, list[int]]
"""input_ids, labels and seq_lengths of samples that stand end to end."""
Row = tuple[list[int], list[int]]
"""Ids and labels of one sample."""

SEED = 7
LORA = {"r": 16, "lora_alpha": 16, "lora_dropout": 0.0, "target_modules": "all-linear", "bias": "none"}
LEARNING_RATE = 2e-4
COUNTED = {"num_tokens": "tokens", "supervised_tokens": "supervised"}
"""What trainers count on their lines of metrics, and what it is called here."""


@dataclass(frozen=True)
class Workload:
    """Optimizer steps of `batch` sequences of up to `max_length` tokens.

    `layers` cuts the model to its first layers. If it `is_whole`, every sequence is one sample, not a pack of some.
    """

    max_length: int
    batch: int
    loss: Loss
    layers: int | None = None
    is_whole: bool = False

    @property
    def name(self) -> str:
        return f"{self.max_length}x{self.batch}-{self.loss}{'-whole' * self.is_whole}"


@dataclass(frozen=True)
class Trial:
    """One contestant's training on one workload: `data` holds its steps, `warmup` of them are not timed."""

    contestant: str
    workload: Workload
    model: str
    data: str
    warmup: int
    precision: Literal["fp32", "bf16"]
    device: Literal["cpu", "cuda"]

    def steps(self) -> list[list[Sequence_]]:
        with Path(self.data).open(encoding="utf-8") as lines:
            return [json.loads(line) for line in lines]


@dataclass(frozen=True)
class Measure:
    """What a training took: wall and CPU seconds of its timed steps, every step's loss, the process's peak memory.

    `counted` is what the trainer itself says that all of its steps held: tokens, supervised ones, attending pairs.
    """

    seconds: float
    cpu_seconds: float
    losses: list[float]
    peak_bytes: int
    counted: dict[str, int] = field(default_factory=dict)


def samples(sequence: Sequence_) -> Iterator[Row]:
    """The ids and labels of each sample of a pack."""
    start = 0
    for length in sequence["seq_lengths"]:
        yield sequence["input_ids"][start : start + length], sequence["labels"][start : start + length]
        start += length


def watch_of(trial: Trial) -> Any:
    """A callback for any of transformers' trainers: their steps' ends, their losses, their rows in the same order."""
    import torch
    from transformers import TrainerCallback

    class Watch(TrainerCallback):
        def __init__(self) -> None:
            self.ends: list[tuple[float, float]] = []
            self.losses: dict[int, float] = {}
            self.counted: dict[str, int] = {}

        def on_init_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            args.train_sampling_strategy = "sequential"

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if trial.device == "cuda":
                torch.cuda.synchronize()
            self.ends.append((time.perf_counter(), time.process_time()))

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if logs and "loss" in logs:
                self.losses[state.global_step] = float(logs["loss"])
                self.counted |= {ours: int(logs[theirs]) for theirs, ours in COUNTED.items() if theirs in logs}

        def measure(self, warmup: int) -> Measure:
            wall, cpu = (end - start for start, end in zip(self.ends[warmup - 1], self.ends[-1], strict=True))
            return Measure(wall, cpu, list(self.losses.values()), peak_bytes(trial.device), self.counted)

    return Watch()


def peak_bytes(device: str) -> int:
    """The allocator's peak on CUDA, else this process's peak resident memory."""
    if device == "cuda":
        import torch

        return int(torch.cuda.max_memory_allocated())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
