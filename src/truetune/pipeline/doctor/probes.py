"""Steps taken in processes of their own (`child.py`): a library that crashes or hangs is a line of the report."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, Any

from truetune.listener import Listener

_PROGRAM = "from truetune.pipeline.doctor.child import main; main()"
_SECONDS = 120.0
"""For one step: a first import of torch from a network's disk takes a minute."""
_UNTOLD = 2.0
"""Seconds before the first word about it."""
_SHOWN = 4000
"""Bytes of what was printed that are kept."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a step went: `error` in one line, or the step whose failure it could not do without, or what it found."""

    error: str | None = None
    needs: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    printed: str = ""

    @property
    def is_sound(self) -> bool:
        return self.error is None and self.needs is None


def take(steps: Sequence[str], *, listener: Listener | None = None, seconds: float = _SECONDS) -> dict[str, Outcome]:
    """Each step's outcome. Behind one that ends or hangs its process, the rest are taken in a new one without it."""
    outcomes: dict[str, Outcome] = {}
    began = time.monotonic()
    while left := [step for step in steps if step not in outcomes]:
        failed = [step for step, outcome in outcomes.items() if not outcome.is_sound]
        before = len(outcomes)
        for event in _run(left, failed, seconds):
            if listener and time.monotonic() - began > _UNTOLD:
                listener.progress("examining", min(len(outcomes), len(steps) - 1), len(steps))
            step = event.pop("step")
            if event:
                outcomes[step] = Outcome(**{**event, "warnings": tuple(event.get("warnings", ()))})
        if len(outcomes) == before:  # It did not even begin.
            outcomes[left[0]] = Outcome(error="the process that examines it could not be started")
    if listener:
        listener.progress("examining", len(steps), len(steps))
    return outcomes


def _run(steps: Sequence[str], failed: Sequence[str], seconds: float) -> Iterator[dict[str, Any]]:
    """What one process tells, and what became of it where it did not come to its end."""
    asked = json.dumps({"steps": steps, "failed": failed})
    # -P: a folder in the working directory must not stand for a library, as W&B's wandb/ would.
    command = [sys.executable, "-P", "-c", _PROGRAM, asked]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    with (
        tempfile.TemporaryFile("a+b") as printed,  # Each writes at its end, wherever it was read.
        subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=printed, env=environment
        ) as process,
    ):
        try:
            yield from _events(process, printed, seconds)
        finally:
            process.kill()


def _events(process: "subprocess.Popen[bytes]", printed: IO[bytes], seconds: float) -> Iterator[dict[str, Any]]:
    begun: str | None = None
    started = time.monotonic()
    for event in _lines(process, seconds):
        begun = event["step"] if len(event) == 1 else None
        started = time.monotonic()
        yield event if begun else {**event, "printed": _read(printed)}
    if begun is not None:
        took = time.monotonic() - started
        how = (
            f"takes longer than {seconds:.0f} s"
            if took >= seconds
            else f"ends the process ({_manner(process.wait())})"
        )
        yield {"step": begun, "error": how, "printed": _read(printed)}


def _lines(process: "subprocess.Popen[bytes]", seconds: float) -> Iterator[dict[str, Any]]:
    """Its documents, as long as each comes in time; then it is killed."""
    while True:
        watchdog = threading.Timer(seconds, process.kill)
        watchdog.start()
        try:
            line = process.stdout.readline() if process.stdout else b""
        finally:
            watchdog.cancel()
        if not line:
            return
        yield json.loads(line)


def _read(printed: IO[bytes]) -> str:
    """The end of what was printed so far."""
    printed.seek(max(0, printed.seek(0, os.SEEK_END) - _SHOWN))
    return printed.read().decode(errors="replace")


def _manner(status: int) -> str:
    return signal.Signals(-status).name if status < 0 else f"exit status {status}"
