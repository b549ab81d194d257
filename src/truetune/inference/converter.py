"""llama.cpp's own converter, for architectures that truetune writes no GGUF of."""

import os
import subprocess
import sys
from pathlib import Path

from truetune.errors import BackendError, ConfigError
from truetune.inference.quantization import Quantization

PROGRAM = "convert_hf_to_gguf.py"
_TYPES = ("f32", "f16", "bf16", "q8_0")


def find_converter(folder: str | None) -> Path | None:
    """The converter in llama.cpp's folder, named here or by $LLAMA_CPP. ConfigError if it is not in there."""
    named = folder or os.environ.get("LLAMA_CPP")
    if not named:
        return None
    program = Path(named) / PROGRAM
    if not program.is_file():
        raise ConfigError(f"{named} holds no {PROGRAM}", hint="name the folder of llama.cpp's source")
    return program


def convert(program: Path, model: Path, out: Path, *, quantization: Quantization) -> int:
    """Has llama.cpp write the GGUF of a model's folder; returns its size. BackendError if it fails."""
    if quantization.name not in _TYPES:
        raise BackendError(
            f"llama.cpp's converter writes no {quantization.name}",
            hint=f"use one of {', '.join(_TYPES)}, and run llama-quantize on it",
        )
    command = [sys.executable, *map(str, (program, model, "--outfile", out, "--outtype", quantization.name))]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode or not out.stat().st_size:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise BackendError(f"{program.name} failed: {lines[-1] if lines else f'exit status {done.returncode}'}")
    return out.stat().st_size
