"""What the live page answers: its pages, the curves of a run, and streams of events. It reads, and writes nothing."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING

from truetune.errors import TruetuneError, first_line
from truetune.pipeline.review.live.events import of_list, of_runs, stream
from truetune.pipeline.review.live.pages import compared_page, named, require_plain
from truetune.pipeline.review.live.security import Access, Gate
from truetune.pipeline.review.live.shelf import Shelf, Shelved
from truetune.pipeline.review.live.watch import Position, parse_position, snapshot
from truetune.pipeline.review.report import run_page
from truetune.report.live_page import ServedPage, render_compared, render_list, render_live_run
from truetune.report.page import policy
from truetune.report.run_page import SCRIPTS, render_run_page

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.types import ASGIApp

MOST_COMPARED = 8
"""Runs over each other: as many as there are colours that can be told apart."""
_AT_ONCE = 2
"""Whole runs that are read at the same time; each may take a few hundred megabytes for a moment."""


def build_app(shelf: Shelf, access: Access, *, is_ending: Callable[[], bool]) -> "ASGIApp":
    """The live page of these runs; `is_ending` tells the streams to end."""
    from starlette.applications import Starlette
    from starlette.routing import Route

    answers = _Answers(shelf, is_ending)
    routes = [
        Route("/", answers.listed),
        Route("/runs", answers.list_events),
        Route("/run/{id}", answers.run),
        Route("/run/{id}/curves", answers.curves),
        Route("/run/{id}/report", answers.report),
        Route("/compare", answers.compare),
        Route("/events", answers.run_events),
    ]
    return Gate(Starlette(routes=routes), access)


class _Answers:
    """An answer for each address. What takes long is done in a thread."""

    def __init__(self, shelf: Shelf, is_ending: Callable[[], bool]) -> None:
        self._shelf, self._is_ending = shelf, is_ending
        self._large = asyncio.Semaphore(_AT_ONCE)

    # --- pages --------------------------------------------------------------------------------------------

    async def listed(self, _: "Request") -> "Response":
        return _page(render_list([str(folder) for folder in self._shelf.folders]))

    async def run(self, request: "Request") -> "Response":
        run = await self._asked(request.path_params["id"])
        return _missing() if run is None else _page(render_live_run(named(run), path=str(run.entry.path)))

    async def compare(self, request: "Request") -> "Response":
        runs = [await self._asked(id) for id in _ids(request)]
        known = [run for run in runs if run is not None]
        if len(known) < len(runs) or len(known) < 2:
            return _missing("two runs or more are compared, and one of these is not here")
        async with self._large:
            page = await asyncio.to_thread(compared_page, known)
        return _page(render_compared(page))

    async def report(self, request: "Request") -> "Response":
        run = await self._asked(request.path_params["id"])
        if run is None:
            return _missing()
        async with self._large:
            return await asyncio.to_thread(_report, run)

    # --- data ---------------------------------------------------------------------------------------------

    async def curves(self, request: "Request") -> "Response":
        from starlette.responses import JSONResponse

        run = await self._asked(request.path_params["id"])
        if run is None:
            return _missing()
        async with self._large:
            found = await asyncio.to_thread(snapshot, run.directory)
            answer = {"curves": found.curves, "position": str(found.position), "problem": found.problem}
            return await asyncio.to_thread(JSONResponse, answer)

    async def list_events(self, _: "Request") -> "Response":
        return _events(stream(of_list(self._shelf), is_ending=self._is_ending))

    async def run_events(self, request: "Request") -> "Response":
        ids = _ids(request)
        runs = [await self._asked(id) for id in ids]
        if not runs or None in runs:
            return _missing()
        # A browser that comes back by itself says what it heard last; the address is that of its first visit.
        told = request.headers.get("last-event-id") or request.query_params.get("from", "")
        known = [parse_position(each) for each in told.split(",")][: len(ids)]
        since = known + [Position()] * (len(ids) - len(known))
        return _events(stream(of_runs(self._shelf, ids, since), is_ending=self._is_ending))

    async def _asked(self, id: str) -> Shelved | None:
        return await asyncio.to_thread(self._shelf.run, id)


def _ids(request: "Request") -> list[str]:
    asked = request.query_params.get("runs", "").split(",")
    return list(dict.fromkeys(filter(None, asked)))[:MOST_COMPARED]


# --- answers ----------------------------------------------------------------------------------------------


def _page(page: ServedPage) -> "Response":
    from starlette.responses import HTMLResponse

    return HTMLResponse(page.html, headers={"Content-Security-Policy": page.policy})


def _report(run: Shelved) -> "Response":
    """The page that `truetune report` would write now. What no run has written is not read."""
    from starlette.responses import HTMLResponse, PlainTextResponse

    try:
        require_plain(run.directory)
        html = render_run_page(run_page(run.directory))
    except (TruetuneError, OSError) as error:
        return PlainTextResponse(f"the report cannot be made: {first_line(error)}", 500)
    return HTMLResponse(html, headers={"Content-Security-Policy": policy(SCRIPTS)})


def _missing(reason: str = "no such run here") -> "Response":
    from starlette.responses import PlainTextResponse

    return PlainTextResponse(reason, 404)


def _events(events: AsyncIterator[str]) -> "Response":
    from starlette.responses import StreamingResponse

    return StreamingResponse(events, media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})
