"""The machine as the system describes it: asked without torch, which may be what is broken."""

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from truetune.cgroups import cpu_quota, memory_left
from truetune.environment import usable_threads
from truetune.figures import byte_size

_CPUINFO = Path("/proc/cpuinfo")
_FEATURES: Mapping[str, frozenset[str]] = {
    "AVX2": frozenset({"avx2"}),
    "AVX512": frozenset({"avx512f", "avx512_f"}),
    "AVX512_VNNI": frozenset({"avx512_vnni"}),
    "AVX512_BF16": frozenset({"avx512_bf16"}),
    "AVX512_FP16": frozenset({"avx512_fp16"}),
    "AMX_BF16": frozenset({"amx_bf16"}),
    "AMX_INT8": frozenset({"amx_int8"}),
    "NEON": frozenset({"asimd", "neon"}),
    "BF16": frozenset({"bf16"}),
    "I8MM": frozenset({"i8mm"}),
    "SVE": frozenset({"sve"}),
    "SVE2": frozenset({"sve2"}),
}
"""What matrix products are faster by, under the names of Linux and of torch."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU that the NVIDIA driver knows; `memory` in its own words."""

    name: str
    memory: str
    driver: str


def processor() -> str:
    """The processor's name, as its maker writes it; its architecture where it has none."""
    named = dict(_cpuinfo()).get("model name") or _said("sysctl", "-n", "machdep.cpu.brand_string")
    return named or platform.processor() or platform.machine()


def features(torch_names: tuple[str, ...] = ()) -> tuple[str, ...]:
    """What the processor can that matters here: by Linux, and by torch where that is not asked."""
    found = dict(_cpuinfo())
    there = {*found.get("flags", "").split(), *found.get("Features", "").split(), *torch_names}
    return tuple(name for name, names in _FEATURES.items() if names & there)


def nvidia_gpus() -> tuple[Gpu, ...]:
    """The GPUs of the NVIDIA driver, whether or not torch sees them; none where there is no driver."""
    said = _said("nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader")
    rows = (tuple(part.strip() for part in line.split(",")) for line in said.splitlines())
    return tuple(Gpu(*row) for row in rows if len(row) == 3)


def granted() -> dict[str, str]:
    """Cores, memory and swap, with what a container's limits leave of them."""
    quota = cpu_quota()
    return {
        "cpus": str(os.cpu_count() or 1),
        "usable_threads": str(usable_threads()),
        **({"cpu limit": f"{quota:g} cores' time (container)"} if quota else {}),
        **_memory(),
    }


def system() -> str:
    """The system and its version, and whether it is Linux inside Windows."""
    name = f"{platform.system()} {platform.release()}"
    return f"{name} (WSL)" if is_wsl() else name


def is_wsl() -> bool:
    """True in Windows' subsystem for Linux, whose kernels carry the maker's name."""
    return "microsoft" in platform.release().lower()


def free_disk(path: Path) -> int | None:
    """The bytes free where `path` is or would be made; None where that cannot be asked."""
    try:
        return shutil.disk_usage(standing(path)).free
    except OSError:
        return None


def is_writable(path: Path) -> bool:
    """True if files can be made at `path`, or the folder itself: asked, without making any."""
    there = standing(path)
    return there.is_dir() and os.access(there, os.W_OK | os.X_OK)


def standing(path: Path) -> Path:
    """`path` itself, or the nearest above it that exists."""
    return next(each for each in (path.absolute(), *path.absolute().parents) if os.path.lexists(each))


def _memory() -> dict[str, str]:
    try:
        from psutil import swap_memory, virtual_memory  # type: ignore[import-untyped]
    except ImportError:
        return {"memory": "unknown (psutil cannot be imported)"}
    memory, swap, left = virtual_memory(), swap_memory(), memory_left()
    # Version 1 of control groups writes no limit as a number beyond all memory.
    limit = (
        {"memory limit": f"{byte_size(left)} left (container)"} if left is not None and left < memory.total else {}
    )
    return {
        "memory": f"{byte_size(memory.total)}, {byte_size(memory.available)} free",
        **limit,
        "swap": f"{byte_size(swap.total)}, {byte_size(swap.free)} free" if swap.total else "none",
    }


def _cpuinfo() -> Iterator[tuple[str, str]]:
    """The first processor's lines of Linux' own description; none elsewhere."""
    try:
        text = _CPUINFO.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return
    for line in text.partition("\n\n")[0].splitlines():
        name, _, value = line.partition(":")
        yield name.strip(), value.strip()


def _said(*command: str) -> str:
    """A command's output; nothing where it is not there, fails or hangs."""
    if shutil.which(command[0]) is None or (command[0] == "sysctl" and sys.platform != "darwin"):
        return ""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
