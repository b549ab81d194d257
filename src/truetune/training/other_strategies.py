"""What accelerate's own configuration asks for and would not happen here: refused, not left out silently."""

import os

from truetune.errors import BackendError

_ENGINES = {
    "ACCELERATE_USE_FSDP": ("FSDP", "set training.strategy: fsdp instead"),
    "ACCELERATE_USE_DEEPSPEED": ("DeepSpeed", "set training.deepspeed instead"),
    "ACCELERATE_USE_MEGATRON_LM": ("Megatron-LM", "set training.strategy: fsdp instead"),
}

_SPLIT = {"CP": "context parallelism", "SP": "sequence parallelism", "TP": "tensor parallelism"}
"""A sample or a layer over several devices."""


def refuse_other_strategies() -> None:
    """BackendError where accelerate launch is configured to spread the model in another way than the run does."""
    for name, (engine, remedy) in _ENGINES.items():
        if os.environ.get(name, "").lower() == "true":
            raise BackendError(
                f"accelerate launch is configured for {engine}, which is not taken from there",
                hint=f"{remedy}, and launch with --multi_gpu, torchrun or truetune train --num-processes",
            )
    for name, what in _SPLIT.items():
        if os.environ.get(f"PARALLELISM_CONFIG_{name}_SIZE", "1") != "1":
            raise BackendError(
                f"accelerate launch is configured for {what}, which is not supported: the samples of a pack would no "
                "longer be kept apart",
                hint="leave it out; training.strategy: fsdp shares a model out that no device holds",
            )
