"""What changes while somebody looks, as server-sent events. Nothing is read while nobody does."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from truetune.pipeline.review.live.pages import head_of, line_of
from truetune.pipeline.review.live.shelf import Shelf, Shelved
from truetune.pipeline.review.live.watch import Position, log_news, news

PERIOD = 0.7
"""Seconds between two looks at files that may have grown."""
_SIGN_OF_LIFE = 15.0
"""Seconds after which a connection on which nothing was to tell is tried, so that one that was cut is noticed."""
_AGAIN = "retry: 2000\n\n"


def event(name: str, data: Mapping[str, Any], *, id: str = "") -> str:
    """An event as the HTML standard (9.2.6) has it; JSON has no line breaks."""
    told = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return f"event: {name}\n{f'id: {id}{chr(10)}' if id else ''}data: {told}\n\n"


async def stream(look: Callable[[], Iterator[str]], *, is_ending: Callable[[], bool]) -> AsyncIterator[str]:
    """The events of each look, as long as the client listens and the server goes on. Looks are taken in a thread."""
    yield _AGAIN
    told_at = time.monotonic()
    while not is_ending():
        found = "".join(await asyncio.to_thread(lambda: list(look())))
        if found or time.monotonic() - told_at > _SIGN_OF_LIFE:
            told_at = time.monotonic()
            yield found or ": here\n\n"
        await asyncio.sleep(PERIOD)


# --- the list ---------------------------------------------------------------------------------------------


def of_list(shelf: Shelf) -> Callable[[], Iterator[str]]:
    """All runs at first, then those that have changed and those that have gone."""
    return partial(_list_events, shelf, _Shown())


@dataclass(slots=True)
class _Shown:
    runs: Mapping[str, Shelved] | None = None


def _list_events(shelf: Shelf, shown: _Shown) -> Iterator[str]:
    now, before = shelf.runs(), shown.runs
    shown.runs = now
    if before is None:
        yield event("runs", {"runs": [line_of(run) for run in now.values()]})
        return
    changed = [run for id, run in now.items() if before.get(id) is not run]
    gone = [id for id in before if id not in now]
    if changed or gone:
        yield event("changed", {"runs": [line_of(run) for run in changed], "gone": gone})


# --- runs that are looked at ------------------------------------------------------------------------------


def of_runs(shelf: Shelf, ids: Sequence[str], since: Sequence[Position]) -> Callable[[], Iterator[str]]:
    """Of each run its head, the lines that were logged since, and of a single one its log.

    The events' ids are the runs' positions, which a client sends when it comes back.
    """
    followed = [_Followed(id, position) for id, position in zip(ids, since, strict=True)]
    return partial(_run_events, shelf, followed)


@dataclass(slots=True)
class _Followed:
    """What a client knows of a run."""

    id: str
    position: Position
    head: Mapping[str, Any] = field(default_factory=dict)
    log: Position | None = None
    is_gone: bool = False


def _run_events(shelf: Shelf, followed: Sequence[_Followed]) -> Iterator[str]:
    for each in followed:
        run = shelf.run(each.id)
        if run is None:
            if not each.is_gone:
                yield event("gone", {"run": each.id})
            each.is_gone = True
            continue
        each.is_gone = False
        yield from _metrics(run, each, followed)
        if (head := head_of(run)) != each.head:
            each.head = head
            yield event("head", {"run": each.id, "head": head})
        if len(followed) == 1:
            yield from _log(run, each)


def _metrics(run: Shelved, each: _Followed, followed: Sequence[_Followed]) -> Iterator[str]:
    found = news(run.directory, each.position)
    each.position = found.position
    known = ",".join(str(other.position) for other in followed)
    if found.is_restarted:
        yield event("restarted", {"run": each.id}, id=known)
    elif found.lines:
        yield event("lines", {"run": each.id, "lines": found.lines}, id=known)


def _log(run: Shelved, each: _Followed) -> Iterator[str]:
    found = log_news(run.directory.log, each.log)
    if found is not None:
        each.log = found.position
        yield event("log", {"run": each.id, "text": found.text, "is_whole": found.is_whole})
