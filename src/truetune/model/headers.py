"""What files of weights say at their beginning: names, shapes and dtypes, read without the weights.

safetensors: eight bytes of length, then JSON (huggingface.co/docs/safetensors). GGUF, versions 2 and 3: metadata and
a table of tensors (github.com/ggml-org/ggml, docs/gguf.md).
"""

import json
import struct
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

from truetune.errors import BackendError

Prefix = Callable[[int], bytes]
"""A file's first bytes: as many as asked for, fewer where it ends."""

_HEADS = frozenset({"lm_head", "embed_out", "output", "output_layer"})
"""What the output layer's tensor is called, before `.weight`."""

_FETCHED = 1 << 20
"""Bytes of a file that are read first: most headers are whole in them."""
_LONGEST = 100_000_000
"""Bytes of the longest header that safetensors itself reads; of a GGUF file's, more would be damage too."""
_POINTER = b"version https://git-lfs.github.com/spec/"
_KEPT_ITEMS = 4096
"""Items of a list in GGUF metadata that are kept: of layers all, of a vocabulary none."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A stored tensor: its shape with the rows first, its dtype as the file names it, its size in bytes."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    bytes: int

    @property
    def parameters(self) -> int:
        return prod(self.shape)


@dataclass(frozen=True, slots=True)
class Listed:
    """A list in GGUF metadata: how many items it has, and these, unless they are very many."""

    count: int
    items: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Headers:
    """All tensors of a model's files, and what the files say beside them."""

    tensors: tuple[TensorInfo, ...]
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def parameters(self) -> int:
        """Numbers that are stored: of packed weights (bitsandbytes, GPTQ) fewer than the model has."""
        return sum(tensor.parameters for tensor in self.tensors)

    @property
    def bytes_by_dtype(self) -> Mapping[str, int]:
        """The bytes of each dtype, the most first."""
        sizes: Counter[str] = Counter()
        for tensor in self.tensors:
            sizes[tensor.dtype] += tensor.bytes
        return dict(sizes.most_common())

    @property
    def dtype(self) -> str | None:
        """The dtype that takes the most bytes."""
        return next(iter(self.bytes_by_dtype), None)

    @property
    def has_output_layer(self) -> bool:
        """False where embeddings and output layer must be one tensor, since no file holds the second."""
        return any(_HEADS & set(tensor.name.split(".")[-2:]) for tensor in self.tensors)

    def rows_of(self, ending: str) -> int | None:
        """The rows of the first tensor whose name ends so."""
        return next((each.shape[0] for each in self.tensors if each.shape and each.name.endswith(ending)), None)


def joined(parts: Sequence[Headers]) -> Headers:
    """The headers of a model's several files as one."""
    metadata = {name: value for part in parts for name, value in part.metadata.items()}
    return Headers(tuple(tensor for part in parts for tensor in part.tensors), metadata)


def read_headers(name: str, prefix: Prefix, *, size: int) -> Headers:
    """The header of a .safetensors or .gguf file of `size` bytes. BackendError if it is damaged or cut off."""
    wanted = min(_FETCHED, size)
    while True:
        try:
            headers, end = _parsed(name, prefix(wanted))
        except _MoreError as more:
            if wanted >= size:
                raise _damaged(name, "it ends within its header") from None
            if more.bytes > _LONGEST:
                raise _damaged(name, "its header has no end") from None
            wanted = min(max(more.bytes, 4 * wanted), size)
        else:
            break
    if end > size:
        raise _damaged(name, f"it is cut off: its header names {end:,} bytes, and there are {size:,}")
    return headers


def _parsed(name: str, data: bytes) -> tuple[Headers, int]:
    """The header that `data` begins with, and where the file's last tensor ends."""
    if data.startswith(_POINTER):
        raise BackendError(
            f"{name} is a pointer of Git LFS, not the weights", hint="run: git lfs pull, where it lies"
        )
    try:
        return _gguf(data) if name.endswith(".gguf") else _safetensors(data)
    except _NoHeaderError as error:
        raise _damaged(name, str(error)) from None
    except _NONSENSE as error:
        raise _damaged(name, f"its header makes no sense ({type(error).__name__}: {error})") from None


_NONSENSE = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError, struct.error)
"""What reading a damaged header raises."""


class _MoreError(Exception):
    """The header is not whole in what was read: at least so many bytes are needed."""

    def __init__(self, count: int) -> None:
        super().__init__(count)
        self.bytes = count


class _NoHeaderError(Exception):
    """What was read is not the beginning of such a file."""


def _damaged(name: str, what: str) -> BackendError:
    return BackendError(f"cannot read {name}: {what}", hint="it may be damaged or half downloaded: fetch it again")


# --- safetensors ------------------------------------------------------------------------------------------


def _safetensors(data: bytes) -> tuple[Headers, int]:
    """The header, and where the last tensor ends."""
    if len(data) < 8:
        raise _MoreError(8)
    start = 8 + int.from_bytes(data[:8], "little")
    if data[8:9] not in (b"{", b""):
        raise _NoHeaderError("it is no safetensors file: no JSON stands at its beginning")
    if len(data) < start:
        raise _MoreError(start)
    document = json.loads(data[8:start])
    metadata = document.pop("__metadata__", None)
    last = max((int(each["data_offsets"][1]) for each in document.values()), default=0)
    return Headers(tuple(_entry(name, each) for name, each in document.items()), metadata or {}), start + last


def _entry(name: str, entry: Mapping[str, Any]) -> TensorInfo:
    begin, end = entry["data_offsets"]
    return TensorInfo(name, tuple(map(int, entry["shape"])), str(entry["dtype"]), int(end) - int(begin))


# --- GGUF -------------------------------------------------------------------------------------------------

_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _LIST = 8, 9

GGML_TYPES: Mapping[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    9: ("Q8_1", 32, 40),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1),
    25: ("I16", 1, 2),
    26: ("I32", 1, 4),
    27: ("I64", 1, 8),
    28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
    40: ("NVFP4", 64, 36),
    41: ("Q1_0", 128, 18),
}
"""Each type's name, the numbers in one of its blocks, and a block's bytes: as the package gguf (0.19) has them."""


class _Cursor:
    """Reads one value after the other, and asks for more where they end."""

    def __init__(self, data: bytes) -> None:
        self.data, self.place, self.order = data, 0, "<"

    def skip(self, count: int) -> int:
        """Where the next `count` bytes begin."""
        start, self.place = self.place, self.place + count
        if self.place > len(self.data):
            raise _MoreError(self.place)
        return start

    def number(self, code: str) -> Any:
        code = self.order + code
        return struct.unpack_from(code, self.data, self.skip(struct.calcsize(code)))[0]

    def numbers(self, code: str, count: int) -> tuple[Any, ...]:
        code = f"{self.order}{count}{code}"
        return struct.unpack_from(code, self.data, self.skip(struct.calcsize(code)))

    def text(self) -> str:
        length = self.number("Q")
        start = self.skip(length)
        return self.data[start : start + length].decode("utf-8", "replace")

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.text()
        if kind == _LIST:
            return self._list(self.number("I"), self.number("Q"))
        if kind not in _NUMBERS:
            raise _NoHeaderError(f"its metadata holds a value of unknown kind {kind}")
        return self.number(_NUMBERS[kind])

    def _list(self, kind: int, count: int) -> Listed:
        if count <= _KEPT_ITEMS:
            return Listed(count, tuple(self.value(kind) for _ in range(count)))
        if kind in _NUMBERS:
            self.skip(count * struct.calcsize(_NUMBERS[kind]))
        else:
            for _ in range(count):
                self.skip(self.number("Q")) if kind == _STRING else self.value(kind)
        return Listed(count, ())


def _gguf(data: bytes) -> tuple[Headers, int]:
    """The header, and where the last tensor ends."""
    cursor = _Cursor(data)
    if data[cursor.skip(4) : 4] != b"GGUF":
        raise _NoHeaderError("it is no GGUF file: it does not begin with GGUF")
    cursor.order = ">" if int.from_bytes(data[4:8], "little") & 0xFFFF == 0 and len(data) >= 8 else "<"
    version = cursor.number("I")
    if version not in (2, 3):
        raise _NoHeaderError(f"it is of GGUF version {version}; 2 and 3 can be read")
    tensors, entries = cursor.number("Q"), cursor.number("Q")
    metadata = {cursor.text(): cursor.value(cursor.number("I")) for _ in range(entries)}
    table = [_row(cursor) for _ in range(tensors)]
    alignment = int(metadata.get("general.alignment", 32)) or 1
    start = -(-cursor.place // alignment) * alignment
    end = max((offset + tensor.bytes for tensor, offset in table), default=0)
    return Headers(tuple(tensor for tensor, _ in table), metadata), start + end if table else cursor.place


def _row(cursor: _Cursor) -> tuple[TensorInfo, int]:
    """A tensor and its offset. GGUF counts the dimensions from the last."""
    name, dimensions = cursor.text(), cursor.number("I")
    shape = tuple(reversed(cursor.numbers("Q", dimensions)))
    kind, offset = cursor.number("I"), cursor.number("Q")
    dtype, numbers, size = GGML_TYPES.get(kind, (f"type {kind}", 1, 0))
    return TensorInfo(name, shape, dtype, prod(shape) // numbers * size), offset
