"""How many prompts are answered at a time, and which of them together."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

from truetune.figures import byte_size
from truetune.model.hardware import Device, free_memory
from truetune.model.shape import ModelShape, shape_of

if TYPE_CHECKING:
    from truetune.inference.decoding import Row

BatchSize = int | Literal["auto"]

# SmolLM2 135M in fp32 on two cores with AVX2, CPU time a row and token:
# 79 ms alone, 39 of 8 together, 25 of 16, 16 of 32.
_MOST: dict[Device, int] = {"cpu": 64, "mps": 64, "cuda": 128}
_WINDOW = 8
"""Batches that are sorted by length together."""

_SHARE = 0.5
"""Of the memory that is free: keys and values are held twice while rows come and go."""


@dataclass(frozen=True, slots=True)
class ChosenSize:
    """How many prompts at a time, and why."""

    size: int
    reason: str


def choose_batch_size(asked: BatchSize, model: Any, *, longest: int) -> ChosenSize:
    """The size asked for, or one whose keys and values fit beside `model`, of rows of `longest` tokens at most."""
    if asked != "auto":
        return ChosenSize(asked, "as asked")
    device = model.device.type
    return fitting_batch_size(
        shape_of(model), longest=longest, bytes_a_number=model.dtype.itemsize, device=device, free=free_memory(device)
    )


def fitting_batch_size(
    shape: ModelShape, *, longest: int, bytes_a_number: int, device: Device, free: int | None
) -> ChosenSize:
    """The largest size that fits into half of the `free` bytes, up to what the device gains from."""
    a_row = row_bytes(shape, longest=longest, bytes_a_number=bytes_a_number)
    most = _MOST[device]
    fitting = most if free is None else int(free * _SHARE // a_row)
    if fitting >= most:
        return ChosenSize(most, f"more gain little on {device}; {byte_size(a_row)} a row of {longest:,} tokens")
    return ChosenSize(
        max(1, fitting),
        f"{byte_size(a_row)} a row of {longest:,} tokens, half of {byte_size(free or 0)} free on {device}",
    )


def row_bytes(shape: ModelShape, *, longest: int, bytes_a_number: int) -> int:
    """What a row of `longest` tokens takes.

    Keys and values in each layer, held twice at most; what one layer makes of a prompt; three copies of fp32 logits.
    """
    kept = 2 * 2 * shape.layers * shape.key_value_heads * shape.head_size
    made = 4 * shape.hidden + 3 * shape.intermediate
    return longest * (kept + made) * bytes_a_number + 3 * 4 * shape.vocabulary


def sorted_windows(rows: Iterable["Row"], batch_size: int) -> Iterator["Row"]:
    """The rows with the longest prompts first, a window of some batches at a time: the most memory is taken first."""
    remaining = iter(rows)
    while window := list(islice(remaining, _WINDOW * batch_size)):
        yield from sorted(window, key=lambda row: -len(row.prompt))
