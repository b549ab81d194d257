"""Slices computed side by side on a CPU, by threads that share its cores.

Most operations on a slice are too small for a core more: two slices, each on half of the cores, take little longer
than one on all. Results are taken in the order of the slices, whichever is done first: the same sums, to the bit.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import nn

from truetune.model.portions import WORKERS as WORKERS

Piece = TypeVar("Piece")
Result = TypeVar("Result")

_KNOWN = ("torch.", "transformers.", "peft.", "truetune.")
"""Packages whose modules keep nothing of what they compute but what `_problem` looks for."""


def side_by_side(
    compute: Callable[[Piece], Result], pieces: Sequence[Piece], *, workers: int = WORKERS
) -> Iterator[Result]:
    """What `compute` makes of each piece, in their order; so many at a time, each with its share of torch's threads.

    An error is raised when its piece's turn has come, and no other is being computed any more.
    """
    if workers < 2 or len(pieces) < 2:
        yield from map(compute, pieces)
        return
    share = max(1, int(torch.get_num_threads()) // workers)
    pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(share,))
    with _threads(share), pool:
        yield from pool.map(compute, pieces)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """torch computes on so many threads in here; MKL has one such number for all that call it."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def obstacle(model: nn.Module) -> str | None:
    """Why a training's slices cannot be computed side by side, or would not be what they are; None if they can."""
    weights = list(model.parameters())
    if torch.get_num_threads() < WORKERS:
        return "there are fewer threads than workers"
    if 4 * sum(each.numel() for each in weights if each.requires_grad) > sum(each.numel() for each in weights):
        return "each worker would hold a gradient of many weights"
    if getattr(model, "is_quantized", False):
        return "quantised weights are computed by code that is not known to allow it"
    problems = ((type(module).__name__, _problem(module)) for module in model.modules())
    return next((f"{name} {problem}" for name, problem in problems if problem), None)


def _problem(module: nn.Module) -> str | None:
    """What keeps a module from being computed twice at a time."""
    values: dict[str, Any] = vars(module)
    if not type(module).__module__.startswith(_KNOWN):
        return "is code that may keep anything"
    if (isinstance(module, nn.Dropout) and module.p > 0) or any(map(_draws, values, values.values())):
        return "draws random numbers"
    if any(kind in str(values.get("rope_type")) for kind in ("dynamic", "longrope")):
        return "keeps the frequencies of the longest sample so far"
    return None


def _draws(name: str, value: object) -> bool:
    """True for what modules call the shares that they drop, and the noise that they add, where they do."""
    return ("drop" in name or "noise" in name) and isinstance(value, float) and value > 0
