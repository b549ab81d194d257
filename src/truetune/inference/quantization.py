"""How the weights of a GGUF are stored: the names llama.cpp has for it, and which tensor gets what."""

import ctypes
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from truetune.errors import BackendError, ConfigError

Stored = str
"""ggml's name of a tensor's type: F32, F16, BF16, Q8_0, Q4_K, …"""

_BLOCK, _SUPER_BLOCK = 32, 256
_NARROW: Mapping[Stored, Stored] = {"Q3_K": "IQ4_NL", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
"""What llama.cpp takes where a row is no multiple of 256 numbers, which the K types need."""


@dataclass(frozen=True, slots=True)
class Quantization:
    """`most` matrices are stored so; those that quality hangs on get `better`, and the output layer `head`.

    `file_type` is llama.cpp's number (llama_ftype) of the whole.
    """

    name: str
    file_type: int
    most: Stored
    better: Stored
    head: Stored

    @property
    def is_exact(self) -> bool:
        return self.most in ("F32", "F16", "BF16")

    @property
    def needs_llama_cpp(self) -> bool:
        """The K types are written by llama.cpp's own code; the `gguf` library can only read them."""
        return self.most.endswith("_K")

    def stored(self, name: str, shape: tuple[int, ...], *, layers: int, is_tied: bool) -> Stored:
        """The type of a tensor, as llama.cpp's quantiser chooses it: vectors stay in float32."""
        if len(shape) < 2:
            return "F32"
        wanted = self._wanted(name, layers=layers, is_tied=is_tied)
        if wanted.endswith("_K") and shape[-1] % _SUPER_BLOCK:
            wanted = _NARROW[wanted]
        if wanted not in ("F32", "F16", "BF16") and shape[-1] % _BLOCK:
            return "F16"
        return wanted

    def _wanted(self, name: str, *, layers: int, is_tied: bool) -> Stored:
        if name == ("token_embd.weight" if is_tied else "output.weight"):
            return self.head
        if name.endswith(("attn_v.weight", "ffn_down.weight")) and _is_sensitive(int(name.split(".")[1]), layers):
            return self.better
        return self.most


def _is_sensitive(layer: int, layers: int) -> bool:
    """The first and the last eighth of the layers, and every third between (llama.cpp's use_more_bits)."""
    eighth = layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2


def _plain(name: str, file_type: int) -> Quantization:
    return Quantization(name, file_type, *[name.upper()] * 3)


QUANTIZATIONS: Mapping[str, Quantization] = {
    each.name: each
    for each in (
        _plain("f32", 0),
        _plain("f16", 1),
        _plain("bf16", 32),
        _plain("q8_0", 7),
        _plain("q6_k", 18),
        Quantization("q5_k_m", 17, "Q5_K", "Q6_K", "Q6_K"),
        Quantization("q4_k_m", 15, "Q4_K", "Q6_K", "Q6_K"),
        Quantization("q4_0", 2, "Q4_0", "Q4_0", "Q6_K"),
    )
}

_SAME: Mapping[str, str] = {"float32": "f32", "float16": "f16", "bfloat16": "bf16", "fp32": "f32", "fp16": "f16"}


def choose_quantization(name: str, *, dtype: str) -> Quantization:
    """What `name` stands for; auto is how the model is stored (`dtype`, torch's name). ConfigError for others."""
    asked = (dtype if name == "auto" else name).lower()
    known = QUANTIZATIONS.get(_SAME.get(asked, asked))
    if known is None:
        raise ConfigError(f"no such quantization: {name}", hint=f"one of auto, {', '.join(QUANTIZATIONS)}")
    if known.needs_llama_cpp or known.head.endswith("_K"):
        _require_native(known)
    return known


def _require_native(quantization: Quantization) -> None:
    if importlib.util.find_spec("xllamacpp") is None:
        raise BackendError(
            f"{quantization.name} is written by llama.cpp, which is not installed",
            hint="run: pip install 'truetune[llama-cpp]', or export f16 and run llama-quantize on it, or use q8_0",
        )


def packer(quantization: Quantization) -> Callable[[Any, Stored], Any]:
    """A function of a float32 matrix and a type that gives its bytes, shaped (rows, bytes a row) or as the matrix."""
    native = _Native() if quantization.head.endswith("_K") else None

    def pack(values: Any, stored: Stored) -> Any:
        from gguf import GGMLQuantizationType
        from gguf.quants import quantize

        if native and (stored.endswith("_K") or stored == "IQ4_NL"):
            return native.quantized(values, stored)
        return quantize(values, GGMLQuantizationType[stored])

    return pack


class _Native:
    """ggml's quantiser inside the library of xllamacpp, which hands it on to C: `ggml_quantize_chunk` of ggml.h."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(str(_shared_library()))
        self._quantize = self._library.ggml_quantize_chunk
        self._quantize.restype = ctypes.c_size_t
        long, pointer = ctypes.c_int64, ctypes.c_void_p
        self._quantize.argtypes = [ctypes.c_int, pointer, pointer, long, long, long, pointer]

    def quantized(self, values: Any, stored: Stored) -> Any:
        import numpy as np
        from gguf import GGMLQuantizationType
        from gguf.quants import quant_shape_to_byte_shape

        kind = GGMLQuantizationType[stored]
        values = np.ascontiguousarray(values, dtype=np.float32)
        packed = np.empty(quant_shape_to_byte_shape(values.shape, kind), dtype=np.uint8)
        rows, width = values.size // values.shape[-1], values.shape[-1]
        written = self._quantize(int(kind), values.ctypes.data, packed.ctypes.data, 0, rows, width, None)
        if written != packed.nbytes:
            raise BackendError(f"llama.cpp wrote {written} bytes of {packed.nbytes} for a matrix in {stored}")
        return packed


def _shared_library() -> Path:
    """Found without importing it: a library that cannot load here must not take this process with it."""
    spec = importlib.util.find_spec("xllamacpp")
    folder = Path(spec.origin or "").parent if spec else Path()
    found = [path for pattern in ("*.so", "*.dylib", "*.pyd") for path in folder.glob(pattern)]
    if not found:
        raise BackendError("llama.cpp's library is not where xllamacpp keeps it", hint="install xllamacpp again")
    return found[0]
