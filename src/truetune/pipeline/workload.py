"""What a config's training asks of memory on a machine: the one place where settings become planning's values."""

from dataclasses import dataclass, replace
from typing import Any

from truetune.config.schema import AdapterConfig, Config, with_values
from truetune.model.hardware import Device
from truetune.model.portions import TOKENS, WORKERS, words_at_a_time
from truetune.pipeline.machine import Machine, stored_dtype
from truetune.pipeline.zero import zero_stage
from truetune.planning.memory import Memory, Workload, estimate, is_side_by_side, tokens_at_a_time

DEFAULT_ROWS = 2
"""The guide's rows at a time, by which an automatic batch keeps the effective one."""


@dataclass(frozen=True, slots=True)
class Longest:
    """Tokens of the longest row to train and to validate on (0: none), and of a sequence: a row, or a pack."""

    row: int
    sequence: int
    validation: int = 0


def memory_of(config: Config, machine: Machine, longest: Longest, *, checkpointing: bool | None = None) -> Memory:
    """What the config's training takes on each device; `checkpointing` in place of its own, of which auto is off."""
    if checkpointing is None:
        checkpointing = config.training.gradient_checkpointing is True
    work = workload(config, machine, longest, checkpointing=checkpointing)
    memory = estimate(machine.shape, work, checkpointing=checkpointing)
    return memory if zero_stage(config) == 0 else _with_states_shared_out(memory, work, machine)


def _with_states_shared_out(memory: Memory, work: Workload, machine: Machine) -> Memory:
    """ZeRO: of gradients and states each device has a share, of adapters' too."""
    shares = 1 if work.shards > 1 and not work.are_adapters else machine.num_processes
    return replace(memory, gradients=memory.gradients // shares, optimizer=memory.optimizer // shares)


def memory_of_files(config: Config, machine: Machine, longest: Longest) -> Memory:
    """As if one device held all: what is written is whole, however the model is shared out."""
    return memory_of(with_values(config, {"training.strategy": "ddp"}), machine, longest)


def workload(config: Config, machine: Machine, longest: Longest, *, checkpointing: bool) -> Workload:
    """The training of a config whose rank and batch are decided."""
    adapter, training = config.adapter, config.training
    is_lora, batch = adapter.method == "lora", rows_at_a_time(config)
    is_shared = machine.device == "cpu" and is_lora and machine.quantization == "none" and not checkpointing
    tokens, are_side_by_side = tokens_trained(machine.device, batch=batch, longest=longest, is_shared=is_shared)
    eval_batch = config.evaluation.per_device_eval_batch_size or batch
    dtype = stored_dtype(config, machine.precision)
    return Workload(
        device=machine.device,
        trained=trained_weights(config, machine),
        are_adapters=is_lora,
        adapter_rank=int(adapter.r) if is_lora else 0,
        recomputes=machine.device == "cpu" and _is_plain(adapter),
        dtype=dtype,
        quantization=machine.quantization,
        precision=machine.precision,
        optim=training.optim,
        offloads=training.activation_offloading,
        tokens=tokens,
        words=words_at_a_time(tokens, machine.device),
        longest=longest.row,
        is_side_by_side=are_side_by_side,
        evaluated=tokens_evaluated(machine.device, batch=eval_batch, longest=longest),
        stored=machine.stored_bytes,
        stored_as_loaded=machine.quantization == "none" and machine.facts.dtype == dtype,
        shards=machine.num_processes if training.strategy == "fsdp" or zero_stage(config) == 3 else 1,
        shards_on_cpu=training.strategy == "fsdp" and training.fsdp_cpu_offload,
    )


def rows_at_a_time(config: Config) -> int:
    """Of one device, as long as nothing else is decided the guide's two."""
    size = config.training.per_device_train_batch_size
    return DEFAULT_ROWS if size == "auto" else size


def tokens_trained(device: Device, *, batch: int, longest: Longest, is_shared: bool) -> tuple[int, bool]:
    """The most tokens that a step computes at once; and whether they are slices side by side, if that `is_shared`."""
    cut: dict[str, Any] = {
        "limit": TOKENS.get(device),
        "workers": WORKERS if is_shared else 1,
        "batch": batch,
        "sequence": longest.sequence,
        "longest": longest.row,
    }
    return tokens_at_a_time(**cut), is_side_by_side(**cut)


def tokens_evaluated(device: Device, *, batch: int, longest: Longest) -> int:
    """The most tokens that an evaluation computes at once."""
    rows = longest.validation
    return tokens_at_a_time(limit=TOKENS.get(device), batch=batch, sequence=rows, longest=rows)


def trained_weights(config: Config, machine: Machine) -> int:
    """How many weights learn."""
    adapter, shape = config.adapter, machine.shape
    if adapter.method == "full":
        return shape.parameters
    whole = len(adapter.modules_to_save) * shape.vocabulary * shape.hidden
    return shape.adapter_weights(int(adapter.r), adapter.target_modules) + whole


def _is_plain(adapter: AdapterConfig) -> bool:
    """True of a LoRA on all linear layers whose every layer is computed in one step."""
    is_everywhere = adapter.target_modules == "all-linear"
    return adapter.method == "lora" and is_everywhere and not (adapter.lora_dropout or adapter.use_dora)
