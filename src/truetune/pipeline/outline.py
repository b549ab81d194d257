"""A plan without rows: what training this model so takes on rows of the longest length that it may be given."""

import platform
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from truetune.cgroups import memory_left
from truetune.config.schema import Config
from truetune.environment import set_computing, spinning_threads
from truetune.errors import BackendError
from truetune.listener import Listener
from truetune.model.hardware import Device, Precision
from truetune.model.load import ModelFacts
from truetune.model.shape import ModelShape
from truetune.model.source import ModelSource, demo_file, metadata_has, weight_bytes
from truetune.model.stored import StoredModel, find_stored, find_weights, headers_of, read_json
from truetune.model.stored_shape import stored_facts, stored_shape, unpacked
from truetune.pipeline.backends import Situation
from truetune.pipeline.deployment import require_servable
from truetune.pipeline.doctor.hardware import features, nvidia_gpus
from truetune.pipeline.fitting import Change, fitting_changes
from truetune.pipeline.machine import (
    _BYTES,
    Machine,
    Place,
    _backend,
    _device_there,
    _num_processes,
    _quantization,
    _require_packages,
    _require_possible,
    ask_machine,
)
from truetune.pipeline.plan import decided_without_rows
from truetune.pipeline.workload import Longest, memory_of
from truetune.planning.disk import run_bytes
from truetune.planning.hyperparameters import Choice
from truetune.planning.memory import Memory

_GPU_FILES = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")
"""What the drivers of NVIDIA, of AMD and of Windows under Linux show of a GPU."""

_MOST_FETCHED = 8
"""Files whose headers are fetched from a hub, a request each: more may take longer than importing transformers."""


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

    @property
    def fits(self) -> bool | None:
        """Whether the estimated peak fits what is free; None where that is not known."""
        return None if self.free_memory is None else self.memory.peak <= self.free_memory

    def as_json(self) -> dict[str, Any]:
        """As a Forecast's, null where it needs rows."""
        unknown = (
            "total_steps",
            "steps_per_epoch",
            "warmup_steps",
            "sequences",
            "tokens",
            "supervised_tokens",
            "seconds",
        )
        return {
            **dict.fromkeys(unknown),
            "max_length": self.length,
            "per_device_train_batch_size": self.config.training.per_device_train_batch_size,
            "device": self.device,
            "memory": {"peak_bytes": self.memory.peak, "parts": self.memory.parts, "free_bytes": self.free_memory},
            "fits": self.fits,
            "changes": None if self.changes is None else [change.as_json() for change in self.changes],
            "disk_bytes": self.checkpoint_bytes,
            "settings": [asdict(choice) for choice in self.choices],
            "warnings": [],
        }


def outline_run(config: Config, *, place: Place | None, listener: Listener) -> Outline:
    """The outline, from the model's configuration alone: no tokenizer and no weights are loaded."""
    machine = _read_machine(config, listener, place=place) or ask_machine(
        config, listener, place=place, with_tokenizer=False
    )
    length = min(config.data.max_length, machine.facts.context_length or config.data.max_length)
    longest = Longest(length, length)
    config, choices = decided_without_rows(config, machine, longest)
    memory = memory_of(config, machine, longest)
    return Outline(
        config=config,
        device=place.name if place else machine.device,
        length=length,
        memory=memory,
        free_memory=machine.free_memory,
        checkpoint_bytes=run_bytes(memory, checkpoints=1),
        choices=choices,
        changes=_changes(config, machine, longest),
    )


def _changes(config: Config, machine: Machine, longest: Longest) -> tuple[Change, ...] | None:
    return fitting_changes(config, machine, longest, [longest.row])


# --- the machine, without torch and transformers, whose import takes longer than all the rest ---------------


@dataclass(frozen=True, slots=True)
class _ReadModel:
    """What a model's files alone say of it."""

    source: ModelSource
    facts: ModelFacts
    shape: ModelShape


def _read_machine(config: Config, listener: Listener, *, place: Place | None) -> Machine | None:
    """What `ask_machine` says without a tokenizer, and refuses; None where only torch or transformers know."""
    if place is None:
        _require_packages(config)
        set_computing()
    computing = _computing_here(config) if place is None else _device_there(config, place)
    if computing is None:
        return None
    device, precision = computing
    _require_possible(config, device, precision)
    if (model := _read_model(config)) is None:
        return None
    if place is None and (problem := spinning_threads()):
        listener.warn(problem)
    require_servable(config, model_type=model.facts.model_type, is_mixture=model.shape.blocks == "mixture")
    num_processes = _num_processes(config) if place is None else place.num_processes
    backend, reason = _backend(config, Situation(device, model.facts.model_type, num_processes), place)
    return Machine(
        device=device,
        precision=precision,
        quantization=_quantization(config, model.facts, is_here=place is None),
        source=model.source,
        tokenizer=None,
        facts=model.facts,
        shape=model.shape,
        stored_bytes=weight_bytes(model.source) or model.shape.parameters * _BYTES.get(model.facts.dtype, 4),
        free_memory=_free_memory() if place is None else place.memory,
        num_processes=num_processes,
        is_sharded=place is not None and place.is_sharded,
        fingerprint=None,
        backend=backend,
        backend_reason=reason,
    )


def _computing_here(config: Config) -> tuple[Device, Precision] | None:
    """The CPU and its precision, where nothing else computes here; None where torch must be asked or would refuse."""
    device, precision = config.model.device, config.training.precision
    is_known = sys.platform == "linux" and platform.machine() == "x86_64"
    if not is_known or device not in ("auto", "cpu") or (device == "auto" and _has_gpu()):
        return None
    if precision == "fp32":
        return "cpu", "fp32"
    if has_native_bf16():
        return None if precision == "fp16" else ("cpu", "bf16")
    return ("cpu", "fp32") if precision == "auto" else None


def _has_gpu() -> bool:
    return any(Path(file).exists() for file in _GPU_FILES) or bool(nvidia_gpus())


def has_native_bf16() -> bool:
    """True if this CPU multiplies matrices of bf16 in hardware, by Linux' description of it."""
    return bool({"AVX512_BF16", "AMX_BF16"} & {*features()})


def _free_memory() -> int:
    """As model/hardware.py's of the CPU, which asks after importing torch."""
    from psutil import virtual_memory  # type: ignore[import-untyped]

    granted, available = memory_left(), int(virtual_memory().available)
    return available if granted is None else min(available, granted)


def _read_model(config: Config) -> _ReadModel | None:
    """The model by its files; None where they do not say for certain, or are damaged, which transformers explains."""
    stored = find_stored(config.model.name_or_path, revision=config.model.revision)
    try:
        weights = find_weights(stored)
        if stored.kind == "hub" and len(weights.files) > _MOST_FETCHED:
            return None
        headers = headers_of(stored, weights)
        settings = {} if stored.folder is None else read_json(stored.folder / "config.json")
    except BackendError:
        return None
    if headers is not None and weights.form == "gguf":
        if stored.folder is not None or not metadata_has("gguf") or (known := unpacked(headers)) is None:
            return None
        settings, headers = known
    if headers is None or (shape := stored_shape(settings, headers)) is None:
        return None
    return _ReadModel(_source(config, stored), stored_facts(settings), shape)


def _source(config: Config, stored: StoredModel) -> ModelSource:
    """Where it lies: as its user named it, but for the demo."""
    path = str(demo_file()) if stored.kind == "demo" else stored.name
    return ModelSource(stored.name, path, config.model.revision if stored.kind == "hub" else None)
