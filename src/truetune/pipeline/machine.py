"""What a config meets on this machine: device, precision, model, tokenizer; whatever it refuses, it refuses here."""

from dataclasses import dataclass, replace
from typing import Any

from truetune.config.schema import Config
from truetune.environment import set_computing, spinning_threads
from truetune.errors import BackendError, ConfigError, first_line
from truetune.launched import is_launched, processes_here, running_processes
from truetune.listener import Listener
from truetune.model.adapter import LoraSettings
from truetune.model.hardware import (
    DTYPES,
    Device,
    Precision,
    describe,
    emulated,
    free_memory,
    require_dtype,
    resolve_device,
    resolve_precision,
    use_one_gpu,
)
from truetune.model.load import (
    ModelFacts,
    ModelOptions,
    Quantization,
    facts_of,
    read_config,
    require_optimizer,
    require_quantization,
)
from truetune.model.reach import is_out_of_reach, why_away
from truetune.model.shape import ModelShape, configured_shape
from truetune.model.source import ModelSource, fingerprint, metadata_has, resolve_model, version_of, weight_bytes
from truetune.model.tokenizer import load_tokenizer
from truetune.pipeline.backends import Backend, Situation, choose_backend
from truetune.pipeline.deployment import require_servable
from truetune.pipeline.zero import require_zero
from truetune.training.session import LoadedModel, ModelRequest

_LIBRARIES = ("truetune", "torch", "transformers", "trl", "peft", "datasets", "accelerate")
_OPTIONAL = ("unsloth",)
_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True, slots=True)
class Place:
    """Another machine, which a run is planned for: so many GPUs of a kind, with `memory` bytes each."""

    name: str
    memory: int
    has_native_bf16: bool
    num_processes: int = 1


@dataclass(frozen=True, slots=True)
class Machine:
    """What the config meets here: device and precision, the model's source and tokenizer, the engine that trains.

    `free_memory` is what the device has left before the model loads, in bytes; None where it does not say.
    `stored_bytes` are those of the files that the weights are read from.
    """

    device: Device
    precision: Precision
    quantization: Quantization
    source: ModelSource
    tokenizer: Any
    facts: ModelFacts
    shape: ModelShape
    stored_bytes: int
    free_memory: int | None
    num_processes: int
    fingerprint: str | None
    backend: Backend
    backend_reason: str

    @property
    def parameters(self) -> int:
        return self.shape.parameters

    def as_record(self, model: LoadedModel) -> dict[str, Any]:
        """What run.json keeps about model and machine."""
        return {
            "model": {
                "name_or_path": self.source.name,
                "revision": model.revision,
                "fingerprint": self.fingerprint,
                "dtype": model.dtype,
            },
            "backend": self.backend,
            "precision": self.precision,
            "device": self.device,
            "num_processes": self.num_processes,
            "hardware": describe(),
            "versions": versions(),
        }


def versions() -> dict[str, str]:
    """The versions of the libraries a run stands on; of Unsloth, where it is installed."""
    there = (*_LIBRARIES, *(name for name in _OPTIONAL if metadata_has(name)))
    return {name: version_of(name) for name in there}


@dataclass(frozen=True, slots=True)
class KnownModel:
    """What is known of a model before its weights load."""

    source: ModelSource
    facts: ModelFacts
    shape: ModelShape


def ask_machine(
    config: Config,
    listener: Listener,
    *,
    has_callbacks: bool = False,
    place: Place | None = None,
    with_tokenizer: bool = True,
) -> Machine:
    """Checks everything a machine can refuse, then loads the tokenizer. Raises BackendError.

    The machine is this one, or the `place` to plan for, of which what is installed is not known.
    """
    if place is None:
        require_packages(config)
        set_computing()
    device, precision = _device(config, listener) if place is None else device_there(config, place)
    require_possible(config, device, precision)
    if place is None:
        slow = (spinning_threads() if device == "cpu" else None, emulated(precision, device))
        for problem in filter(None, slow):
            listener.warn(problem)
    model = _known_model(config)
    if is_out_of_reach(model.source):
        listener.say(f"{model.source.name} is taken from the cache: {why_away()}")
    trust = config.model.trust_remote_code
    return machine_of(
        config,
        model,
        device=device,
        precision=precision,
        place=place,
        has_callbacks=has_callbacks,
        tokenizer=load_tokenizer(model.source, trust_remote_code=trust) if with_tokenizer else None,
        fingerprint=fingerprint(model.source) if with_tokenizer else None,
    )


def machine_of(
    config: Config,
    model: KnownModel,
    *,
    device: Device,
    precision: Precision,
    place: Place | None,
    has_callbacks: bool = False,
    tokenizer: Any = None,
    fingerprint: str | None = None,
) -> Machine:
    """The machine for a model that is known. ConfigError or BackendError for what the two do not allow together."""
    facts, shape = model.facts, model.shape
    require_servable(config, facts, shape)
    num_processes = processes_of(config) if place is None else place.num_processes
    backend, reason = _backend(config, Situation(device, facts.model_type, num_processes, has_callbacks), place)
    return Machine(
        device=device,
        precision=precision,
        quantization=_quantization(config, facts, is_here=place is None),
        source=model.source,
        tokenizer=tokenizer,
        facts=facts,
        shape=shape,
        stored_bytes=weight_bytes(model.source) or shape.parameters * _BYTES.get(facts.dtype, 4),
        free_memory=_free_memory(device, num_processes) if place is None else place.memory,
        num_processes=num_processes,
        fingerprint=fingerprint,
        backend=backend,
        backend_reason=reason,
    )


def _known_model(config: Config) -> KnownModel:
    """By transformers' configuration, and the empty model that it makes."""
    source = resolve_model(config.model.name_or_path, revision=config.model.revision)
    trust = config.model.trust_remote_code
    model_config = read_config(source, trust_remote_code=trust)
    return KnownModel(source, facts_of(model_config), _shape(source, model_config, trust_remote_code=trust))


def _shape(source: ModelSource, model_config: Any, *, trust_remote_code: bool) -> ModelShape:
    """The shape of the model that this configuration makes. BackendError if it makes no causal language model."""
    try:
        return configured_shape(model_config, trust_remote_code=trust_remote_code)
    except ValueError as error:
        if str(error).startswith("Unrecognized configuration class"):  # As transformers (5.24) says it.
            message = f"{source.name} is not a causal language model: {model_config.model_type}"
        else:
            message = f"{source.name}: its configuration makes no model: {first_line(error)}"
        hint = f"truetune trains causal language models; truetune models {source.name} says more"
        raise BackendError(message, hint=hint) from error


def require_packages(config: Config) -> None:
    """BackendError for what the settings need and is not installed here."""
    from truetune.training.trackers import require_trackers

    require_trackers(config.logging.report_to, logging_dir=config.logging.logging_dir)
    require_quantization(_asked_quantization(config))
    require_optimizer(config.training.optim)
    require_zero(config)


def _device(config: Config, listener: Listener) -> tuple[Device, Precision]:
    device = resolve_device(config.model.device)
    if device == "cuda" and (said := use_one_gpu()):
        listener.say(said)
    return device, resolve_precision(config.training.precision, device)


def device_there(config: Config, place: Place) -> tuple[Device, Precision]:
    """The device and the precision at another place. BackendError for one that it does not have."""
    wanted = config.training.precision
    if wanted == "bf16" and not place.has_native_bf16:
        raise BackendError(
            f"training.precision: bf16 is not supported by {place.name} (it needs Ampere or newer)",
            hint="use precision: fp16 or fp32",
        )
    return "cuda", wanted if wanted != "auto" else "bf16" if place.has_native_bf16 else "fp16"


def _backend(config: Config, situation: Situation, place: Place | None) -> tuple[Backend, str]:
    """The engine here; for another place TRL's, which needs nothing that may not be there."""
    if place is None:
        return choose_backend(config, situation)
    wanted = config.training.backend
    return ("trl", f"what is installed on {place.name} is not known") if wanted == "auto" else (wanted, "asked for")


def require_possible(config: Config, device: Device, precision: Precision) -> None:
    """BackendError for settings that this device cannot honour."""
    require_dtype(config.model.dtype, device)
    if config.training.activation_offloading and device != "cuda":
        raise BackendError(
            f"training.activation_offloading needs a CUDA GPU (this run is on {device})",
            hint="leave it out; where memory is short, set training.gradient_checkpointing to true",
        )
    if precision == "fp16" and config.adapter.method == "full" and config.model.dtype == "float16":
        raise BackendError(
            "model.dtype: float16 weights cannot be trained in fp16", hint="leave model.dtype on auto (float32)"
        )


def _free_memory(device: Device, num_processes: int) -> int | None:
    """What is free on the device; of a CPU's memory, which its processes share, a process's part."""
    there = processes_here() if is_launched() else num_processes
    free = free_memory(device)
    return free if free is None or device != "cpu" else free // there


def _asked_quantization(config: Config) -> Quantization:
    return "4bit" if config.model.load_in_4bit else "8bit" if config.model.load_in_8bit else "none"


def _quantization(config: Config, facts: ModelFacts, *, is_here: bool) -> Quantization:
    """How the base is stored: as asked for, or as it is stored already."""
    asked, stored = _asked_quantization(config), facts.quantization
    if stored != "none" and asked not in ("none", stored):
        raise ConfigError(
            f"model.load_in_{asked}: {config.model.name_or_path} is stored in {stored.removesuffix('bit')} bits",
            hint=f"leave it out, or set load_in_{stored}",
        )
    quantization = stored if stored != "none" else asked
    if is_here:
        require_quantization(quantization, because=None if asked != "none" else config.model.name_or_path)
    if quantization != "none" and config.adapter.method == "full":
        raise ConfigError(
            "adapter.method: full cannot train quantised weights",
            hint="use adapter.method: lora, or a base that is not quantised with load_in_4bit: false",
        )
    return quantization


def model_request(config: Config, machine: Machine, *, max_length: int) -> ModelRequest:
    """The model to train, adapter and all; every setting has been decided."""
    adapter, targets = config.adapter, config.adapter.target_modules
    settings = LoraSettings(
        r=int(adapter.r),
        lora_alpha=adapter.lora_alpha,
        lora_dropout=adapter.lora_dropout,
        target_modules=targets if isinstance(targets, str) else tuple(targets),
        bias=adapter.bias,
        init_from=adapter.init_from,
        use_rslora=adapter.use_rslora,
        use_dora=adapter.use_dora,
        init_lora_weights=adapter.init_lora_weights,
        modules_to_save=adapter.modules_to_save,
        target_parameters=adapter.target_parameters,
    )
    return ModelRequest(
        source=machine.source,
        options=_model_options(config, machine),
        adapter=settings if adapter.method == "lora" else None,
        seed=config.training.seed,
        max_length=max_length,
        gradient_checkpointing=bool(config.training.gradient_checkpointing),
    )


def stored_dtype(config: Config, precision: Precision) -> str:
    """torch's name of the base's dtype: a frozen one is stored as it computes, weights that train are fp32."""
    if config.model.dtype != "auto":
        return config.model.dtype
    return DTYPES[precision] if config.adapter.method == "lora" else "float32"


def _model_options(config: Config, machine: Machine) -> ModelOptions:
    dtype = stored_dtype(config, machine.precision)
    device: Device = "cpu" if _is_shared_out_from_cpu(config, machine, _BYTES[dtype]) else machine.device
    options = ModelOptions(dtype, device, machine.quantization, config.model.trust_remote_code)
    options = replace(options, is_sharded=config.training.strategy == "fsdp")
    return replace(options, is_stored_quantized=machine.facts.quantization != "none")


def _is_shared_out_from_cpu(config: Config, machine: Machine, bytes_a_weight: int) -> bool:
    """True of a model that no device holds as a whole: fsdp takes its shares out of the CPU's memory."""
    is_plain = config.training.strategy == "fsdp" and machine.quantization == "none"
    free = machine.free_memory
    return is_plain and free is not None and machine.parameters * bytes_a_weight > free


def processes_of(config: Config) -> int:
    """The processes a launcher started; without one, those that the config asks for. ConfigError if both differ."""
    there, wanted = running_processes(), config.training.num_processes
    if wanted is None or not is_launched():
        return wanted or there
    if wanted != there:
        raise ConfigError(
            f"training.num_processes is {wanted}, and {there} is running",
            hint="leave it out, or start as many",
        )
    return there


def require_started(machine: Machine) -> None:
    """ConfigError if the config asks for processes that nobody has started."""
    if machine.num_processes != (there := running_processes()):
        raise ConfigError(
            f"training.num_processes is {machine.num_processes}, and {there} is running",
            hint="start them on the command line: truetune train starts as many; for Python there is torchrun",
        )
