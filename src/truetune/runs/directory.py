"""A run's directory: where everything about one training lies, written so that no reader sees half a file."""

import glob
import json
import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from truetune.errors import CheckpointError, first_line
from truetune.files import leftovers, set_aside, write_json, write_text
from truetune.runs.checkpoints import MANIFEST, checkpoint_step, listed, logged_lines

Status = Literal["running", "finished", "stopped", "failed"]

CARD_FACTS = "card.json"
"""What a folder's README.md says, as data: beside whatever is made of a run's weights."""

_DAMAGED = "take it from a backup; the weights and metrics beside it are not touched by this"
_TRACKERS = ("tensorboard", "wandb")

_ASKED = 0.2
"""Seconds that a training waits for the lock, which whoever asks whether it is held has for an instant."""


@dataclass(frozen=True, slots=True)
class RunDirectory:
    """The paths of a run. Nothing is created before `start`."""

    path: Path

    @property
    def config(self) -> Path:
        """Every setting, resolved: it trains the same run again."""
        return self.path / "config.yaml"

    @property
    def record(self) -> Path:
        """How the run came about and how it ended."""
        return self.path / "run.json"

    @property
    def metrics(self) -> Path:
        """A line for each logged step and each evaluation."""
        return self.path / "metrics.jsonl"

    @property
    def data_report(self) -> Path:
        """What became of every row, as `truetune check --json` has it."""
        return self.path / "data-report.json"

    @property
    def own_data(self) -> Path:
        """Rows that came from Python, kept so that config.yaml can be run again."""
        return self.path / "data.jsonl"

    @property
    def checkpoints(self) -> Path:
        """From where the run can go on, a folder each."""
        return self.path / "checkpoints"

    @property
    def adapter(self) -> Path:
        """The trained adapter in PEFT's format, with tokenizer, template and prompt format."""
        return self.path / "adapter"

    @property
    def model(self) -> Path:
        """The whole model, after full fine-tuning."""
        return self.path / "model"

    @property
    def parity(self) -> Path:
        """The model's answers to the prompts of rows; those to ours lie with the weights, which may be passed on."""
        return self.path / "parity.json"

    @property
    def log(self) -> Path:
        """What was said while it trained, by libraries too; a run from Python has none."""
        return self.path / "log.txt"

    @property
    def trackers(self) -> Path:
        """Where each tracker's copy of the run is."""
        return self.path / "trackers.json"

    @property
    def report(self) -> Path:
        """The page that `truetune report` writes."""
        return self.path / "report.html"

    @property
    def evaluations(self) -> Path:
        """What `truetune eval` found, a file each time."""
        return self.path / "evaluations"

    @property
    def answers(self) -> Path:
        """What validation rows were answered while it trained, a file for each evaluation."""
        return self.path / "answers"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """While this lasts no other process trains here. The system lets go of the lock of a process that dies.

        What a killed process left half written is removed. CheckpointError if the lock is taken.
        """
        from filelock import FileLock, Timeout

        is_new = not self.path.exists()
        self.path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.path / ".lock")
        try:
            lock.acquire(timeout=_ASKED)
        except Timeout:
            raise CheckpointError(
                f"{self.path} is in use: another training is running there",
                hint="wait for it, stop it, or choose another --output-dir",
            ) from None
        try:
            self._sweep()
            yield
        finally:
            lock.release()
            if is_new and self.path.is_dir():
                self._remove_if_empty()

    def is_at_work(self) -> bool:
        """True while a process trains here: it has the lock. A lock that may not be asked for is taken to be held."""
        try:
            return _is_held(self.path / ".lock")
        except FileNotFoundError:
            return False
        except OSError:
            return True

    def _sweep(self) -> None:
        for path in [*leftovers(self.path), *leftovers(self.checkpoints)]:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()

    def _remove_if_empty(self) -> None:
        if [path.name for path in self.path.iterdir()] in ([], [".lock"]):
            (self.path / ".lock").unlink(missing_ok=True)
            self.path.rmdir()

    def is_finished(self) -> bool:
        """True if a run has come to its end here."""
        return self.record.exists() and self.read_record().get("status") == "finished"

    def read_record(self) -> dict[str, Any]:
        """run.json. Raises CheckpointError if there is none, or one that is damaged."""
        try:
            record: Any = json.loads(self.record.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise CheckpointError(f"{self.path} holds no run: run.json is missing") from error
        except (OSError, ValueError, RecursionError) as error:
            raise CheckpointError(f"{self.record} is damaged: {first_line(error)}", hint=_DAMAGED) from error
        if not isinstance(record, dict):
            raise CheckpointError(f"{self.record} is damaged: it holds no object", hint=_DAMAGED)
        return record

    def begin_record(self, **facts: Any) -> None:
        """A new run.json, of a run that begins or goes on: how it ended before is no longer true."""
        write_json(self.record, {"status": "running", **facts})

    def update_record(self, **changes: Any) -> None:
        """Adds to run.json, which is there as a whole at any time."""
        record = self.read_record() if self.record.exists() else {}
        write_json(self.record, {**record, **changes})

    def append_metrics(self, line: Mapping[str, Any]) -> None:
        with self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def read_metrics(self) -> list[dict[str, Any]]:
        """The logged lines, without one that a killed process left half written at the end."""
        if not self.metrics.exists():
            return []
        lines = self.metrics.read_text(encoding="utf-8").split("\n")[:-1]
        return [json.loads(line) for line in lines]

    def go_back_to(self, checkpoint: Path) -> list[Path]:
        """Metrics and answers as they were at a checkpoint; later checkpoints lose their names, and are returned.

        They are removed when a process next trains here, so that nothing is lost before this one has saved.
        """
        write_text(self.metrics, "".join(json.dumps(line) + "\n" for line in logged_lines(checkpoint)))
        step = checkpoint_step(checkpoint)
        for file in answers_behind(self.answers, step):
            file.unlink()
        later = [path for path in listed(self.checkpoints) if checkpoint_step(path) > step]
        for path in later:
            set_aside(path)
        return later

    def clear(self, *, data: object = None, base: object = None, keeps_log: bool = False) -> None:
        """Removes what a run wrote here, or was made of it here, and nothing else.

        Weights that were made of an earlier run (merged, exported) would pass for those of the next one. Rows from
        Python stay where `data` names them, and made weights where `base` does. `keeps_log`: it is that of the next
        run already.
        """
        for file in (
            self.config,
            self.record,
            self.metrics,
            self.data_report,
            self.own_data,
            self.parity,
            self.report,
            self.trackers,
            *([] if keeps_log else [self.log]),
        ):
            if str(file) != str(data):
                file.unlink(missing_ok=True)
        results = (self.checkpoints, self.adapter, self.model, self.answers, self.evaluations)
        own = (*results, *(self.path / each for each in _TRACKERS))
        for folder in (*own, *self._made()):
            if folder.resolve() != Path(str(base)).resolve():
                shutil.rmtree(folder, ignore_errors=True)

    def _made(self) -> list[Path]:
        """The folders here that were made of the run's weights: merged ones, and whatever has a card of ours."""
        return [each for each in self.path.iterdir() if each.is_dir() and _is_made(each)]


def _is_held(lock: Path) -> bool:
    """True if a process has the lock. OSError for one that may not be asked for, or is not there.

    The system is asked itself where it has `flock`, by which filelock locks: a list asks of many runs, and filelock
    takes a hundred times as long. Who asks shares the lock, so that two who do don't take each other for a training.
    """
    try:
        from fcntl import LOCK_NB, LOCK_SH, flock
    except ImportError:  # Windows
        return _is_held_by_filelock(lock)
    with lock.open("rb") as file:
        try:
            flock(file, LOCK_SH | LOCK_NB)
        except BlockingIOError:
            return True
        return False


def _is_held_by_filelock(lock: Path) -> bool:
    from filelock import FileLock, Timeout

    if not lock.exists():
        return False
    try:
        with FileLock(lock, timeout=0):
            return False
    except Timeout:
        return True


def _is_made(folder: Path) -> bool:
    is_model = any((folder / name).is_file() for name in ("config.json", "adapter_config.json"))
    return (folder / CARD_FACTS).is_file() or (is_model and (folder / MANIFEST).is_file())


def answers_file(folder: Path, step: int) -> Path:
    """Where the answers of an evaluation behind that step are."""
    return folder / f"step-{step}.jsonl"


def answers_behind(folder: Path, step: int) -> list[Path]:
    """The files of answers of later evaluations."""
    numbers = {file: file.stem.removeprefix("step-") for file in folder.glob("step-*.jsonl")}
    return [file for file, number in numbers.items() if number.isdecimal() and int(number) > step]


def next_directory(data: str | None, *, root: Path = Path("runs")) -> Path:
    """runs/<data>-<n>, the first n that is free."""
    name = _name_of(data)
    return next(path for n in range(1, 1_000_000) if not (path := root / f"{name}-{n}").exists())


def numbered_directories(data: str | None, *, root: Path = Path("runs")) -> list[Path]:
    """Those of next_directory that are there, the newest first."""
    begin = f"{_name_of(data)}-"
    numbers = {path: path.name.removeprefix(begin) for path in root.glob(f"{glob.escape(begin)}*") if path.is_dir()}
    return sorted((path for path in numbers if numbers[path].isdecimal()), key=lambda path: -int(numbers[path]))


def _name_of(data: str | None) -> str:
    return Path(data).stem if data else "run"


_SECRET = re.compile(
    r"(?i)((?:token|key|secret|password)\w*[=:]\s*)\S+|\b(?:hf_|sk-|wandb_)\w{16,}|(://)[^/@\s]+(?=@)"
)


def public(words: Sequence[str]) -> list[str]:
    """A command's words without what looks like a password, a key or a token."""
    return [_SECRET.sub(lambda found: f"{found[1] or found[2] or ''}***", word) for word in words]


def now() -> str:
    """The time, in UTC, as ISO 8601."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
