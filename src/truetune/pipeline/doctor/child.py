"""The process that the doctor's own does not risk itself in: it takes one step after another and tells how each went.

A library may end or hang it, print and change what it likes. `probes.py` is its other end: a JSON document a line.
"""

import gc
import importlib
import json
import os
import re
import sys
import time
import warnings
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

MODULES = {"trl": "trl.trainer.sft_trainer"}
"""What is imported of a library, where it is not the library itself: `import trl` alone loads nothing."""

NEEDS: Mapping[str, Collection[str]] = {
    "device": {"torch"},
    "torchvision": {"torch"},
    "torchaudio": {"torch"},
    "flash_attn": {"torch"},
    "bitsandbytes": {"torch"},
    "torchao": {"torch", "peft"},
    "transformers": {"numpy", "huggingface_hub"},
    "accelerate": {"numpy", "torch"},
    "datasets": {"numpy", "pyarrow"},
    "peft": {"torch", "transformers", "accelerate"},
    "trl": {"torch", "transformers", "accelerate", "datasets", "peft"},
}
"""Without which steps a step is not worth taking: its error would only repeat theirs."""

_BLOCKED = re.compile(r"import of (\S+) halted; None in sys\.modules")
_HUB_SECONDS = 3.0
_FIRST, _SECOND = 256, 1024
"""Sides of the matrices that are multiplied: the large ones only where the small ones are done in no time."""


def main() -> None:
    """Takes the steps that the first argument names, and none that `failed` makes pointless."""
    asked = json.loads(sys.argv[1])
    tell = _channel()
    # Imports make a million objects and hardly any garbage: without its collector they take a third less time.
    gc.disable()
    failed = set(asked["failed"])
    _block(failed)
    for step in asked["steps"]:
        tell({"step": step})
        missing = sorted(failed & set(NEEDS.get(step, ())))
        outcome = {"needs": missing[0]} if missing else _take(step)
        tell({"step": step, **outcome})
        if "facts" not in outcome:
            failed.add(step)
            _block({step})


def _channel() -> Callable[[Mapping[str, Any]], None]:
    """Writes to what was standard output; what libraries print goes to standard error."""
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def tell(event: Mapping[str, Any]) -> None:
        channel.write(json.dumps(event) + "\n")
        channel.flush()

    return tell


def _block(steps: Collection[str]) -> None:
    """From here on these are not installed, so that the others show whether they are sound without them."""
    for step in steps:
        sys.modules[step] = None  # type: ignore[assignment]


def _take(step: str) -> dict[str, Any]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        try:
            facts = _STEPS.get(step, lambda: _import(step))()
        except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever a broken package raises is what to tell
            blocked = _BLOCKED.search(reason := _root(error))
            return {"needs": blocked[1]} if blocked else {"error": reason}
    said = [str(each.message) for each in caught if issubclass(each.category, UserWarning)]
    return {"facts": facts, "warnings": said}


def _root(error: BaseException) -> str:
    """The first line of what began it: transformers wraps a library's own error in its own, twice."""
    while error.__cause__ is not None:
        error = error.__cause__
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {line}" if line else type(error).__name__


def _import(step: str) -> dict[str, Any]:
    importlib.import_module(MODULES.get(step, step))
    return {}


# --- steps that ask for more than an import ---------------------------------------------------------------


def _device() -> dict[str, Any]:
    import torch

    from truetune.model.hardware import describe, resolve_device, resolve_precision

    device = resolve_device("auto")
    return {
        "described": {name: str(value) for name, value in describe().items()},
        "device": device,
        "precision": resolve_precision("auto", device),
        "cuda": torch.version.cuda,
        "hip": torch.version.hip,
        "gpus": [_gpu(index) for index in range(torch.cuda.device_count())],
        "features": [name for name, there in getattr(torch.cpu, "get_capabilities", dict)().items() if there is True],
        "gigaflops": {name: _gigaflops(getattr(torch, dtype), device) for name, dtype in _TIMED.items()},
    }


_TIMED = {"fp32": "float32", "bf16": "bfloat16"}


def _gpu(index: int) -> dict[str, Any]:
    import torch

    properties = torch.cuda.get_device_properties(index)
    capability = f"{properties.major}.{properties.minor}"
    return {"name": properties.name, "memory": properties.total_memory, "capability": capability}


def _gigaflops(dtype: Any, device: str) -> float:
    """Of a matrix product. bf16 that the hardware does not know is up to 90 times slower: it is not waited for."""
    small = _timed(_FIRST, dtype, device)
    return max(small, _timed(_SECOND, dtype, device)) if small > 20 else small


def _timed(side: int, dtype: Any, device: str, repeats: int = 4) -> float:
    import torch

    matrix = torch.ones(side, side, dtype=dtype, device=device)
    float((matrix @ matrix)[0, 0])
    started = time.perf_counter()
    for _ in range(repeats):
        product = matrix @ matrix
    float(product[0, 0])
    return float(2 * side**3 * repeats / (time.perf_counter() - started) / 1e9)


def _bitsandbytes() -> dict[str, Any]:
    """Imported, it only logs that its library cannot be loaded, and raises at the first use."""
    from bitsandbytes import cextension

    lacks = isinstance(cextension.lib, cextension.ErrorHandlerMockBNBNativeLibrary)
    return {"library_error": str(getattr(cextension.lib, "error_msg", "")) if lacks else ""}


def _torchao() -> dict[str, Any]:
    """peft refuses one that it thinks too old when an adapter is made, where one did not ask for it at all."""
    from peft.import_utils import is_torchao_available

    is_torchao_available()
    return {}


def _hub() -> dict[str, Any]:
    """Where the hub's client looks, and whether an answer comes from there; of a token, only where it lies."""
    from huggingface_hub import constants

    path = Path(constants.HF_TOKEN_PATH)
    names = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
    from_environment = next((name for name in names if os.environ.get(name, "").strip()), None)
    from_file = str(path) if path.is_file() and path.read_text(encoding="utf-8", errors="replace").strip() else None
    return {
        "endpoint": constants.ENDPOINT,
        "offline": bool(constants.HF_HUB_OFFLINE),
        "cache": str(constants.HF_HUB_CACHE),
        "token_from": from_environment or from_file,
        "token_is_sent": not constants.HF_HUB_DISABLE_IMPLICIT_TOKEN,
        **({} if constants.HF_HUB_OFFLINE else _reach(constants.ENDPOINT)),
    }


def _reach(endpoint: str) -> dict[str, Any]:
    from huggingface_hub.utils import get_session

    started = time.perf_counter()
    try:
        status = get_session().head(endpoint, timeout=_HUB_SECONDS).status_code
    except Exception as error:  # noqa: BLE001 - httpx' errors, and those of whatever client stands in for it
        return {"reachable": False, "answer": _root(error)}
    seconds = time.perf_counter() - started
    return {"reachable": status < 500 and status != 407, "answer": f"HTTP {status} after {seconds:.2f} s"}


_STEPS: Mapping[str, Callable[[], dict[str, Any]]] = {
    "device": _device,
    "bitsandbytes": _bitsandbytes,
    "torchao": _torchao,
    "hub": _hub,
}


if __name__ == "__main__":
    main()
