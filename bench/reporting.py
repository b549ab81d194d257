"""What reporting costs a training: all of it on beside all of it off, and what it takes itself.

    .venv/bin/python bench/reporting.py [DATA …] [--repeats 4] [--steps 14] [--warmup 4] [--batch 8] [--parts]
                                        [--device cpu|cuda] [--quick] [--json FILE]

The measure: all reporting together takes under 1 % of a step, by CPU and by clock. Exit status 1: it takes more.

Without DATA, rows of some 200 tokens are made up. The model is SmolLM2-135M (`demo`), LoRA by truetune's defaults,
`batch` rows a step. Two trainings take turns, each in a process of its own on a pseudo-terminal of 100 x 30; which
of them begins changes from round to round, since a machine is not the same behind a training as before it:

    all     `truetune train` with its live view, its log, a line of metrics each step, and each of TensorBoard, W&B
            (offline) and Trackio that is installed
    none    the same steps, and nobody hears of them

With --parts each part of reporting takes its turn too, alone: the live `view` with its log, the `lines` of metrics,
and each tracker, with the lines that it mirrors.

Printed are CPU seconds and seconds of the clock a step, and the ratio to the silent training of the same round:
medians, with range. A step's
own noise is several times what reporting takes, so that the measure is another: what the one method takes through
which the engine tells of a step (CPU of the training's thread, and its clock, for which the training stands still),
and the CPU of all other threads and processes that are there only to report. The whole method is counted, with what
it does where nobody listens. --quick trains a tiny random model, of whose steps any reporting is a large part: the
figures then say nothing, and the status is 0.
"""

import argparse
import fcntl
import json
import os
import pty
import statistics
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from reporting_child import PARTS, Mark
from side_by_side import Bench, parser_of, run_in_folder, settle, spread

CHILD = Path(__file__).with_name("reporting_child.py")
TRACKERS = ("tensorboard", "wandb", "trackio")
LIMIT = 0.01
LINES, COLUMNS = 30, 100


def main() -> int:
    return run_in_folder(parsed(), measure)


def parsed() -> argparse.Namespace:
    parser = parser_of(__doc__)
    parser.set_defaults(steps=14, warmup=4, repeats=4)
    parser.add_argument("--batch", type=int, default=8, help="rows a step")
    parser.add_argument("--parts", action="store_true", help="each part of reporting alone, too")
    return settle(parser, batch=2)


def measure(bench: Bench) -> int:
    options, trackers = bench.options, [name for name in TRACKERS if find_spec(name)]
    ways = ["all", *(PARTS if options.parts else ()), *(trackers if options.parts else ()), "none"]
    found: dict[str, list[Mark]] = {way: [] for way in ways}
    for number in range(options.repeats):
        for way in turns(ways, number):
            asked = [way] if way in trackers else trackers if way == "all" else []
            found[way].append(trained(bench, way, asked, bench.folder / f"{way}-{number}"))
            keep(options.json, found)
    told = "all but the first" if options.warmup == 1 else f"all but the first {options.warmup}"
    print(f"{options.steps} steps of {options.batch} rows, {told} timed; trackers: {', '.join(trackers) or 'none'}")
    tell_sides(found, options.steps - options.warmup)
    return tell_own(found["all"], options.steps - options.warmup, is_quick=options.quick)


def turns(ways: Sequence[str], number: int) -> list[str]:
    """The order of a round: there and back again, so that over two rounds each way stands in the same places."""
    return list(ways) if number % 2 == 0 else list(reversed(ways))


# A training.


def trained(bench: Bench, way: str, trackers: Sequence[str], run: Path) -> Mark:
    """What its timed steps took. SystemExit with the end of what it said, if it failed."""
    asked, answer = bench.folder / f"{run.name}.request.json", bench.folder / f"{run.name}.answer.json"
    request = {
        "settings": settings(bench, run),
        "trackers": list(trackers),
        "warmup": bench.options.warmup,
        "is_quick": bench.options.quick,
    }
    asked.write_text(json.dumps(request), "utf-8")
    environment = {**os.environ, "TERM": "xterm-256color", "HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline"}
    environment |= {"TRACKIO_DIR": str(bench.folder / "trackio")}
    for name in ("CI", "NO_COLOR"):
        environment.pop(name, None)
    with terminal() as (there, seen):
        command = [sys.executable, str(CHILD), way, str(asked), str(answer)]
        status = subprocess.run(command, stdin=there, stdout=there, stderr=there, env=environment, check=False)
    if status.returncode:
        raise SystemExit(f"{run.name} failed:\n{bytes(seen).decode(errors='replace')[-2_000:]}")
    took = Mark(**json.loads(answer.read_text("utf-8")))
    print(f"{run.name}: {took.clock:.1f} s, {took.cpu:.1f} CPU seconds", file=sys.stderr, flush=True)
    return took


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


def keep(file: Path | None, found: dict[str, list[Mark]]) -> None:
    if file:
        file.write_text(json.dumps({way: list(map(asdict, marks)) for way, marks in found.items()}), "utf-8")


# What is told.


def tell_sides(found: dict[str, list[Mark]], steps: int) -> None:
    """Each way's seconds a step, and their ratios to the silent training of the same round."""
    for name, what in {"cpu": "CPU seconds a step", "clock": "seconds a step"}.items():
        print(f"\n  {what:<22}{'':>24}{'to none':>24}")
        for way, marks in found.items():
            taken = [getattr(mark, name) for mark in marks]
            ratios = [one / getattr(silent, name) for one, silent in zip(taken, found["none"], strict=True)]
            beside = "" if way == "none" else spread(ratios, ".3f")
            print(f"  {way:<22}{spread([each / steps for each in taken], '.3f')}{beside}")


def tell_own(marks: Sequence[Mark], steps: int, *, is_quick: bool) -> int:
    """What reporting itself takes, and whether that is under the limit; the exit status."""
    own = spread([1e3 * each.own_cpu / steps for each in marks], ".2f").strip()
    beside = spread([1e3 * each.beside_cpu / steps for each in marks], ".2f").strip()
    still = spread([1e3 * each.own_clock / steps for each in marks], ".2f").strip()
    print(f"\n  reporting itself, a step: {own} ms of CPU in the training's thread, {beside} ms beside it;")
    print(f"  the training stands still for {still} ms")
    shares = {"CPU": [cpu_share(each) for each in marks], "clock": [clock_share(each) for each in marks]}
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
