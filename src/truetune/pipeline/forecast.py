"""`truetune plan`: what a run will do and take on this machine, before any weights load."""

from dataclasses import asdict, dataclass
from typing import Any

from truetune.config.schema import Config
from truetune.listener import Listener, LogListener
from truetune.pipeline.backends import settle
from truetune.pipeline.check import prepare_for
from truetune.pipeline.machine import ask_machine
from truetune.pipeline.plan import RunPlan, plan_run
from truetune.pipeline.stages import Formatting, Rows, require_rows


@dataclass(frozen=True, slots=True)
class Forecast:
    """A run's plan beside the machine's memory and the prepared rows' counts.

    `free_memory` is what the device has left in bytes, None where it does not say; `counts` are the data report's.
    """

    plan: RunPlan
    device: str
    free_memory: int | None
    processes: int
    counts: dict[str, Any]

    @property
    def fits(self) -> bool | None:
        """Whether the estimated peak fits what is free; None where that is not known."""
        return None if self.free_memory is None else self.plan.memory.peak <= self.free_memory

    def as_json(self) -> dict[str, Any]:
        steps, memory = self.plan.steps, self.plan.memory
        return {
            "total_steps": steps.total_steps,
            "steps_per_epoch": steps.steps_per_epoch,
            "warmup_steps": steps.warmup_steps,
            "effective_batch_size": steps.effective_batch_size,
            "sequences": len(self.plan.sequences),
            "packing": self.plan.is_packed,
            "tokens": self.counts["tokens"],
            "supervised_tokens": self.counts["supervised_tokens"],
            "device": self.device,
            "memory": {"peak_bytes": memory.peak, "parts": memory.parts, "free_bytes": self.free_memory},
            "fits": self.fits,
            "seconds": None,
            "disk_bytes": self.plan.disk_bytes,
            "settings": [asdict(choice) for choice in self.plan.choices],
            "warnings": [self.plan.warning] if self.plan.warning else [],
        }


def forecast_run(
    config: Config,
    *,
    rows: Rows | None = None,
    formatting: Formatting | None = None,
    listener: Listener | None = None,
) -> Forecast:
    """The forecast of the run that `train` would start. Prepares the rows; loads no weights."""
    listener = listener or LogListener()
    require_rows(config.data, rows)
    machine = ask_machine(config, listener)
    config = settle(config, backend=machine.backend, device=machine.device, listener=listener)
    prepared = prepare_for(machine, config, source=rows, formatting=formatting, listener=listener)
    plan = plan_run(config, machine=machine, prepared=prepared)
    return Forecast(plan, machine.device, machine.free_memory, machine.num_processes, dict(prepared.report.stats))
