"""What bench/reporting.py runs in a process of its own: one training, with all its reporting or with none.

    python bench/reporting_child.py all|view|lines|TRACKER|none REQUEST.json SOCKET

Through the socket, a path, it tells what each step took, as a line of JSON, and waits for a line before the next.

`all` is the command itself, `truetune train`, on whatever terminal this process has; `none` is the same training
from Python, with a listener that hears nothing, one line of metrics at its end, and no tracker. Between them each
part alone: `view` is the command with one line of metrics, `lines` Python with a line each step, and a tracker's
name that with the tracker.
"""

import json
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO


@dataclass(frozen=True)
class Mark:
    """Seconds so far: of the clock and of this process's CPU; those spent on telling of steps, by the training's own
    thread (clock, CPU), and by whatever works for that beside it (CPU of other threads and processes).
    """

    clock: float
    cpu: float
    own_clock: float
    own_cpu: float
    beside_cpu: float

    def since(self, earlier: "Mark") -> "Mark":
        return Mark(*(now - then for now, then in zip(vars(self).values(), vars(earlier).values(), strict=True)))


class Watch:
    """Tells what each step took, and lets the next begin when it is this training's turn."""

    def __init__(self, answers: TextIO, turns: TextIO) -> None:
        self._answers, self._turns = answers, turns
        self._step = 0
        self._own_clock = self._own_cpu = self._beside_cpu = 0.0
        self._seen: dict[int, float] = {}
        self._began = self._mark()

    def around(self, tell: Callable[..., None]) -> Callable[..., None]:
        """The one method of the engine through which all of a step is told: listener, metrics, trackers."""

        def told(engine: Any, *args: Any, **options: Any) -> None:
            clock, cpu = time.perf_counter(), time.thread_time()
            tell(engine, *args, **options)
            self._own_clock += time.perf_counter() - clock
            self._own_cpu += time.thread_time() - cpu
            if engine.state.global_step != self._step:  # The end of an epoch is told as a step is.
                self._step = engine.state.global_step
                self._end(is_last=self._step >= engine.state.max_steps)

        return told

    def _end(self, *, is_last: bool) -> None:
        print(json.dumps(asdict(self._mark().since(self._began))), file=self._answers, flush=True)
        if not is_last:
            self._turns.readline()
        self._began = self._mark()

    def _mark(self) -> Mark:
        now = time.perf_counter(), time.process_time()
        beside = {**cpu_of_threads(), **cpu_of_children()}
        # What has ended since takes its seconds with it.
        self._beside_cpu += sum(cpu - self._seen.get(which, 0.0) for which, cpu in beside.items())
        self._seen = beside
        return Mark(*now, self._own_clock, self._own_cpu, self._beside_cpu)


def cpu_of_threads() -> dict[int, float]:
    """Of Python's threads but this one. Those that compute slices live for a step only, and none does now."""
    others = (each.ident for each in threading.enumerate() if each is not threading.current_thread())
    return {ident: time.clock_gettime(time.pthread_getcpuclockid(ident)) for ident in others if ident is not None}


def cpu_of_children() -> dict[int, float]:
    """Of the processes that this one has started, and those of theirs."""
    import psutil

    found = {}
    for child in psutil.Process().children(recursive=True):
        times = child.cpu_times()
        found[child.pid] = times.user + times.system
    return found


def train_told(settings: dict[str, Any]) -> int:
    from truetune.cli import main

    words = [f"{name}={json.dumps(value)}" for name, value in settings.items()]
    return main(["train", *words])


def train_silently(settings: dict[str, Any]) -> int:
    from truetune.config.load import load_config
    from truetune.pipeline.train import train_run

    train_run(load_config(None, settings=settings).config, listener=Silence())
    return 0


class Silence:
    """A listener that hears nothing."""

    def say(self, message: str) -> None: ...

    def warn(self, message: str) -> None: ...

    def progress(self, stage: str, done: int, total: int | None) -> None: ...

    def step(self, event: Any) -> None: ...


PARTS = ("view", "lines")
"""What can be on alone, besides each tracker."""
_SEEN, _UNLOGGED = ("all", "view"), ("view", "none")


def train(way: str, settings: dict[str, Any], trackers: list[str]) -> int:
    """A training of which nothing is told but what the way says."""
    logging = {
        "logging.logging_steps": 1_000_000 if way in _UNLOGGED else 1,
        "logging.report_to": trackers or "none",
    }
    return (train_told if way in _SEEN else train_silently)({**settings, **logging})


def main(way: str, request_file: str, path: str) -> int:
    from truetune.environment import set_environment

    set_environment()  # Before torch loads, as `truetune` does.
    request = json.loads(Path(request_file).read_text("utf-8"))
    if request["is_quick"]:
        from engine_rows import tiny

        request["settings"]["model.name_or_path"] = str(tiny(Path(request_file).with_suffix("")))
    from truetune.training.trl import Engine

    with socket.socket(socket.AF_UNIX) as turns:
        turns.connect(path)
        watch = Watch(turns.makefile("w"), turns.makefile("r"))
        Engine._maybe_log_save_evaluate = watch.around(Engine._maybe_log_save_evaluate)  # type: ignore[method-assign]
        return train(way, request["settings"], request["trackers"])


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
