"""Which settings keep a model from being shared out over processes, by FSDP2 or by DeepSpeed."""

from collections.abc import Iterator
from dataclasses import dataclass

from truetune.config.schema import Config

ELEMENTWISE = ("auto", "adamw_torch", "adamw_torch_fused", "sgd", "adagrad", "rmsprop")
"""Optimizers that treat each number by itself: a share of a weight is to them as good as the whole."""


@dataclass(frozen=True, slots=True)
class Obstacle:
    """A setting, by dotted name, and why it does not go with fsdp."""

    name: str
    reason: str


def sharding_obstacles(config: Config) -> Iterator[Obstacle]:
    """What cannot be had with training.strategy: fsdp."""
    adapter, training, model = config.adapter, config.training, config.model
    if training.backend == "unsloth":
        yield Obstacle("training.backend", "Unsloth trains in one process: use trl")
    if training.torch_compile is True:
        yield Obstacle("training.torch_compile", "layers that are put together while they compute are not compiled")
    if training.activation_offloading:
        yield Obstacle("training.activation_offloading", "not tried: use training.gradient_checkpointing")
    if training.precision == "fp16":
        yield Obstacle("training.precision", "the scale of fp16's loss is one process's: use bf16 or fp32")
    if adapter.method == "full" and training.optim not in ELEMENTWISE:
        reason = f"{training.optim} looks at whole weights, or packs them: use {ELEMENTWISE[1]}"
        yield Obstacle("training.optim", reason)
    if model.load_in_8bit:
        yield Obstacle("model.load_in_8bit", "8-bit weights cannot be shared out: use load_in_4bit")
    if adapter.init_lora_weights not in ("default", "gaussian", "orthogonal"):
        reason = f"{adapter.init_lora_weights} changes the base, which is then saved against another one: use default"
        yield Obstacle("adapter.init_lora_weights", reason)
    if adapter.target_parameters:
        yield Obstacle("adapter.target_parameters", "adapters on a mixture's experts have not been tried")


def zero_obstacles(config: Config) -> Iterator[Obstacle]:
    """What cannot be had with training.strategy: deepspeed."""
    yield from (
        each for each in sharding_obstacles(config) if each.name not in ("training.optim", "model.load_in_8bit")
    )
    if config.training.optim not in ELEMENTWISE:
        reason = f"{config.training.optim} looks at whole weights, or packs them: use {ELEMENTWISE[1]}"
        yield Obstacle("training.optim", reason)
    for name in ("load_in_4bit", "load_in_8bit"):
        if getattr(config.model, name):
            yield Obstacle(f"model.{name}", "a quantised base has not been tried: use training.strategy: fsdp")
    if config.training.fsdp_cpu_offload and config.training.strategy == "auto":
        reason = "it is of fsdp: set zero_optimization.offload_optimizer in training.deepspeed"
        yield Obstacle("training.fsdp_cpu_offload", reason)
