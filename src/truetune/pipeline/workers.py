"""Work that is dealt out to processes of this machine and comes back in order."""

import multiprocessing
import os
import queue
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from itertools import cycle
from typing import Any, TypeVar

from truetune.errors import BackendError, TruetuneError

_Item = TypeVar("_Item")
_AHEAD = 4
"""Items that a process may be ahead of its reader."""


def usable_processes() -> int:
    """The cores this process may run on; 1 where a process cannot be forked as it stands."""
    if sys.platform != "linux" or multiprocessing.current_process().daemon:
        return 1
    return len(os.sched_getaffinity(0))


def dealt(produce: Callable[[int, int], Iterator[_Item]], *, processes: int) -> Iterator[_Item]:
    """The items of produce(0, n), produce(1, n) … in turn, each of them made in a process of its own.

    Processes are forked, so `produce` needs no pickling, its items do. The first that ends ends all. An error of a
    process is raised here, in its item's place.
    """
    # Unset, the tokenizers library warns in every forked process.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    context = multiprocessing.get_context("fork")
    queues = [context.Queue(_AHEAD) for _ in range(processes)]
    workers = [
        context.Process(target=_send, args=(produce, number, processes, queues[number]), daemon=True)
        for number in range(processes)
    ]
    for worker in workers:
        worker.start()
    try:
        for number in cycle(range(processes)):
            kind, item = _received(queues[number], workers[number])
            if kind == "end":
                return
            if kind == "error":
                raise item if isinstance(item, TruetuneError) else RuntimeError(item)
            yield item
    finally:
        for worker in workers:
            worker.kill()
            worker.join()


def _send(produce: Callable[[int, int], Iterator[Any]], number: int, processes: int, out: Any) -> None:
    """In the worker: its items, then how it ended. The parent hears of signals and ends it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        for item in produce(number, processes):
            out.put(("item", item))
        out.put(("end", None))
    except TruetuneError as error:
        out.put(("error", error))
    except Exception:  # noqa: BLE001 - whatever it is, the parent has to hear of it
        out.put(("error", traceback.format_exc()))


def _received(source: Any, worker: Any) -> tuple[str, Any]:
    while True:
        try:
            return source.get(timeout=1)  # type: ignore[no-any-return]
        except queue.Empty:
            if not worker.is_alive() and source.empty():
                raise BackendError(
                    f"a process that prepares rows died (exit status {worker.exitcode})",
                    hint="memory may have run out: set data.num_proc to 1",
                ) from None
