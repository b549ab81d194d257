"""What each way to train a model takes of this machine's memory."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from truetune.model.hardware import DTYPES, Device, Precision, free_memory, resolve_device, resolve_precision
from truetune.model.load import Quantization
from truetune.model.portions import words_at_a_time
from truetune.model.shape import ModelShape
from truetune.pipeline.workload import Longest, tokens_evaluated, tokens_trained
from truetune.planning.hyperparameters import leaves_room
from truetune.planning.memory import Workload, estimate

Method = Literal["lora", "qlora", "full"]
METHODS: tuple[Method, ...] = ("lora", "qlora", "full")
_LENGTH, _RANK = 2048, 16


@dataclass(frozen=True, slots=True)
class Here:
    """What this machine computes with; `free` bytes are left on the device, None where it does not say."""

    device: Device
    precision: Precision
    free: int | None


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes at the peak of a training, and whether they fit; gradient checkpointing is on where they would not."""

    peak_bytes: int
    fits: bool | None
    gradient_checkpointing: bool


def here() -> Here:
    """This machine, as a training with every setting on `auto` would use it."""
    device = resolve_device("auto")
    return Here(device, resolve_precision("auto", device), free_memory(device))


def needs(
    shape: ModelShape,
    machine: Here,
    *,
    context: int | None,
    quantization: Quantization | None,
    dtype: str = "float32",
    size: int = 0,
) -> Mapping[str, Need | None]:
    """What each method takes at its peak: batch 1, `max_length` 2048 or the context if that is shorter, rank 16.

    A base that is stored in 4 or 8 bits stays so, and is not trained whole; None stands for what is not known.
    `dtype` and `size` in bytes are those of the files that it is loaded from.
    """
    length = min(_LENGTH, context or _LENGTH)

    def need(method: Method) -> Need | None:
        if quantization is None or (quantization != "none" and method == "full"):
            return None
        files = _Files(quantization, dtype, size)
        return _need(shape, _workload(shape, machine, method, length, files), machine.free)

    return {method: need(method) for method in METHODS}


@dataclass(frozen=True, slots=True)
class _Files:
    """What a base is loaded from: its quantisation, torch's name of its dtype, its bytes."""

    quantization: Quantization
    dtype: str
    bytes: int


def _need(shape: ModelShape, work: Workload, free: int | None) -> Need:
    """Without gradient checkpointing where that leaves a quarter over, as `auto` decides."""
    memory = estimate(shape, work, checkpointing=False)
    checkpoints = free is not None and not leaves_room(memory, free)
    if checkpoints:
        memory = estimate(shape, work, checkpointing=True)
    return Need(memory.peak, None if free is None else memory.peak <= free, checkpoints)


def _workload(shape: ModelShape, machine: Here, method: Method, length: int, files: _Files) -> Workload:
    """A run of truetune's own settings with a row of this length, to train and to validate on."""
    is_lora, longest = method != "full", Longest(length, length, length)
    quantization = files.quantization if files.quantization != "none" else "4bit" if method == "qlora" else "none"
    is_shared = machine.device == "cpu" and is_lora and quantization == "none"
    tokens, are_side_by_side = tokens_trained(machine.device, batch=1, longest=longest, is_shared=is_shared)
    dtype = DTYPES[machine.precision] if is_lora else "float32"
    return Workload(
        device=machine.device,
        trained=shape.adapter_weights(_RANK, "all-linear") if is_lora else shape.parameters,
        are_adapters=is_lora,
        adapter_rank=_RANK if is_lora else 0,
        recomputes=machine.device == "cpu" and is_lora,
        dtype=dtype,
        quantization=quantization,
        precision=machine.precision,
        optim="adamw_torch_fused",
        offloads=False,
        tokens=tokens,
        words=words_at_a_time(tokens, machine.device),
        longest=length,
        is_side_by_side=are_side_by_side,
        evaluated=tokens_evaluated(machine.device, batch=1, longest=longest),
        stored=files.bytes,
        stored_as_loaded=quantization == "none" and files.dtype == dtype,
    )
