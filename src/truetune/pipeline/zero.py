"""A config's DeepSpeed settings: read from where they stand, and settled by what the run has decided."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from truetune.config.document import document_of, plain
from truetune.config.schema import Config
from truetune.errors import ConfigError
from truetune.model.source import metadata_has
from truetune.training.deepspeed_settings import PRESETS, RunSettings, Settled, require_deepspeed, settle
from truetune.training.schedule import Schedule

if TYPE_CHECKING:
    from truetune.pipeline.machine import Machine


def uses_deepspeed(config: Config) -> bool:
    """True if the config asks for it, by strategy or by its settings."""
    training = config.training
    return training.strategy == "deepspeed" or (training.strategy == "auto" and training.deepspeed is not None)


def require_zero(config: Config) -> None:
    """ConfigError if DeepSpeed is asked for by settings that cannot be read; BackendError if it is missing."""
    if uses_deepspeed(config):
        given_settings(config)
        require_deepspeed(is_installed=metadata_has("deepspeed"))


def given_settings(config: Config) -> Mapping[str, Any] | None:
    """DeepSpeed's config as the user gave it: by the name of one of ours, in a file, or as it is; None if none is."""
    match config.training.deepspeed:
        case str() as name if name in PRESETS:
            return PRESETS[name]
        case str() as path:
            return plain(document_of(_file(path)))  # type: ignore[no-any-return]
        case given:
            return given


def _file(name: str) -> Path:
    """The file of that name. ConfigError for a name that is neither one of ours nor a file's."""
    if not (path := Path(name)).exists():
        raise ConfigError(
            f"training.deepspeed: {name} is neither {' nor '.join(PRESETS)} nor a file",
            hint="name one of these, or a .json file as DeepSpeed reads it",
        )
    return path


def zero_stage(config: Config) -> int:
    """What DeepSpeed shares out: nothing (0), states and gradients (1 and 2), or weights as well (3)."""
    if config.training.strategy != "deepspeed":
        return 0
    zero = (given_settings(config) or PRESETS["zero2"]).get("zero_optimization", {})
    stage = zero.get("stage") if isinstance(zero, Mapping) else None
    return stage if isinstance(stage, int) else 0


def settled(config: Config, machine: "Machine", steps: Schedule) -> Settled | None:
    """DeepSpeed's config for a run that is decided; None for a run without it. ConfigError where the two disagree."""
    given = given_settings(config)
    if config.training.strategy != "deepspeed" or given is None:
        return None
    training = config.training
    return settle(
        given,
        RunSettings(
            per_device_train_batch_size=int(training.per_device_train_batch_size),
            gradient_accumulation_steps=steps.gradient_accumulation_steps,
            num_processes=machine.num_processes,
            max_grad_norm=training.max_grad_norm,
            learning_rate=float(training.learning_rate),
            weight_decay=training.weight_decay,
            adam_betas=(training.adam_beta1, training.adam_beta2),
            adam_epsilon=training.adam_epsilon,
            optim=training.optim,
            lr_scheduler_type=training.lr_scheduler_type,
            warmup_steps=int(steps.warmup_steps),
            total_steps=steps.total_steps,
            precision=machine.precision,
            hidden=machine.shape.hidden,
        ),
    )
