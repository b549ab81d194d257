"""Work that a process of its own does ahead, a piece at a time, while this one is busy with the piece before."""

import gc
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from truetune.errors import BackendError, TruetuneError
from truetune.training.signals import stopping

Work = Callable[[int], None]

_PATIENCE = 10.0
"""Seconds that the process has to end its own ones, when it is no longer needed."""
_LOOKS = 0.5
"""Seconds between its looks whether whom it works for is still there."""


class Ahead(Protocol):
    """Somebody who does one numbered piece of work after the other: `begin` it, then wait for its `result`."""

    def begin(self, number: int) -> None:
        """Starts the piece; the one before it is done."""

    def result(self) -> None:
        """Returns when it is done; raises what it failed with."""

    @property
    def has_failed(self) -> bool:
        """True if it is known to have failed, without a wait."""


@contextmanager
def ahead_of(work: Work) -> Iterator[Ahead]:
    """Does `work` in a forked process, or here when it is asked for, where none can be forked as it stands."""
    if sys.platform != "linux" or multiprocessing.current_process().daemon:
        yield _Here(work)
        return
    process = _Forked(work)
    try:
        yield process
    finally:
        process.close()


class _Here:
    has_failed = False

    def __init__(self, work: Work) -> None:
        self._work = work
        self._number = 0

    def begin(self, number: int) -> None:
        self._number = number

    def result(self) -> None:
        self._work(self._number)


class _Forked:
    """Forked, so that `work` needs no pickling."""

    def __init__(self, work: Work) -> None:
        # Unset, the tokenizers library warns in every forked process.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
        context = multiprocessing.get_context("fork")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(work, theirs, self._pipe, os.getpid()))
        self._process.start()
        theirs.close()
        self._answer: tuple[str, Any] | None = None

    def begin(self, number: int) -> None:
        self._answer = None
        try:
            self._pipe.send(number)
        except OSError as error:
            raise self._gone() from error

    def result(self) -> None:
        kind, error = self._answer = self._answer or self._received()
        if kind == "failed":
            raise error if isinstance(error, TruetuneError) else RuntimeError(error)

    @property
    def has_failed(self) -> bool:
        if self._answer is None and self._pipe.poll():
            self._answer = self._received()
        return self._answer is not None and self._answer[0] == "failed"

    def close(self) -> None:
        self._pipe.close()
        if self._process.is_alive():
            os.kill(self._process.pid or 0, signal.SIGUSR2)
        self._process.join(_PATIENCE)
        self._process.kill()
        self._process.join()

    def _received(self) -> tuple[str, Any]:
        try:
            return self._pipe.recv()  # type: ignore[no-any-return]
        except (EOFError, OSError):
            return "failed", self._gone()

    def _gone(self) -> BackendError:
        self._process.join(1)
        return BackendError(
            f"the process that prepares rows died (exit status {self._process.exitcode})",
            hint="memory may have run out: lower data.shuffle_buffer_size, or data.num_proc",
        )


def _serve(work: Work, pipe: Any, other_end: Any, parent: int) -> None:
    """In the process: piece by piece, until it is told to end, or nobody is there any more."""
    # A launcher may send these to all processes of a run, and the step that the training then finishes may need rows.
    for number in stopping():
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGUSR2, lambda *_: sys.exit(0))
    other_end.close()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    gc.freeze()
    while True:
        try:
            pipe.send(_answer(work, pipe.recv()))
        except (EOFError, OSError):
            return


def _answer(work: Work, number: int) -> tuple[str, Any]:
    try:
        work(number)
    except TruetuneError as error:
        return "failed", error
    except Exception:  # noqa: BLE001 - whatever it is, the parent has to hear of it
        return "failed", traceback.format_exc()
    return "done", None


def _end_with(parent: int) -> None:
    """Ends this process soon after a parent that was killed: it holds the locks that it was forked with."""
    while os.getppid() == parent:
        time.sleep(_LOOKS)
    os.kill(os.getpid(), signal.SIGUSR2)
