"""Work on rows that is dealt out to processes of this machine and comes back in order."""

import gc
import multiprocessing
import os
import queue
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle, islice
from typing import Any, Literal, TypeVar

from truetune.data.examples import Record
from truetune.data.sources import SourceFile
from truetune.errors import BackendError, TruetuneError
from truetune.pipeline.stages import Formatting, Rows, chunks

Chunk = Sequence[tuple[int, Record]]
_Item = TypeVar("_Item")
_AHEAD = 4
"""Items that a process may be ahead of its reader."""
_WORTH_PROCESSES = 1_000_000
"""Bytes of data from which on forked processes gain more than they cost."""
_MOST_PROCESSES = 16


def by_chunks(
    work: Callable[[Chunk], _Item],
    inputs: Sequence[SourceFile | Rows],
    *,
    formatting: Formatting | None,
    num_proc: Literal["auto"] | int,
) -> Iterator[_Item]:
    """What `work` makes of each chunk of rows, in order: here, or in processes where that pays."""
    processes = processes_for(inputs, num_proc) if formatting is None else 1
    return over_chunks(work, lambda: chunks(inputs, formatting), processes=processes)


def over_chunks(
    work: Callable[[Chunk], _Item], read: Callable[[], Iterator[Chunk]], *, processes: int
) -> Iterator[_Item]:
    """What `work` makes of each chunk that `read` reads, in order, in so many processes."""

    def produce(number: int, count: int) -> Iterator[_Item]:
        # Each process reads all rows, which costs a fiftieth of the rest, and takes every count-th chunk.
        return map(work, islice(read(), number, None, count))

    # Rows hold no cycles; without this each collection walks all of torch and transformers, a sixth of the time.
    # What a caller has frozen stays so.
    is_ours = not gc.get_freeze_count()
    if is_ours:
        gc.freeze()
    try:
        yield from produce(0, 1) if processes == 1 else dealt(produce, processes=processes)
    finally:
        if is_ours:
            gc.unfreeze()


def processes_for(inputs: Sequence[SourceFile | Rows], num_proc: Literal["auto"] | int) -> int:
    """How many processes are worth their start; what is the user's own Python stays in this one."""
    files = [each for each in inputs if isinstance(each, SourceFile)]
    if len(files) < len(inputs) or num_proc == 1:
        return 1
    pays = sum(file.path.stat().st_size for file in files) >= _WORTH_PROCESSES
    return min(usable_processes(), num_proc if num_proc != "auto" else _MOST_PROCESSES if pays else 1)


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
