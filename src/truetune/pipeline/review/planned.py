"""The plan of a run beside what it took."""

import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from truetune.figures import byte_size, duration
from truetune.report.curves import number
from truetune.report.run_page import Planned
from truetune.runs.directory import RunDirectory
from truetune.runs.documents import mapping


def planned_figures(record: Mapping[str, Any], run: RunDirectory) -> Iterator[Planned]:
    """Steps, time, peak memory and disk by a run.json, as far as they were planned, and as far as they are known."""
    planned = mapping(record, "planned")
    memory = mapping(planned, "memory")
    # On CUDA a run's peak is the allocator's, which does not see what CUDA itself takes.
    unseen = number(mapping(memory, "parts").get("framework")) if record.get("device") == "cuda" else 0.0
    peak = number(memory.get("peak_bytes")) - unseen
    yield from _beside("Steps", number(record.get("total_steps")), number(record.get("steps")), "{:,.0f}".format)
    yield from _beside("Time", number(planned.get("seconds")), number(record.get("seconds")), duration)
    yield from _beside("Peak memory", peak, number(record.get("peak_memory_bytes")), byte_size)
    yield from _beside("Disk", number(planned.get("disk_bytes")), float(_stored(run)), byte_size)


def _beside(name: str, planned: float, taken: float, told: Callable[[float], str]) -> Iterator[Planned]:
    if math.isnan(planned):
        return
    is_known = not math.isnan(taken)
    difference = f"{taken / planned - 1:+.0%}" if is_known and planned > 0 else ""
    yield Planned(name, told(planned), told(taken) if is_known else "", difference)


def _stored(run: RunDirectory) -> int:
    """Bytes of checkpoints and weights; what a running training takes away meanwhile does not count."""
    total = 0
    for folder in (run.checkpoints, run.adapter, run.model):
        for root, _, names in os.walk(folder):
            for name in names:
                with suppress(OSError):
                    total += os.lstat(Path(root) / name).st_size
    return total
