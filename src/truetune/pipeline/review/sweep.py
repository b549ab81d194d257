"""`truetune sweep`: the runs of a grid, one after the other, each in a process of its own, and which is the best."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from truetune.config.load import dump_given
from truetune.errors import CheckpointError, ConfigError, TruetuneError
from truetune.files import write_json, write_text
from truetune.listener import Listener, LogListener
from truetune.pipeline.review.compare import Verdict, compare_runs
from truetune.pipeline.review.grid import Grid, Point
from truetune.pipeline.trained_records import data_paths, document
from truetune.runs.directory import RunDirectory, now, public
from truetune.runs.ledger import RunEntry, read_run
from truetune.training.signals import heard_by

_FILE = "sweep.json"
_BEST = "evaluation.load_best_model_at_end"
Ranking = Literal["eval_loss", "final_loss"]


@dataclass(frozen=True, slots=True)
class SweptRun:
    """A run of a sweep. `entry` is None where it has left no run.json; `problem` says why it has not finished."""

    name: str
    settings: Mapping[str, Any]
    path: Path
    entry: RunEntry | None
    problem: str | None

    @property
    def status(self) -> str:
        if self.entry is None:
            return "not started" if self.problem is None else "failed"
        return self.entry.status

    def figure(self, ranked_by: Ranking) -> float | None:
        """What it is ranked by, of the weights that it ended with; None unless it has finished."""
        entry = self.entry
        if entry is None or entry.status != "finished":
            return None
        if ranked_by == "final_loss":
            return entry.final_loss
        return entry.best_eval_loss if entry.settings.get(_BEST) and entry.best_eval_loss else entry.eval_loss

    def as_json(self) -> dict[str, Any]:
        of_run = self.entry.as_json() if self.entry else {"path": str(self.path), "status": self.status}
        return {**of_run, "name": self.name, "settings": dict(self.settings), "problem": self.problem}


@dataclass(frozen=True, slots=True)
class Sweep:
    """A sweep as it stands, the best run first, those that have not finished last.

    It is ranked by the validation loss, or, where a finished run has none, by the last training loss. `verdicts` say
    whether the best run and the next one lie further apart than noise. `stopped_by` names a signal.
    """

    path: Path
    grid: Mapping[str, Sequence[Any]]
    runs: tuple[SweptRun, ...]
    ranked_by: Ranking
    verdicts: tuple[Verdict, ...] = ()
    stopped_by: str | None = None

    @property
    def best(self) -> SweptRun | None:
        return self.runs[0] if self.runs and self.runs[0].figure(self.ranked_by) is not None else None

    @property
    def is_complete(self) -> bool:
        return all(run.status == "finished" for run in self.runs)

    def as_json(self) -> dict[str, Any]:
        return {
            "path": str(self.path),
            "grid": dict(self.grid),
            "ranked_by": self.ranked_by,
            "best": self.best and self.best.name,
            "runs": [run.as_json() for run in self.runs],
            "verdicts": [asdict(verdict) for verdict in self.verdicts],
            "stopped_by": self.stopped_by,
        }


@dataclass(frozen=True, slots=True)
class PlannedRun:
    """What a run of a sweep will take, where it is not finished yet; `problem` says why that cannot be told."""

    name: str
    settings: Mapping[str, Any]
    status: str
    total_steps: int | None = None
    seconds: float | None = None
    peak_bytes: int | None = None
    disk_bytes: int | None = None
    fits: bool | None = None
    problem: str | None = None


def sweep_directory(grid: Grid, *, root: Path = Path("runs")) -> Path:
    """runs/<data>-sweep-<n>, where this sweep was begun before; else the first that is free."""
    data = next(iter(data_paths(grid.points[0].config)), "data")
    places = (root / f"{Path(data).stem}-sweep-{n}" for n in range(1, 1_000_000))
    return next(path for path in places if not path.exists() or _is_of(grid, path))


def run_sweep(grid: Grid, folder: Path, *, retry: bool = False, listener: Listener | None = None) -> Sweep:
    """Trains the runs of the grid in `folder`, those left out that are finished; one that fails ends no other.

    A run that was stopped, or whose process died, is gone on with, one that failed only to `retry`. A signal to stop
    goes to the run that trains, which saves a checkpoint, and ends the sweep behind it. A grid may grow: what is
    there of the same sweep is kept, and is part of the result.

    Raises ConfigError for a folder of another sweep, CheckpointError where another process works in it.
    """
    listener = listener or LogListener()
    stops = _Stops()
    with RunDirectory(folder).locked(), heard_by(stops.hear):
        sweeper = _Sweeper(grid, folder, _kept(grid, folder), retry=retry, listener=listener, stops=stops)
        sweeper.run()
    return sweep_so_far(folder, stopped_by=stops.received, listener=listener)


def plan_sweep(grid: Grid, folder: Path, *, listener: Listener | None = None) -> Iterator[PlannedRun]:
    """What each run will take that is not finished in `folder`: nothing is trained, and nothing is written."""
    listener = listener or LogListener()
    problems = _kept(grid, folder).problems
    for point in grid.points:
        status = _swept(folder, point.name, point.settings, problems.get(point.name)).status
        is_over = status == "finished"
        yield PlannedRun(point.name, point.settings, status) if is_over else _planned(point, status, listener)


def _planned(point: Point, status: str, listener: Listener) -> PlannedRun:
    from truetune.pipeline.forecast import Forecast, forecast

    try:
        found = forecast(point.config, listener=listener)
    except TruetuneError as error:
        return PlannedRun(point.name, point.settings, status, problem=error.message)
    assert isinstance(found, Forecast)  # A sweep has rows.
    return PlannedRun(
        point.name,
        point.settings,
        status,
        total_steps=found.plan.steps.total_steps,
        seconds=found.duration.total if found.duration else None,
        peak_bytes=found.peak,
        disk_bytes=found.plan.disk_bytes,
        fits=found.fits,
    )


# --- the file of a sweep ----------------------------------------------------------------------------------


@dataclass(slots=True)
class _Kept:
    """What sweep.json says: what all runs share, each run's settings, and why one failed that left no run.json."""

    base: Mapping[str, Any]
    grid: dict[str, list[Any]]
    runs: dict[str, dict[str, Any]]
    problems: dict[str, str] = field(default_factory=dict)
    started: str = field(default_factory=now)

    def write(self, folder: Path) -> None:
        facts = {"started": self.started, "command": public(sys.argv)}
        whole = {**facts, "base": self.base, "grid": self.grid, "runs": self.runs, "problems": self.problems}
        write_json(folder / _FILE, whole)


def _read(folder: Path) -> _Kept | None:
    """The sweep of a folder; None where there is none. CheckpointError if its file is damaged."""
    path = folder / _FILE
    if not path.is_file():
        return None
    found = document(path)
    try:
        return _Kept(found["base"], found["grid"], found["runs"], found["problems"], found["started"])
    except KeyError as error:
        raise CheckpointError(f"{path} is damaged", hint="choose another --output-dir") from error


def _is_of(grid: Grid, folder: Path) -> bool:
    kept = _read(folder)
    return kept is not None and not _differences(grid, kept)


def _differences(grid: Grid, kept: _Kept) -> list[str]:
    """What is given otherwise for all runs than it was; what is swept now is in the names of the runs."""
    names = [name for name in {**kept.base, **grid.base} if name not in grid.values]
    swept = dict.fromkeys(kept.grid, "swept")
    pairs = ((name, kept.base.get(name, swept.get(name)), grid.base.get(name)) for name in names)
    return [f"{name} was {before} and is {is_}" for name, before, is_ in pairs if before != is_]


def _kept(grid: Grid, folder: Path) -> _Kept:
    """What the folder holds of this sweep, and what the grid adds. ConfigError if it holds something else."""
    kept = _read(folder)
    if kept is None:
        if RunDirectory(folder).record.exists():
            raise ConfigError(f"{folder} holds a run, and no sweep", hint="choose another --output-dir")
        kept = _Kept(grid.base, {}, {})
    elif differences := _differences(grid, kept):
        raise ConfigError(
            f"{folder} holds another sweep: {'; '.join(differences)}",
            hint="set them back, or choose another --output-dir",
        )
    for name, values in grid.values.items():
        kept.grid[name] = list(dict.fromkeys([*kept.grid.get(name, []), *values]))
    kept.runs |= {point.name: dict(point.settings) for point in grid.points}
    return kept


# --- training ---------------------------------------------------------------------------------------------


class _Stops:
    """Signals to stop: the first lets the run that trains end in order, a second one at once; both go to it alone."""

    def __init__(self) -> None:
        self.received: str | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def hear(self, number: int, _: object) -> None:
        self.received = signal.Signals(number).name
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)

    def reach(self, process: subprocess.Popen[bytes] | None) -> None:
        """From now on signals go to this process."""
        self._process = process


@dataclass(slots=True)
class _Sweeper:
    grid: Grid
    folder: Path
    kept: _Kept
    retry: bool
    listener: Listener
    stops: _Stops

    def run(self) -> None:
        self.kept.write(self.folder)
        for number, point in enumerate(self.grid.points, 1):
            if self.stops.received is None:
                self._take(f"{number} of {len(self.grid.points)}: {point.name}", point)

    def _take(self, title: str, point: Point) -> None:
        """Trains a run, unless it is finished, trains already, or failed before."""
        run = self._swept(point)
        match run.status:
            case "finished":
                self.listener.say(f"{title} is finished")
            case "running":
                self.listener.warn(f"{title} is trained by another process: left alone")
            case "failed" | "unreadable" if not self.retry:
                self.listener.warn(f"{title} failed before ({run.problem}); --retry tries it again")
            case _:
                self._train(title, point)

    def _train(self, title: str, point: Point) -> None:
        self.kept.problems.pop(point.name, None)
        config, log = self.folder / "configs" / f"{point.name}.yaml", self.folder / "logs" / f"{point.name}.log"
        write_text(config, dump_given(point.config))
        log.parent.mkdir(exist_ok=True)
        status = self._process(title, config, self.folder / point.name, log)
        run = self._swept(point)
        if run.status == "finished":
            self.listener.say(f"{title} is finished{_losses(run.entry)}")
        elif self.stops.received is None:
            problem = (run.entry and run.entry.problem) or _last_words(log) or f"its process ended with {status}"
            if run.entry is None:
                self.kept.problems[point.name] = problem
            self.listener.warn(f"{title} did not finish: {problem}; all it said is in {log}")
        self.kept.write(self.folder)

    def _process(self, title: str, config: Path, folder: Path, log: Path) -> int:
        """`truetune train`, to its end; what it prints goes to the log. Its exit status."""
        # -P: a folder in the working directory must not stand for a library.
        words = ["-P", "-m", "truetune", "train", str(config), "--output-dir", str(folder), "--resume", "auto"]
        with log.open("wb") as printed:
            process = subprocess.Popen(
                [sys.executable, *words],
                stdin=subprocess.DEVNULL,
                stdout=printed,
                stderr=subprocess.STDOUT,
                env=os.environ,
                start_new_session=True,
            )
        self.stops.reach(process)
        try:
            return self._watched(title, process, folder)
        except BaseException:
            process.terminate()
            process.wait()
            raise
        finally:
            self.stops.reach(None)

    def _watched(self, title: str, process: subprocess.Popen[bytes], folder: Path) -> int:
        told: tuple[int, int] | None = None
        while True:
            try:
                status = process.wait(timeout=1)
            except subprocess.TimeoutExpired:
                told = self._tell(title, folder) or told
                continue
            if told is not None:
                self.listener.progress(title, told[1], told[1])
            return status

    def _tell(self, title: str, folder: Path) -> tuple[int, int] | None:
        """How far the run has come, in steps, once it trains."""
        entry = read_run(folder)
        if entry.status != "running" or not entry.steps or not entry.total_steps or entry.steps >= entry.total_steps:
            return None
        self.listener.progress(title, entry.steps, entry.total_steps)
        return entry.steps, entry.total_steps

    def _swept(self, point: Point) -> SweptRun:
        return _swept(self.folder, point.name, point.settings, self.kept.problems.get(point.name))


def _losses(entry: RunEntry | None) -> str:
    named = {"loss": entry.final_loss, "validation loss": entry.eval_loss} if entry else {}
    return "".join(f", {name} {value:.4f}" for name, value in named.items() if value is not None)


def _last_words(log: Path) -> str | None:
    """What a command that failed said last: its errors, else its last line."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return "; ".join(errors) or next(reversed(lines), None)


# --- what came of it --------------------------------------------------------------------------------------


def _swept(folder: Path, name: str, settings: Mapping[str, Any], problem: str | None) -> SweptRun:
    path = folder / name
    entry = read_run(path, settings=[_BEST]) if RunDirectory(path).record.exists() else None
    return SweptRun(name, settings, path, entry, (entry.problem if entry else None) or problem)


def sweep_so_far(folder: Path, *, stopped_by: str | None = None, listener: Listener | None = None) -> Sweep:
    """The sweep in a folder as it stands. CheckpointError where there is none."""
    kept = _read(folder)
    if kept is None:
        raise CheckpointError(f"{folder} holds no sweep: {_FILE} is missing")
    runs = [_swept(folder, name, settings, kept.problems.get(name)) for name, settings in kept.runs.items()]
    finished = [run for run in runs if run.status == "finished"]
    has_all = all(run.figure("eval_loss") is not None for run in finished)
    ranked_by: Ranking = "eval_loss" if has_all else "final_loss"
    figures = {run.name: figure for run in runs if (figure := run.figure(ranked_by)) is not None}
    ranked = sorted((run for run in runs if run.name in figures), key=lambda run: figures[run.name])
    rest = [run for run in runs if run.name not in figures]
    _warn_of_other_rows(kept, finished, listener or LogListener())
    verdicts = compare_runs([run.path for run in ranked[:2]]).verdicts if len(ranked) > 1 else ()
    return Sweep(folder, kept.grid, (*ranked, *rest), ranked_by, verdicts, stopped_by)


def _warn_of_other_rows(kept: _Kept, finished: Sequence[SweptRun], listener: Listener) -> None:
    """Where nothing that is swept changes the rows, and yet they changed."""
    is_meant = any(name.startswith(("data.", "model.")) or name == "training.seed" for name in kept.grid)
    if not is_meant and len({run.entry.data_fingerprint for run in finished if run.entry}) > 1:
        listener.warn("the rows were changed while the sweep went on: not all runs learned the same ones")
