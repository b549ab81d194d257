"""`truetune plan`: what a run will do and take, here or on another machine, before any weights load."""

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

from truetune.config.schema import Config, with_values
from truetune.errors import ConfigError
from truetune.listener import Listener, LogListener
from truetune.pipeline.backends import settle
from truetune.pipeline.check import prepare_for
from truetune.pipeline.duration import reckoned_duration
from truetune.pipeline.fitting import Change, fitting_changes
from truetune.pipeline.machine import Machine, Place, ask_machine
from truetune.pipeline.outline import Outline, named_place, outline_run
from truetune.pipeline.plan import RunPlan, plan_run, tokens_of_rows
from truetune.pipeline.prepare import PreparedDataset
from truetune.pipeline.stages import Formatting, Rows, require_rows
from truetune.planning.devices import Device, find_device
from truetune.planning.timing import Duration, Probed, measured

Parallel = Literal["ddp", "fsdp"]

_LEFT_TO_PROGRAMS = 0.95
"""The share of a GPU's memory that a training can take; drivers, contexts and fragments have the rest: a guess."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """A run's plan beside the machine it is for, with what it takes.

    `free_memory` is what a device has left in bytes, None where it does not say; `counts` are the data report's.
    `duration` is None where nothing tells the device's speed. `cost` is in the currency of the price. `changes` would
    make it fit; None where nothing does.
    """

    plan: RunPlan
    device: str
    free_memory: int | None
    processes: int
    counts: dict[str, Any]
    duration: Duration | None
    probed: Probed | None
    cost: float | None
    changes: tuple[Change, ...] | None

    @property
    def peak(self) -> int:
        """Bytes at the peak on each device: as the probe measured them, else by estimate."""
        return self.probed.peak_bytes if self.probed else self.plan.memory.peak

    @property
    def parts(self) -> dict[str, int]:
        """The peak's parts; what a probe found beyond the estimate is one of its own."""
        parts = self.plan.memory.parts
        return parts | {"not estimated": self.peak - self.plan.memory.peak} if self.probed else parts

    @property
    def fits(self) -> bool | None:
        """Whether the peak fits what is free; None where that is not known."""
        return None if self.free_memory is None else self.peak <= self.free_memory

    def as_json(self) -> dict[str, Any]:
        steps, plan, duration = self.plan.steps, self.plan, self.duration
        return {
            "total_steps": steps.total_steps,
            "steps_per_epoch": steps.steps_per_epoch,
            "micro_batches": steps.micro_batches,
            "warmup_steps": steps.warmup_steps,
            "effective_batch_size": steps.effective_batch_size,
            "per_device_train_batch_size": plan.config.training.per_device_train_batch_size,
            "gradient_accumulation_steps": steps.gradient_accumulation_steps,
            "num_processes": self.processes,
            "evaluations": plan.amount.evaluations,
            "checkpoints": plan.amount.checkpoints,
            "answer_tokens": plan.amount.answer_tokens,
            "sequences": len(plan.sequences),
            "packing": plan.is_packed,
            "tokens": self.counts["tokens"],
            "supervised_tokens": self.counts["supervised_tokens"],
            "device": self.device,
            "memory": {"peak_bytes": self.peak, "parts": self.parts, "free_bytes": self.free_memory},
            "fits": self.fits,
            "changes": None if self.changes is None else [change.as_json() for change in self.changes],
            "seconds": duration and duration.total,
            "time": duration and asdict(duration),
            "cost": self.cost,
            "probe": self.probed and asdict(self.probed),
            "disk_bytes": plan.disk_bytes,
            "settings": [asdict(choice) for choice in plan.settings],
            "warnings": list(plan.warnings),
        }


def forecast(
    config: Config,
    *,
    rows: Rows | None = None,
    formatting: Formatting | None = None,
    device: str | None = None,
    parallel: Parallel | None = None,
    probe: bool = False,
    price_per_hour: float | None = None,
    listener: Listener | None = None,
) -> Forecast | Outline:
    """The forecast of the run that `train` would start; where no rows are named, what is known without them.

    Prepares the rows; loads no weights, but for a `probe`. It is for this machine, or for the `device`: a GPU of
    planning/devices.toml, several as `h100:8`, which are used in `parallel`, else by training.strategy.
    `price_per_hour` is that of all of them together.
    """
    listener = listener or LogListener()
    has_rows = rows is not None or config.data.path is not None
    _require_answerable(has_rows=has_rows, device=device, probe=probe, price_per_hour=price_per_hour)
    gpu, place = _place(config, device, parallel)
    if parallel:
        config = with_values(config, {"training.strategy": parallel})
    if not has_rows:
        return outline_run(config, place=place, listener=listener)
    require_rows(config.data, rows)
    machine = ask_machine(config, listener, place=place)
    config = settle(config, backend=machine.backend, device=machine.device, listener=listener)
    prepared = prepare_for(machine, config, source=rows, formatting=formatting, listener=listener)
    plan = plan_run(config, machine=machine, prepared=prepared)
    probed = _probe(plan, machine, prepared, listener) if probe else None
    duration = measured(probed, plan.amount) if probed else reckoned_duration(plan, machine, prepared, gpu=gpu)
    return Forecast(
        plan=plan,
        device=named_place(plan.config, place) if place else machine.device,
        free_memory=machine.free_memory,
        processes=machine.num_processes,
        counts=dict(prepared.report.stats),
        duration=duration,
        probed=probed,
        cost=None if price_per_hour is None or duration is None else duration.total / 3600 * price_per_hour,
        changes=fitting_changes(plan.config, machine, plan.longest, tokens_of_rows(prepared.train)),
    )


def _require_answerable(*, has_rows: bool, device: str | None, probe: bool, price_per_hour: float | None) -> None:
    """ConfigError for what cannot be told so."""
    if not has_rows and (probe or price_per_hour is not None):
        raise ConfigError("a probe, and a price, need rows", hint="name them: --data DATA")
    if probe and device:
        raise ConfigError("a probe measures this machine", hint="leave --probe or --device out")
    if price_per_hour is not None and not 0 <= price_per_hour < math.inf:
        raise ConfigError(f"--price-per-hour must not be negative (got {price_per_hour:g})")


def _place(config: Config, device: str | None, parallel: Parallel | None) -> tuple[Device | None, Place | None]:
    gpu, count = (None, 1) if device is None else find_device(device)
    if parallel == "fsdp" and count == 1:
        raise ConfigError("--parallel fsdp needs several devices", hint="such as --device h100:8")
    if gpu is None:
        return None, None
    if config.training.num_processes not in (None, count):
        raise ConfigError(
            f"training.num_processes is {config.training.num_processes}, and --device names {count}",
            hint=f"leave it out, or name as many: --device '{gpu.name}:{config.training.num_processes}'",
        )
    name = gpu.name if count == 1 else f"{count} x {gpu.name}"
    memory = round(gpu.visible_bytes * _LEFT_TO_PROGRAMS)
    return gpu, Place(name, memory, gpu.has_native_bf16, count)


def _probe(plan: RunPlan, machine: Machine, prepared: PreparedDataset, listener: Listener) -> Probed:
    from truetune.pipeline.probe import probe_run

    return probe_run(plan, machine=machine, prepared=prepared, listener=listener)
