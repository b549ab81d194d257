"""How long a planned run takes, before a step of it is timed."""

from truetune.environment import usable_threads
from truetune.errors import ConfigError
from truetune.pipeline.machine import Machine
from truetune.pipeline.plan import RunPlan
from truetune.pipeline.prepare import PreparedDataset
from truetune.planning.devices import Device, find_device
from truetune.planning.timing import Duration, cpu_rate, gpu_rate, reckoned


def reckoned_duration(
    plan: RunPlan, machine: Machine, prepared: PreparedDataset, *, gpu: Device | None = None
) -> Duration | None:
    """The run's time by its operations and the rate of the machine, or of the `gpu`; None where that is not known."""
    rate = _rate(machine, gpu)
    if rate is None:
        return None
    stats, training = prepared.report.stats, plan.config.training
    return reckoned(
        machine.shape,
        plan.amount,
        rate=rate,
        learned=stats["supervised_tokens"] / max(1, stats["tokens"]),
        are_adapters=plan.config.adapter.method == "lora",
        is_quantized=machine.quantization != "none",
        checkpointing=bool(training.gradient_checkpointing),
    )


def _rate(machine: Machine, gpu: Device | None) -> float | None:
    if machine.device == "cpu":
        return cpu_rate(machine.precision, usable_threads())
    found = gpu or (_gpu_here() if machine.device == "cuda" else None)
    peak = found and found.flops(machine.precision)
    return gpu_rate(peak, machine.num_processes) if peak else None


def _gpu_here() -> Device | None:
    """This machine's GPU, if the table has it."""
    import torch

    try:
        return find_device(torch.cuda.get_device_name())[0]
    except ConfigError:
        return None
