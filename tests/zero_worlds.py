"""Real processes that train with DeepSpeed's ZeRO on this machine, and what they are to train.

Run as a program it is one of them.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import worlds

_EVALUATED: dict[str, Any] = {
    "test_size": 5,
    "eval_strategy": "steps",
    "eval_steps": 1,
    "per_device_eval_batch_size": 2,
}
_BEST: dict[str, Any] = {"save_strategy": "steps", "save_steps": 1, "load_best_model_at_end": True}
PLAIN: dict[str, dict[str, Any]] = {
    "adapter": {"max_steps": 4, **_EVALUATED},
    "tiny": {"num_train_epochs": 2},
    "answered": {"loraplus_lr_ratio": 4.0, "max_grad_norm": 0.05},
    "whole": {"max_steps": 3, "method": "full", "learning_rate": 1e-4, **_EVALUATED, **_BEST},
}
"""What one process trains without DeepSpeed."""

OFFLOADED: dict[str, Any] = {
    "zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}, "reduce_bucket_size": "auto"}
}
ZERO1: dict[str, Any] = {"zero_optimization": {"stage": 1}}
ZERO: dict[str, tuple[str, Any]] = {
    "adapter-zero2": ("adapter", "zero2"),
    "adapter-zero3": ("adapter", "zero3"),
    "tiny-zero3": ("tiny", "zero3"),
    "answered-zero3": ("answered", "zero3"),
    "whole-zero1": ("whole", ZERO1),
    "whole-zero2": ("whole", "zero2"),
    "whole-zero3": ("whole", "zero3"),
    "whole-offloaded": ("whole", OFFLOADED),
}
"""And what several do with it: of which run, and how."""

SAVED: dict[str, Any] = {**worlds.SAVED, "method": "full", "learning_rate": 1e-4}


def train(folder: Path, name: str, *, processes: int, output: str | None = None, **settings: Any) -> Any:
    more = {**PLAIN.get(name, {}), **settings}
    return worlds.train(folder, name, processes=processes, output=output or f"{name}-{processes}", **more)


def train_zero(folder: Path, name: str, *, processes: int) -> Any:
    plain, deepspeed = ZERO[name]
    return train(folder, plain, processes=processes, output=f"{name}-{processes}", deepspeed=deepspeed)


def start(size: int, folder: Path, *names: str) -> list[subprocess.Popen[str]]:
    import warm

    port = worlds.free_port()
    return [
        subprocess.Popen(
            warm.python(Path(__file__), json.dumps(_names(rank, size, port)), folder, *names),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]


def _names(rank: int, size: int, port: int) -> dict[str, Any]:
    return worlds._said_by_torchrun(rank, size, port, "127.0.0.1", are_apart=False)


def main(names: dict[str, Any], folder: Path, scenarios: list[str]) -> None:
    import torch

    os.environ.update({name: str(value) for name, value in names.items()})
    torch.set_num_threads(1)
    size = int(os.environ["WORLD_SIZE"])
    for name in scenarios:
        if name in ZERO:
            train_zero(folder, name, processes=size)
        else:  # saved-zero2-3: with ZeRO 2, to the third step
            _, deepspeed, steps = name.split("-")
            go_on(folder, deepspeed, processes=size, output=f"saved-{deepspeed}-{size}", steps=int(steps))


def go_on(folder: Path, deepspeed: str | None, *, processes: int, output: str, steps: int) -> Any:
    """A full fine-tuning to that step, from the last checkpoint if there is one."""
    options: dict[str, Any] = {**SAVED, **({"deepspeed": deepspeed} if deepspeed else {})}
    resume = (folder / output).exists()
    return train(
        folder, "saved", processes=processes, output=output, max_steps=steps, resume_from_checkpoint=resume, **options
    )


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
