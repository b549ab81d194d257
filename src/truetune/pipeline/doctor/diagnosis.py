"""The whole examination: what runs in processes of its own, what is asked meanwhile, and what both together show."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from truetune.environment import spinning_threads, usable_threads
from truetune.figures import byte_size
from truetune.listener import Listener
from truetune.model.source import cache_directory
from truetune.pipeline.doctor import hardware
from truetune.pipeline.doctor.known import Trouble, troubles
from truetune.pipeline.doctor.libraries import (
    Extra,
    Library,
    conflicts,
    extras,
    installed_version,
    installed_versions,
    libraries,
)
from truetune.pipeline.doctor.probes import Outcome, take
from truetune.pipeline.doctor.signs import Evidence
from truetune.pipeline.doctor.surroundings import Hub, hub_of, variables

_STEPS = ("filelock", "ftfy", "jinja2", "psutil", "pydantic", "ruamel.yaml", "huggingface_hub", "numpy", "pyarrow")
_TORCH = ("torch", "device")
_OPTIONAL = {
    "triton": "triton",
    "scipy": "scipy",
    "torchvision": "torchvision",
    "torchaudio": "torchaudio",
    "flash_attn": "flash-attn",
    "bitsandbytes": "bitsandbytes",
    "wandb": "wandb",
}
"""Taken before what loads them, so that each answers for itself."""
_ENGINE = ("transformers", "accelerate", "datasets", "peft", "trl")


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What the machine is, what is installed, what surrounds it, and what is wrong; no secret is in any of it."""

    machine: Mapping[str, str]
    versions: Mapping[str, str]
    libraries: tuple[Library, ...]
    extras: tuple[Extra, ...]
    hub: Hub
    environment: Mapping[str, str]
    problems: tuple[Trouble, ...]

    @property
    def is_well(self) -> bool:
        """True if nothing but notes was found."""
        return all(each.severity != "problem" for each in self.problems)

    def as_json(self) -> dict[str, Any]:
        return {
            "facts": {**self.versions, **self.machine},
            "libraries": [_fields(each) for each in self.libraries],
            "extras": [_fields(each) for each in self.extras],
            "hub": self.hub.as_json(),
            "environment": dict(self.environment),
            "problems": [each.as_json() for each in self.problems],
        }


def diagnose(listener: Listener | None = None) -> Diagnosis:
    """Imports every library, multiplies matrices, asks system and hub: in processes of their own, side by side.

    What is broken, or not there at all, is a line of the report; nothing raises for it.
    """
    with ThreadPoolExecutor() as together:
        hub = together.submit(take, ["hub"], seconds=20.0)
        gpus = together.submit(hardware.nvidia_gpus)
        steps = take(_steps(), listener=listener)  # Here, so that Ctrl-C ends it.
        evidence = _evidence(steps, hub_of(hub.result()["hub"]), gpus.result())
    return Diagnosis(
        machine=_machine(evidence),
        versions=evidence.installed,
        libraries=evidence.libraries,
        extras=extras(),
        hub=evidence.hub,
        environment=evidence.environment,
        problems=troubles(evidence),
    )


def _steps() -> list[str]:
    optional = (step for step, package in _OPTIONAL.items() if installed_version(package))
    torchao = ["torchao"] if installed_version("torchao") else []
    return [*_STEPS, *_TORCH, *optional, *_ENGINE[:-1], *torchao, _ENGINE[-1]]


def _evidence(steps: Mapping[str, Outcome], hub: Hub, gpus: tuple[hardware.Gpu, ...]) -> Evidence:
    return Evidence(
        steps=steps,
        libraries=libraries(),
        installed=installed_versions(),
        conflicts=conflicts(),
        gpus=gpus,
        device=steps["device"].facts,
        usable_threads=usable_threads(),
        spinning=spinning_threads(),
        is_wsl=hardware.is_wsl(),
        caches=_places(hub),
        hub=hub,
        environment=variables(),
    )


def _places(hub: Hub) -> dict[str, Path]:
    hubs = {"the hub's cache": Path(hub.cache)} if hub.cache else {}
    return {"truetune's cache": cache_directory(), **hubs, "this directory": Path.cwd()}


def _machine(evidence: Evidence) -> dict[str, str]:
    device = evidence.device
    return {
        **device.get("described", {}),
        "system": hardware.system(),
        "processor": hardware.processor(),
        "instructions": ", ".join(hardware.features(tuple(device.get("features", ())))) or "none of note",
        **hardware.granted(),
        **_gpus(evidence),
        **({name: str(device[name]) for name in ("device", "precision")} if device else {}),
        **{f"{name} matmul": f"{speed:,.0f} GFLOP/s" for name, speed in device.get("gigaflops", {}).items()},
        "cache": str(cache_directory()),
        **{f"free disk, {name}": _free(path) for name, path in evidence.caches.items()},
    }


def _gpus(evidence: Evidence) -> dict[str, str]:
    """What torch sees and what the driver knows: where they differ, that is the news."""
    seen = [
        f"{gpu['name']} ({byte_size(gpu['memory'])}, compute capability {gpu['capability']})"
        for gpu in evidence.device.get("gpus", ())
    ]
    cuda, hip = evidence.device.get("cuda"), evidence.device.get("hip")
    built = f"CUDA {cuda}" if cuda else f"ROCm {hip}" if hip else "CPU"
    known = [f"{gpu.name} ({gpu.memory}, driver {gpu.driver})" for gpu in evidence.gpus]
    return {
        "gpus": ", ".join(seen) or "none",
        **({"nvidia driver knows": ", ".join(known)} if known else {}),
        **({"torch built for": built} if evidence.device else {}),
    }


def _free(path: Path) -> str:
    free = hardware.free_disk(path)
    return f"{byte_size(free) if free is not None else 'unknown'} ({path})"


def _fields(value: Library | Extra) -> dict[str, str | None]:
    return {name: getattr(value, name) for name in value.__dataclass_fields__}
