"""Whether each process holds the whole model or a share of it: as asked, or by what fits a device's memory."""

from collections.abc import Iterator
from itertools import chain

from truetune.config.schema import Config, with_values
from truetune.config.sharding import sharding_obstacles
from truetune.errors import BackendError
from truetune.figures import byte_size
from truetune.pipeline.machine import Machine
from truetune.pipeline.workload import Longest, memory_of
from truetune.pipeline.zero import uses_deepspeed
from truetune.planning.hyperparameters import Choice, leaves_room
from truetune.planning.memory import Memory

_NAME = "training.strategy"


def strategy_choice(config: Config, machine: Machine, longest: Longest) -> Iterator[Choice]:
    """The strategy of several processes, where it is auto: ddp if all of it fits each device, else fsdp.

    BackendError where fsdp is asked for and this model cannot be shared out.
    """
    if config.training.strategy == "fsdp":
        _require_shardable(config, machine)
    if uses_deepspeed(config):
        yield from _zero(config, machine, longest)
    elif config.training.strategy == "auto" and machine.num_processes > 1:
        yield _chosen(config, machine, longest)


def _zero(config: Config, machine: Machine, longest: Longest) -> Iterator[Choice]:
    """DeepSpeed, and how much it shares out, where no settings of its are given."""
    _require_zero_possible(config, machine)
    if config.training.strategy == "auto":
        yield Choice(_NAME, "deepspeed", "training.deepspeed is set")
    if config.training.deepspeed is None:
        with_states = with_values(config, {_NAME: "deepspeed", "training.deepspeed": "zero2"})
        memory = _least(with_states, machine, longest)
        fits = machine.free_memory is None or leaves_room(memory, machine.free_memory)
        needs = f"with gradients and states shared out each device needs about {byte_size(memory.peak, digits=2)}"
        yield Choice("training.deepspeed", "zero2" if fits else "zero3", needs)


def _chosen(config: Config, machine: Machine, longest: Longest) -> Choice:
    if config.training.fsdp_cpu_offload:
        return Choice(_NAME, "fsdp", "training.fsdp_cpu_offload is its")
    whole = _least(with_values(config, {_NAME: "ddp"}), machine, longest)
    shared = _least(with_values(config, {_NAME: "fsdp"}), machine, longest)
    if machine.free_memory is None:
        return Choice(_NAME, "ddp", f"{_needs(whole)} on each device; what is free is not known here")
    needs = f"{_needs(whole)} of {byte_size(machine.free_memory, digits=2)} free on each device"
    if leaves_room(whole, machine.free_memory):
        return Choice(_NAME, "ddp", needs)
    if against := next(_against(config, machine), None):
        return Choice(_NAME, "ddp", f"{needs}: it may run out of memory, and fsdp cannot help ({against})")
    return Choice(_NAME, "fsdp", f"{needs}; {byte_size(shared.peak, digits=2)} with the model shared out")


def _needs(memory: Memory) -> str:
    return f"the whole model's training needs about {byte_size(memory.peak, digits=2)}"


def _least(config: Config, machine: Machine, longest: Longest) -> Memory:
    """The memory with what else is decided by memory already in force: checkpointing, where it is auto."""
    checkpoints = config.training.gradient_checkpointing
    return memory_of(config, machine, longest, checkpointing=checkpoints is not False)


def _against(config: Config, machine: Machine) -> Iterator[str]:
    """Why this model cannot be shared out: by its settings, or by what it meets here."""
    for obstacle in sharding_obstacles(config):
        yield f"{obstacle.name}: {obstacle.reason}"
    yield from _met(config, machine)


def _met(config: Config, machine: Machine) -> Iterator[str]:
    if machine.backend != "trl":
        yield "Unsloth trains in one process"
    if machine.device == "mps":
        yield "PyTorch shares nothing out on mps"
    if machine.precision == "fp16":
        yield "fp16 is all that this device has, and its loss scale is one process's"
    if machine.quantization == "8bit":
        yield "bitsandbytes' 8-bit weights cannot be shared out"
    if machine.shape.blocks == "mixture" and config.adapter.method == "lora":
        yield "adapters on a mixture's experts have not been tried"


def _require_shardable(config: Config, machine: Machine) -> None:
    """What the settings alone forbid is refused with the config."""
    if against := next(_against(config, machine), None):
        raise BackendError(f"{_NAME}: fsdp cannot train this model: {against}", hint=f"set {_NAME} to ddp or auto")


def _require_zero_possible(config: Config, machine: Machine) -> None:
    """What the settings alone forbid is refused with the config."""
    if against := next(chain(_met(config, machine), _met_by_zero(machine)), None):
        raise BackendError(
            f"{_NAME}: deepspeed cannot train this model: {against}", hint=f"leave it out, or set {_NAME} to fsdp"
        )


def _met_by_zero(machine: Machine) -> Iterator[str]:
    if machine.quantization != "none":
        yield "a quantised base has not been tried"
    if machine.shape.blocks == "mixture":
        yield "its processes would wait for experts that only some of them ask for"
