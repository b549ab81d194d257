"""The machine as files tell it, without torch and transformers, whose import takes longer than all the rest."""

import platform
import sys
from pathlib import Path

from truetune.config.schema import Config
from truetune.environment import set_computing, spinning_threads
from truetune.errors import BackendError
from truetune.listener import Listener
from truetune.model.hardware import Device, Precision
from truetune.model.source import ModelSource, demo_file, metadata_has
from truetune.model.stored import StoredModel, find_stored, find_weights, headers_of, read_json
from truetune.model.stored_shape import stored_facts, stored_shape, unpacked
from truetune.pipeline.doctor.hardware import features, nvidia_gpus
from truetune.pipeline.machine import (
    KnownModel,
    Machine,
    Place,
    device_there,
    machine_of,
    require_packages,
    require_possible,
)

_GPU_FILES = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")
"""What the drivers of NVIDIA, of AMD and of Windows under Linux show of a GPU."""

_MOST_FETCHED = 8
"""Files whose headers are fetched from a hub, a request each: more may take longer than importing transformers."""


def read_machine(config: Config, listener: Listener, *, place: Place | None) -> Machine | None:
    """What `ask_machine` says without a tokenizer, and refuses; None where only torch or transformers know."""
    if place is None:
        require_packages(config)
        set_computing()
    computing = _computing_here(config) if place is None else device_there(config, place)
    if computing is None:
        return None
    device, precision = computing
    require_possible(config, device, precision)
    if (model := _read_model(config)) is None:
        return None
    if place is None and (problem := spinning_threads()):
        listener.warn(problem)
    return machine_of(config, model, device=device, precision=precision, place=place)


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


def _read_model(config: Config) -> KnownModel | None:
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
    return KnownModel(_source(config, stored), stored_facts(settings), shape)


def _source(config: Config, stored: StoredModel) -> ModelSource:
    """Where it lies: as its user named it, but for the demo."""
    path = str(demo_file()) if stored.kind == "demo" else stored.name
    return ModelSource(stored.name, path, config.model.revision if stored.kind == "hub" else None)
