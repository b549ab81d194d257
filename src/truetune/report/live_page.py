"""The pages of `truetune report --serve`: the runs there are, one while it trains, and some over each other."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from truetune.report.page import asset, policy, render_page
from truetune.report.run_page import DRAWN_SCRIPTS, DRAWN_STYLES, Tone

_LIVE = "templates/live.js"
_OF_RUNS = ("templates/page.js", _LIVE, "templates/live-runs.js")
_DRAWN = (*DRAWN_SCRIPTS, _LIVE, "templates/live-curves.js")
_OF_ONE, _OF_SOME = (*_DRAWN, "templates/live-run.js"), (*_DRAWN, "templates/live-compare.js")


@dataclass(frozen=True, slots=True)
class ServedPage:
    """A page as HTML, and the Content-Security-Policy that it is to be sent with."""

    html: str
    policy: str


@dataclass(frozen=True, slots=True)
class NamedRun:
    """A run as the live page names it; `id` stands for its directory, which no request can name."""

    id: str
    name: str
    status: str
    tone: Tone


@dataclass(frozen=True, slots=True)
class Line:
    """Something by its name, with its value in each run."""

    name: str
    values: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Table:
    """Lines under a title; `nothing` is said where there are none."""

    title: str
    first: str
    lines: tuple[Line, ...]
    nothing: str


@dataclass(frozen=True, slots=True)
class ToldVerdict:
    """Whether a run lies further from the first one in a figure than noise would put it, in words."""

    figure: str
    other: str
    difference: str
    interval: str
    answer: str
    how: str


@dataclass(frozen=True, slots=True)
class SameRow:
    """A row that runs were asked, and what each answered; None of one that was not asked."""

    where: str
    prompt: str
    expected: str
    answers: tuple[str | None, ...]


@dataclass(frozen=True, slots=True)
class ComparedPage:
    """Runs side by side, as they were when the page was asked for. `problem`: why they cannot be compared."""

    runs: tuple[NamedRun, ...]
    tables: tuple[Table, ...] = ()
    verdicts: tuple[ToldVerdict, ...] = ()
    notes: tuple[str, ...] = ()
    samples: tuple[SameRow, ...] = ()
    unanswered: tuple[str, ...] = ()
    problem: str = ""


def render_list(folders: Sequence[str]) -> ServedPage:
    """The page that lists runs; they come in events."""
    return _rendered("runs", title="Runs", scripts=_OF_RUNS, given={}, folders=folders)


def render_live_run(run: NamedRun, *, path: str) -> ServedPage:
    """The page of one run; its curves are fetched, and what is new comes in events."""
    given = {"id": run.id, "name": run.name}
    return _rendered("run", title=run.name, scripts=_OF_ONE, given=given, name=run.name, path=path)


def render_compared(page: ComparedPage) -> ServedPage:
    """The page of runs over each other."""
    given = {"runs": [{"id": run.id, "name": run.name} for run in page.runs]}
    title = " and ".join(run.name for run in page.runs)
    return _rendered("compare", title=title, scripts=_OF_SOME, given=given, page=page)


def _rendered(kind: str, *, scripts: Sequence[str], given: Mapping[str, Any], **values: Any) -> ServedPage:
    is_drawn = scripts is not _OF_RUNS
    html = render_page(
        f"live-{kind}.html.jinja",
        styles=(*DRAWN_STYLES, "templates/live.css"),
        scripts=scripts,
        is_served=True,
        given=given,
        is_drawn=is_drawn,
        licence=asset("vendor/LICENSE") if is_drawn else "",
        version=metadata.version("truetune"),
        **values,
    )
    return ServedPage(html, policy(scripts, is_served=True))
