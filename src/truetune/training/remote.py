"""A training in a process of its own: requests go in as pickles by its standard input, events come out."""

import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from truetune.errors import BackendError, TruetuneError
from truetune.listener import Listener, StepEvent
from truetune.runs.captured import captured
from truetune.runs.log import RunLog
from truetune.training.job import TrainJob, TrainResult
from truetune.training.session import (
    Destination,
    LoadedModel,
    ModelRequest,
    Saved,
    Session,
    Tracking,
    TrainingRows,
    WriteMetrics,
)
from truetune.training.signals import heard_by
from truetune.training.trackers.facts import Scores


class RemoteSession:
    """A session whose work is done by another process, which `python -c program` starts.

    What the process prints goes behind what is in the file `log`. Signals to stop are passed on to it; it ends with
    this process.
    """

    def __init__(
        self, program: str, *, log: Path, listener: Listener, write_metrics: WriteMetrics, **environment: str
    ) -> None:
        self._listener = listener
        self._write_metrics = write_metrics
        self._log = log
        self._received: signal.Signals | None = None
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as printed:
            # -P: a folder in the working directory must not stand for a library, as W&B's wandb/ would.
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", program],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=printed,
                env={**os.environ, **environment},
                start_new_session=True,
            )

    def load(self, request: ModelRequest) -> LoadedModel:
        return self._ask("load", request)  # type: ignore[no-any-return]

    def train(self, job: TrainJob, rows: TrainingRows, tracking: Tracking, callbacks: Sequence[Any]) -> TrainResult:
        return self._ask("train", job, rows, tracking, callbacks)  # type: ignore[no-any-return]

    def save(self, destination: Destination) -> Saved:
        return self._ask("save", destination)  # type: ignore[no-any-return]

    def conclude(self, scores: Scores) -> None:
        self._ask("conclude", scores)

    def close(self) -> None:
        """Ends the process, if it has not ended."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream:
                stream.close()
        try:
            self._process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _ask(self, name: str, *arguments: Any) -> Any:
        """The process's answer; what it tells meanwhile goes to the listener."""
        with self._passing_signals_on():
            try:
                _send(self._process.stdin, (name, arguments))
                while True:
                    kind, value = pickle.load(self._process.stdout)  # type: ignore[arg-type]
                    if kind == "answer":
                        return value
                    self._hear(kind, value)
            except (EOFError, BrokenPipeError, pickle.UnpicklingError):
                status = self._process.wait()
        if self._received:
            signal.raise_signal(self._received)
        raise BackendError(
            f"the training process died ({_manner(status)})", hint=f"its output is in {self._log}"
        ) from None

    def _hear(self, kind: str, value: Any) -> None:
        match kind:
            case "say":
                self._listener.say(value)
            case "warn":
                self._listener.warn(value)
            case "progress":
                self._listener.progress(*value)
            case "step":
                self._listener.step(value)
            case "metrics":
                self._write_metrics(value)
            case "error":
                raise value
            case "failure":
                raise BackendError(f"training failed: {value}", hint=f"the whole of it is in {self._log}")

    @contextmanager
    def _passing_signals_on(self) -> Iterator[None]:
        """A first signal to stop lets the process end in order, a second one at once: both reach it alone."""

        def pass_on(number: int, _: object) -> None:
            self._received = signal.Signals(number)
            self._process.send_signal(number)

        with heard_by(pass_on):
            yield


def answer_requests(open_session: Callable[..., Session]) -> None:
    """In the process: opens the session, then answers requests until there are no more.

    Standard error is the log, where all goes that libraries say.
    """
    events = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    with closing(RunLog(descriptor=2)) as log, captured(log):
        _answer(_Requests(sys.stdin.buffer), events, open_session)


def _answer(requests: "_Requests", events: BinaryIO, open_session: Callable[..., Session]) -> None:
    session: Session | None = None
    for name, arguments in requests:
        try:
            if session is None:
                session = open_session(
                    listener=_Told(events), write_metrics=lambda line: _send(events, ("metrics", line))
                )
            answer = ("answer", getattr(session, name)(*arguments))
        except TruetuneError as error:
            traceback.print_exc()
            answer = ("error", error)
        except Exception as error:  # noqa: BLE001 - whatever it is, the other end has to hear of it
            traceback.print_exc()
            answer = ("failure", f"{type(error).__name__}: {error}")
        _send(events, answer)
    if session is not None:
        session.close()


class _Requests:
    """The requests as they arrive. If the other end goes while one is worked on, so does this process."""

    def __init__(self, source: BinaryIO) -> None:
        self._source = source
        self._arrived: queue.Queue[Any] = queue.Queue()
        self._is_busy = False
        threading.Thread(target=self._read, daemon=True).start()

    def __iter__(self) -> Iterator[tuple[str, tuple[Any, ...]]]:
        while (request := self._arrived.get()) is not None:
            self._is_busy = True
            yield request
            self._is_busy = False

    def _read(self) -> None:
        with suppress(EOFError):
            while True:
                self._arrived.put(pickle.load(self._source))
        if self._is_busy:
            os._exit(1)
        self._arrived.put(None)


class _Told:
    """A listener that tells the other end."""

    def __init__(self, events: BinaryIO) -> None:
        self._events = events

    def say(self, message: str) -> None:
        _send(self._events, ("say", message))

    def warn(self, message: str) -> None:
        _send(self._events, ("warn", message))

    def progress(self, stage: str, done: int, total: int | None) -> None:
        _send(self._events, ("progress", (stage, done, total)))

    def step(self, event: StepEvent) -> None:
        _send(self._events, ("step", event))


def _send(stream: BinaryIO | Any, message: Any) -> None:
    pickle.dump(message, stream)
    stream.flush()


def _manner(status: int) -> str:
    if status >= 0:
        return f"exit status {status}"
    name = signal.Signals(-status).name
    return f"{name}: memory may have run out" if name == "SIGKILL" else name
