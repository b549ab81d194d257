"""What this machine computes on, and in which precision: asked, never assumed."""

import os
import shutil
import sys
from functools import cache
from typing import Any, Literal

from truetune.cgroups import memory_left
from truetune.environment import spinning_threads, usable_threads
from truetune.errors import BackendError

Device = Literal["cpu", "cuda", "mps"]
Precision = Literal["fp32", "bf16", "fp16"]

DTYPES: dict[str, str] = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
"""torch's name of each precision."""


def resolve_device(device: Literal["auto", "cpu", "cuda", "mps"]) -> Device:
    """The device to use. BackendError if the one asked for is not there."""
    import torch

    there: dict[Device, bool] = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if device == "auto":
        return next(name for name, found in there.items() if found)
    if not there[device]:
        found = ", ".join(name for name, ok in there.items() if ok)
        raise BackendError(f"model.device: {device} is not available here", hint=f"available: {found}; or use auto")
    return device


def resolve_precision(precision: Literal["auto", "fp32", "bf16", "fp16"], device: Device) -> Precision:
    """How to compute: bf16 where the hardware does it natively, else fp32; never fp16 without a GPU."""
    if precision == "fp16" and device != "cuda":
        raise BackendError(
            f"training.precision: fp16 needs a CUDA GPU (this run is on {device}, where it would be slow or ignored)",
            hint="use precision: auto, which picks bf16 or fp32",
        )
    if precision == "bf16" and device == "cuda" and not has_native_bf16(device):
        raise BackendError(
            "training.precision: bf16 is not supported by this GPU (it needs Ampere or newer)",
            hint="use precision: fp16 or fp32",
        )
    if precision != "auto":
        return precision
    if has_native_bf16(device):
        return "bf16"
    return "fp16" if device == "cuda" else "fp32"


def require_dtype(dtype: str, device: Device) -> None:
    """BackendError if weights stored so would be multiplied without the hardware's help."""
    if dtype == "float16" and device == "cpu":
        # torch 2.13 on two cores with AMX: ten times as long as in fp32.
        raise BackendError(
            "model.dtype: float16 weights train on a GPU only (on cpu, as here, they take ten times as long)",
            hint="leave model.dtype on auto, which stores them as they are computed: bfloat16 or float32",
        )


def emulated(precision: Precision, device: Device) -> str | None:
    """What it costs to compute in bf16 on a CPU that has no instructions for it; None if it has."""
    if device != "cpu" or precision != "bf16" or has_native_bf16(device):
        return None
    # torch 2.13, products of 1,024 on one core held to AVX-512, then to AVX2: 28 and 1 GFLOP/s, in fp32 84 and 89.
    return (
        "training.precision: this CPU has no instructions for bf16, so that matrix products take 3 times as long as "
        "in fp32 with AVX-512, and up to 90 times without it; auto chooses fp32"
    )


def has_native_bf16(device: Device) -> bool:
    """True if bf16 matrix products are computed in hardware on `device`."""
    import torch

    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # Older torch cannot be asked about the CPU; fp32 is right everywhere.
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return device == "cpu" and bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def lacks_compiler() -> str | None:
    """What torch.compile lacks on this machine's CPU, with the remedy; None if nothing."""
    wanted = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    return None if shutil.which(wanted) else f"torch compiles with {wanted}, which is not installed here"


def free_memory(device: Device) -> int | None:
    """The bytes that a training can still take on `device`; None where that cannot be asked."""
    match device:
        case "cuda":
            import torch

            return int(torch.cuda.mem_get_info()[0])
        case "mps":
            import torch

            return int(torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
        case "cpu":
            from psutil import virtual_memory  # type: ignore[import-untyped]

            granted, available = memory_left(), int(virtual_memory().available)
            return available if granted is None else min(available, granted)


def used_memory(device: str) -> int:
    """The bytes that this process holds now: on CUDA its tensors, else its resident memory."""
    if device == "cuda":
        import torch

        return int(torch.cuda.memory_allocated())
    return int(_process(os.getpid()).memory_info().rss)


@cache
def _process(number: int) -> Any:
    """psutil's view of a process, whose making takes ten times as long as a look at its memory."""
    from psutil import Process

    return Process(number)


def threads() -> str:
    """How torch computes on the CPU, in words."""
    import torch

    count = torch.get_num_threads()
    how = "may spin" if spinning_threads() else "sleep"
    return f"{count} threads, which {how} while they wait" if count > 1 else "1 thread"


def use_one_gpu() -> str | None:
    """Hides all GPUs but the first from a process no launcher started; says so, or None where nothing changed.

    Trainer would otherwise split every batch over them in one process. Must run before CUDA is initialised.
    """
    import torch

    if "WORLD_SIZE" in os.environ or torch.cuda.device_count() < 2:
        return None
    count = torch.cuda.device_count()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0")
    os.environ["CUDA_VISIBLE_DEVICES"] = visible.split(",")[0]
    return f"{count} GPUs are visible and one is used; truetune train --num-processes {count} uses all"


def describe() -> dict[str, str | int]:
    """The machine, for run.json and `doctor`."""
    import platform

    import torch

    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "machine": platform.machine(),
        "system": platform.system(),
        "cpus": os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "usable_threads": usable_threads(),
        "wait_policy": os.environ.get("OMP_WAIT_POLICY", "not set"),
        "gpus": ", ".join(gpus) or "none",
        "native_bf16": str(has_native_bf16(resolve_device("auto"))).lower(),
    }
