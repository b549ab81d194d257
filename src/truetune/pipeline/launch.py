"""`truetune train --num-processes`: the same command in several processes of this machine, which torchrun starts."""

import logging
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from tempfile import TemporaryDirectory
from typing import Any
from uuid import uuid4

from truetune.errors import BackendError
from truetune.training.signals import heard_by


def launch(words: Sequence[str], *, processes: int) -> int:
    """Runs `truetune WORDS` in so many processes that train together, and returns their exit status.

    They share this machine's cores, and on CUDA have a GPU each. Signals to stop reach all of them. A process that
    fails has told its error itself, and ends the others. BackendError if one is killed.
    """
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import elastic_launch

    with TemporaryDirectory(prefix="truetune-") as logs, _signals_passed_on(), _quiet_agent():
        command = elastic_launch(_agent(processes, logs), sys.executable)
        try:
            # -P: a folder in the working directory must not stand for a library.
            command("-P", "-m", "truetune", *words)
        except ChildFailedError as error:
            return _status(error.failures)
    return 0


def _agent(processes: int, logs: str) -> Any:
    """What torchrun --standalone is told; the processes print where this one does."""
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.launcher.api import LaunchConfig

    return LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="127.0.0.1",
        max_restarts=0,
        # Of the others it would have the processes killed after half a minute, whatever they have to save.
        signals_to_handle="SIGQUIT",
        logs_specs=DefaultLogsSpecs(log_dir=logs),
    )


def _status(failures: dict[int, Any]) -> int:
    """The exit status of the processes that ended by themselves; all have that of the one that failed."""
    for failure in failures.values():
        if failure.exitcode > 0:
            return int(failure.exitcode)
    rank, failure = min(failures.items())
    name = signal.Signals(-failure.exitcode).name
    why = ": memory may have run out" if name == "SIGKILL" else ""
    raise BackendError(
        f"process {rank} was ended by {name}{why}",
        hint="fewer processes, or a lower training.per_device_train_batch_size, take less; go on with --resume",
    )


@contextmanager
def _signals_passed_on() -> Iterator[None]:
    """Signals to stop go to the processes: they have sessions of their own, which a terminal does not reach."""

    def pass_on(number: int, _: object) -> None:
        if not (workers := _workers()):
            raise KeyboardInterrupt
        for worker in workers:
            worker.send_signal(number)

    with heard_by(pass_on):
        yield


def _workers() -> list[Any]:
    """The processes that were started, without Python's own helpers: each leads a session."""
    from psutil import NoSuchProcess, Process  # type: ignore[import-untyped]

    def leads(child: Any) -> bool:
        try:
            return bool(os.getsid(child.pid) == child.pid)
        except (OSError, NoSuchProcess):
            return False

    return [child for child in Process().children() if leads(child)]


@contextmanager
def _quiet_agent() -> Iterator[None]:
    """torchrun's agent tells of each failure in a page; what matters has been told."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)
