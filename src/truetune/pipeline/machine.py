"""What a config meets on this machine: device, precision, model, tokenizer; whatever it refuses, it refuses here."""

import os
from dataclasses import dataclass
from typing import Any

from truetune.config.schema import Config
from truetune.errors import BackendError, ConfigError
from truetune.listener import Listener
from truetune.model.adapter import LoraSettings, add_adapter
from truetune.model.attention import isolates_samples
from truetune.model.hardware import (
    DTYPES,
    Device,
    Precision,
    describe,
    resolve_device,
    resolve_precision,
    use_one_gpu,
)
from truetune.model.load import (
    ModelOptions,
    Quantization,
    context_length,
    count_parameters,
    load_model,
    require_optimizer,
    require_quantization,
)
from truetune.model.source import ModelSource, fingerprint, resolve_model
from truetune.model.tokenizer import load_tokenizer

_LIBRARIES = ("truetune", "torch", "transformers", "trl", "peft", "datasets", "accelerate")


@dataclass(frozen=True, slots=True)
class Machine:
    """What the config meets here: device and precision, the model's source, its tokenizer and context."""

    device: Device
    precision: Precision
    quantization: Quantization
    source: ModelSource
    tokenizer: Any
    context_length: int | None
    parameters: int
    num_processes: int
    fingerprint: str | None

    def as_record(self, model: Any) -> dict[str, Any]:
        """What run.json keeps about model and machine."""
        return {
            "model": {
                "name_or_path": self.source.name,
                "revision": getattr(model.config, "_commit_hash", None) or self.source.revision,
                "fingerprint": self.fingerprint,
                "dtype": str(model.dtype).removeprefix("torch."),
            },
            "precision": self.precision,
            "device": self.device,
            "num_processes": self.num_processes,
            "hardware": describe(),
            "versions": versions(),
        }


def versions() -> dict[str, str]:
    """The versions of the libraries a run stands on."""
    from importlib import metadata

    return {name: metadata.version(name) for name in _LIBRARIES}


def ask_machine(config: Config, listener: Listener) -> Machine:
    """Checks everything a machine can refuse, then loads the tokenizer. Raises BackendError."""
    from truetune.training.trackers import require_trackers

    require_trackers(config.logging.report_to)
    quantization = quantization_of(config)
    require_quantization(quantization)
    require_optimizer(config.training.optim)
    if quantization != "none" and config.adapter.method == "full":
        raise ConfigError(
            "adapter.method: full cannot train quantised weights",
            hint="use adapter.method: lora, or load_in_4bit: false",
        )
    device = resolve_device(config.model.device)
    if device == "cuda" and (said := use_one_gpu()):
        listener.say(said)
    precision = resolve_precision(config.training.precision, device)
    if precision == "fp16" and config.adapter.method == "full" and config.model.dtype == "float16":
        raise BackendError(
            "model.dtype: float16 weights cannot be trained in fp16", hint="leave model.dtype on auto (float32)"
        )
    source = resolve_model(config.model.name_or_path, revision=config.model.revision)
    trust = config.model.trust_remote_code
    return Machine(
        device=device,
        precision=precision,
        quantization=quantization,
        source=source,
        tokenizer=load_tokenizer(source, trust_remote_code=trust),
        context_length=context_length(source, trust_remote_code=trust),
        parameters=count_parameters(source, trust_remote_code=trust),
        num_processes=_num_processes(config),
        fingerprint=fingerprint(source),
    )


def quantization_of(config: Config) -> Quantization:
    return "4bit" if config.model.load_in_4bit else "8bit" if config.model.load_in_8bit else "none"


def load_base_model(config: Config, machine: Machine, listener: Listener) -> tuple[Any, bool]:
    """The model to train, adapter and all, and whether it keeps concatenated rows apart."""
    listener.say(f"loading {machine.source.name} on {machine.device}, computing in {machine.precision}")
    model = load_model(machine.source, _model_options(config, machine))
    isolates = isolates_samples(model)
    if config.adapter.method == "lora":
        adapter = config.adapter
        targets = adapter.target_modules
        settings = LoraSettings(
            r=adapter.r,
            lora_alpha=adapter.lora_alpha,
            lora_dropout=adapter.lora_dropout,
            target_modules=targets if isinstance(targets, str) else tuple(targets),
            bias=adapter.bias,
            init_from=adapter.init_from,
        )
        model = add_adapter(model, settings, seed=config.training.seed)
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    total = sum(parameter.numel() for parameter in model.parameters())
    listener.say(f"{trainable:,} of {total:,} weights are trained ({trainable / total:.2%})")
    return model, isolates


def _model_options(config: Config, machine: Machine) -> ModelOptions:
    """A frozen base is stored as it computes; weights that train are fp32 unless asked otherwise."""
    dtype: str = config.model.dtype
    if dtype == "auto":
        dtype = DTYPES[machine.precision] if config.adapter.method == "lora" else "float32"
    return ModelOptions(dtype, machine.device, machine.quantization, config.model.trust_remote_code)


def _num_processes(config: Config) -> int:
    """The processes a launcher started. ConfigError if the config counts on others."""
    there = int(os.environ.get("WORLD_SIZE", "1"))
    wanted = config.training.num_processes
    if wanted is not None and wanted != there:
        raise ConfigError(
            f"training.num_processes is {wanted}, and {there} is running",
            hint="leave it out, or start as many",
        )
    return there
