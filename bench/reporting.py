"""What reporting costs a training: all of it on beside all of it off, and what it takes itself.

    .venv/bin/python bench/reporting.py [DATA …] [--repeats 4] [--steps 14] [--warmup 4] [--batch 8] [--parts]
                                        [--device cpu|cuda] [--quick] [--json FILE]

The measure: all reporting together takes under 1 % of a step, by CPU and by clock. Exit status 1: it takes more.

Without DATA, rows of some 200 tokens are made up. The model is SmolLM2-135M (`demo`), LoRA by truetune's defaults,
`batch` rows a step. Two trainings live at the same time, each in a process of its own on a pseudo-terminal of 100 x
30, and take turns by the step: while one computes, the other is halted with all that it has started. A machine that
is slow for a while is so for both. Which takes the first step of two changes from pair to pair.

    all     `truetune train` with its live view, its log, a line of metrics each step, and each of TensorBoard, W&B
            (offline) and Trackio that is installed
    none    the same steps, and nobody hears of them

With --parts each part of reporting is held against silence too, alone: the live `view` with its log, the `lines` of
metrics, and each tracker, with the lines that it mirrors.

Printed are CPU seconds and seconds of the clock a step, and the ratio to the silent step beside it: median, range,
and the mean with its standard error. Two processes that do the same differ by up to 6 % for as long as they live
(where their memory lies), so that only many --repeats would show by the clock what reporting takes; the measure is
another: what the one method takes through which the engine tells of a step (CPU of the training's thread, and its
clock, for which the training stands still), and the CPU of all other threads and processes that are there only to
report. Those catch up on what they missed while they were halted, so that this is more than they take otherwise. The
whole method is counted, with what it does where nobody listens. --quick trains a tiny random model, of whose steps
any reporting is a large part: the figures then say nothing, and the status is 0.
"""

import argparse
import fcntl
import json
import math
import os
import pty
import signal
import socket
import statistics
import struct
import sys
import termios
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TextIO

import psutil
from reporting_child import PARTS, Mark
from side_by_side import Bench, parser_of, run_in_folder, settle, spread

CHILD = Path(__file__).with_name("reporting_child.py")
TRACKERS = ("tensorboard", "wandb", "trackio")
LIMIT = 0.01
LINES, COLUMNS = 30, 100
_LOOK = 1.0
"""Seconds between two looks whether a training that has not begun has ended."""


def main() -> int:
    return run_in_folder(parsed(), measure)


def parsed() -> argparse.Namespace:
    parser = parser_of(__doc__)
    parser.set_defaults(steps=14, warmup=4, repeats=4)
    parser.add_argument("--batch", type=int, default=8, help="rows a step")
    parser.add_argument("--parts", action="store_true", help="each part of reporting alone, too")
    return settle(parser, batch=2)


@dataclass(frozen=True)
class Pair:
    """A step of a way, and the silent one beside it."""

    way: Mark
    silent: Mark


def measure(bench: Bench) -> int:
    options, trackers = bench.options, [name for name in TRACKERS if find_spec(name)]
    ways = ["all", *((*PARTS, *trackers) if options.parts else ())]
    found: dict[str, list[Pair]] = {way: [] for way in ways}
    for number in range(options.repeats):
        for way in ways:
            asked = [way] if way in trackers else trackers if way == "all" else []
            found[way].extend(side_by_side(bench, way, asked, number))
            keep(options.json, found)
    told = "all but the first" if options.warmup == 1 else f"all but the first {options.warmup}"
    print(
        f"{options.repeats} x {options.steps} steps of {options.batch} rows, {told} timed; "
        f"trackers: {', '.join(trackers) or 'none'}"
    )
    tell_sides(found)
    return tell_own([pair.way for pair in found["all"]], is_quick=options.quick)


def side_by_side(bench: Bench, way: str, trackers: Sequence[str], number: int) -> list[Pair]:
    """The timed steps of both trainings, step by step."""
    with ExitStack() as stack:
        told = stack.enter_context(training(bench, way, trackers, bench.folder / f"{way}-{number}"))
        silent = stack.enter_context(training(bench, "none", [], bench.folder / f"{way}-{number}-none"))
        first = told.taken(), silent.taken()
        pairs = [Pair(*first), *(in_turns(told, silent, step) for step in range(1, bench.options.steps))]
        for each in (told, silent):
            each.finish()
    for step, pair in enumerate(pairs[bench.options.warmup :], bench.options.warmup + 1):
        print(
            f"{way} {number} step {step}: {pair.way.clock:.2f} s, silent {pair.silent.clock:.2f} s",
            file=sys.stderr,
            flush=True,
        )
    return pairs[bench.options.warmup :]


def in_turns(told: "Training", silent: "Training", step: int) -> Pair:
    if step % 2:
        return Pair(told.step(), silent.step())
    of_silent = silent.step()
    return Pair(told.step(), of_silent)


# A training.


@dataclass(frozen=True)
class Training:
    """One that runs, halted where it is not its turn; `seen` is what it wrote to its terminal."""

    name: str
    process: psutil.Popen
    turns: TextIO
    answers: TextIO
    seen: bytearray

    def taken(self) -> Mark:
        """What its step took, once that has ended; it is halted then. SystemExit if the training failed."""
        line = self.answers.readline()
        if not line:
            self.finish()
            raise SystemExit(f"{self.name} ended before its steps did")
        self._signal(signal.SIGSTOP)
        return Mark(**json.loads(line))

    def step(self) -> Mark:
        self._signal(signal.SIGCONT)
        print(file=self.turns, flush=True)
        return self.taken()

    def finish(self) -> None:
        """Lets it end. SystemExit with the end of what it said, if it failed."""
        self._signal(signal.SIGCONT)
        if self.process.wait():
            raise SystemExit(f"{self.name} failed:\n{bytes(self.seen).decode(errors='replace')[-2_000:]}")

    def end(self) -> None:
        """Ends it now, if it has not ended."""
        for each in self._all():
            with suppress(psutil.NoSuchProcess):
                each.kill()

    def _signal(self, number: signal.Signals) -> None:
        for each in self._all():
            with suppress(psutil.NoSuchProcess):
                each.send_signal(number)

    def _all(self) -> list[psutil.Process]:
        """The process and all that it has started; a halted parent starts no more."""
        if not self.process.is_running():
            return []
        return [self.process, *self.process.children(recursive=True)]


@contextmanager
def training(bench: Bench, way: str, trackers: Sequence[str], run: Path) -> Iterator[Training]:
    """A training that has begun, in a process of its own; it has ended behind this."""
    asked, path = bench.folder / f"{run.name}.request.json", bench.folder / f"{run.name}.socket"
    request = {"settings": settings(bench, run), "trackers": list(trackers), "is_quick": bench.options.quick}
    asked.write_text(json.dumps(request), "utf-8")
    command = [sys.executable, str(CHILD), way, str(asked), str(path)]
    with terminal() as (there, seen), socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        process = psutil.Popen(command, stdin=there, stdout=there, stderr=there, env=environment(bench))
        turns = accepted(listening, process, seen)
        running = Training(run.name, process, turns.makefile("w"), turns.makefile("r"), seen)
        try:
            yield running
        finally:
            running.end()
            turns.close()


def accepted(listening: socket.socket, process: psutil.Popen, seen: bytearray) -> socket.socket:
    """The process's connection. SystemExit with the end of what it said, if it ended without one."""
    listening.settimeout(_LOOK)
    while True:
        with suppress(TimeoutError):
            return listening.accept()[0]
        if process.poll() is not None:
            raise SystemExit(f"a training did not begin:\n{bytes(seen).decode(errors='replace')[-2_000:]}")


def environment(bench: Bench) -> dict[str, str]:
    own = {**os.environ, "TERM": "xterm-256color", "HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline"}
    for name in ("CI", "NO_COLOR"):
        own.pop(name, None)
    return own | {"TRACKIO_DIR": str(bench.folder / "trackio")}


def settings(bench: Bench, run: Path) -> dict[str, Any]:
    options = bench.options
    return {
        "model.name_or_path": options.model,
        "model.device": options.device,
        "data.path": bench.data,
        "data.max_length": 256 if options.quick else 1024,
        "data.packing": False,
        "data.test_size": 0,
        "training.per_device_train_batch_size": options.batch,
        "training.gradient_accumulation_steps": 1,
        "training.max_steps": options.steps,
        "evaluation.eval_strategy": "no",
        "checkpoints.save_strategy": "no",
        "output_dir": str(run),
    }


@contextmanager
def terminal() -> Iterator[tuple[int, bytearray]]:
    """The end of a pseudo-terminal that a process writes to, and what has been written; both ends are closed then."""
    here, there = pty.openpty()
    fcntl.ioctl(there, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
    seen = bytearray()

    def read() -> None:
        with suppress(OSError):  # Its other end is closed.
            while piece := os.read(here, 65_536):
                seen.extend(piece)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        yield there, seen
    finally:
        os.close(there)
        reader.join()
        os.close(here)


def keep(file: Path | None, found: dict[str, list[Pair]]) -> None:
    if file:
        file.write_text(json.dumps({way: list(map(asdict, pairs)) for way, pairs in found.items()}), "utf-8")


# What is told.


def tell_sides(found: dict[str, list[Pair]]) -> None:
    """Each way's seconds a step, those of the silent steps beside them, and the ratios."""
    for name, what in {"cpu": "CPU seconds a step", "clock": "seconds a step"}.items():
        print(f"\n  {what:<22}{'':>24}{'silent':>24}{'to silent':>24}  mean")
        for way, pairs in found.items():
            sides = [(getattr(pair.way, name), getattr(pair.silent, name)) for pair in pairs]
            ratios = [one / silent for one, silent in sides]
            both = "".join(spread(side, ".3f") for side in zip(*sides, strict=True))
            print(f"  {way:<22}{both}{spread(ratios, '.3f')}  {mean_ratio(ratios)}")


def mean_ratio(ratios: Sequence[float]) -> str:
    """By how much the mean of the ratios differs from 1, with its standard error."""
    error = statistics.stdev(ratios) / math.sqrt(len(ratios)) if len(ratios) > 1 else math.nan
    return f"{statistics.fmean(ratios) - 1:+.2%} (± {error:.2%})"


def tell_own(marks: Sequence[Mark], *, is_quick: bool) -> int:
    """What reporting itself takes, and whether that is under the limit; the exit status."""
    own = spread([1e3 * each.own_cpu for each in marks], ".2f").strip()
    beside = spread([1e3 * each.beside_cpu for each in marks], ".2f").strip()
    still = spread([1e3 * each.own_clock for each in marks], ".2f").strip()
    print(f"\n  reporting itself, a step: {own} ms of CPU in the training's thread, {beside} ms beside it;")
    print(f"  the training stands still for {still} ms")
    shares = {"CPU": list(map(cpu_share, marks)), "clock": list(map(clock_share, marks))}
    is_within = all(statistics.median(each) < LIMIT for each in shares.values())
    for name, values in shares.items():
        print(f"  of a step's {name}: {spread(values, '.3%').strip()}")
    verdict = "a tiny model's steps, which say nothing" if is_quick else "within" if is_within else "MISSED"
    print(f"  the measure, under {LIMIT:.0%} of both: {verdict}")
    return 0 if is_within or is_quick else 1


def cpu_share(mark: Mark) -> float:
    return (mark.own_cpu + mark.beside_cpu) / mark.cpu


def clock_share(mark: Mark) -> float:
    return mark.own_clock / mark.clock


if __name__ == "__main__":
    sys.exit(main())
