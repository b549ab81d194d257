"""Real processes that share one model out among them (FSDP2), and what they are to train.

Run as a program it is one of them.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import worlds

MORE: dict[str, dict[str, Any]] = {
    "uneven": {},
    "tiny": {},
    "packed": {"gradient_checkpointing": True},
    "plus": {"modules_to_save": ["lm_head"]},
    "answered": {},
    "full": {
        "test_size": 5,
        "eval_strategy": "steps",
        "eval_steps": 1,
        "per_device_eval_batch_size": 2,
        "save_strategy": "steps",
        "save_steps": 1,
        "load_best_model_at_end": True,
    },
}
"""Of worlds.EXACT what is shared out, with settings that are tried beside."""

FOUR_BITS: dict[str, Any] = {"max_steps": 3, "load_in_4bit": True}
SAVED: dict[str, Any] = {**worlds.SAVED, "method": "full", "learning_rate": 1e-4}


def train(folder: Path, name: str, *, processes: int, output: str | None = None, **settings: Any) -> Any:
    more = {**MORE.get(name, {}), **settings}
    return worlds.train(folder, name, processes=processes, output=output or f"{name}-{processes}", **more)


def start(size: int, folder: Path) -> list[subprocess.Popen[str]]:
    import warm

    port = worlds.free_port()
    return [
        subprocess.Popen(
            warm.python(Path(__file__), json.dumps(_names(rank, size, port)), folder),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]


def _names(rank: int, size: int, port: int) -> dict[str, Any]:
    return worlds._said_by_torchrun(rank, size, port, "127.0.0.1", are_apart=False)


def main(names: dict[str, Any], folder: Path) -> None:
    import torch

    os.environ.update({name: str(value) for name, value in names.items()})
    torch.set_num_threads(1)
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if size == 2:
        _two(folder, rank)
    else:
        for name in ("uneven", "full"):
            train(folder, name, processes=size, strategy="fsdp")
        train(folder, "saved", processes=size, max_steps=6, resume_from_checkpoint=True, strategy="fsdp", **SAVED)


def _two(folder: Path, rank: int) -> None:
    for name in MORE:
        train(folder, name, processes=2, strategy="fsdp")
    train(folder, "full", processes=2, output="offloaded-2", strategy="fsdp", fsdp_cpu_offload=True)
    train(folder, "saved", processes=2, max_steps=3, strategy="fsdp", **SAVED)
    if (folder / "four_bits-1").exists():
        train(folder, "four_bits", processes=2, strategy="fsdp", **FOUR_BITS)
    outcome = worlds._outcome(lambda: _fails(folder, rank))
    (folder / f"failed-{rank}.json").write_text(json.dumps(outcome))


def _fails(folder: Path, rank: int) -> Any:
    """The second process fails between two layers, where the first one waits for its share."""
    from truetune.errors import BackendError

    def fail(_: Any) -> None:
        if rank == 1:
            raise BackendError("the fan of process 1 stands still")

    callbacks = [worlds._at(2, fail)]
    return train(folder, "uneven", processes=2, output="failed", strategy="fsdp", max_steps=4, callbacks=callbacks)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), Path(sys.argv[2]))
