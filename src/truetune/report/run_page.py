"""A run as one HTML file that needs nothing beside it: what it shows, and its page."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from truetune.report.curves import Axis, Chart, payload
from truetune.report.data_page import Shares, ShownRow
from truetune.report.page import asset, render_page

Tone = Literal["good", "warning", "error", "plain", "busy"]
Pairs = tuple[tuple[str, str], ...]
"""Names and values."""

DRAWN_STYLES = ("vendor/uPlot.min.css", "templates/run.css")
DRAWN_SCRIPTS = ("vendor/uPlot.iife.min.js", "templates/page.js", "templates/plots.js")
"""What a page with curves brings along."""
SCRIPTS = (*DRAWN_SCRIPTS, "templates/run.js")


def tone_of(status: str, *, while_running: Tone) -> Tone:
    """How a run's status looks; that of one which goes on does not on every page."""
    tones: Mapping[str, Tone] = {"finished": "good", "running": while_running, "stopped": "warning"}
    return tones.get(status, "error")


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure of a run that is shown large, and what there is to say of it."""

    name: str
    value: str
    about: str = ""


@dataclass(frozen=True, slots=True)
class Compared:
    """A figure of the tuned model beside its base's; `is_sure`: the interval of their difference does not hold 0."""

    name: str
    tuned: str
    base: str
    difference: str
    counts: str
    is_sure: bool


@dataclass(frozen=True, slots=True)
class AnsweredRow:
    """What a row expects and what was answered; `base` is None where the base was not asked."""

    where: str
    prompt: str
    expected: str
    tuned: str
    base: str | None
    about: str


@dataclass(frozen=True, slots=True)
class HardRow:
    """A row of those with the highest loss; `text` is the end of what it asks, `answer` what it is to learn."""

    where: str
    loss: str
    base_loss: str
    tokens: str
    text: str
    answer: str


@dataclass(frozen=True, slots=True)
class Judged:
    """An evaluation. `answers` are the first of `answered` rows; `lost` are prompts that only the base follows."""

    title: str
    about: str
    answers: tuple[AnsweredRow, ...]
    answered: int
    others: Pairs
    compared: tuple[Compared, ...] = ()
    worst: tuple[HardRow, ...] = ()
    forgotten: str = ""
    lost: tuple[str, ...] = ()
    missed: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class FoundRule:
    """What a rule found in the data: `rows` counts all, the rest tells of the first."""

    code: str
    name: str
    severity: str
    rows: int
    first: str
    hint: str


@dataclass(frozen=True, slots=True)
class DataFacts:
    """What became of the rows."""

    facts: Pairs
    shares: tuple[Shares, ...]
    findings: tuple[FoundRule, ...]


@dataclass(frozen=True, slots=True)
class Planned:
    """A figure of the plan beside what the run took."""

    name: str
    planned: str
    taken: str
    difference: str


@dataclass(frozen=True, slots=True)
class Setting:
    """A setting's value and its reason; `evidence` is what more is known."""

    name: str
    value: str
    reason: str
    evidence: str


@dataclass(frozen=True, slots=True)
class RunPage:
    """All that the report of a run shows. `missing` tells, by section, why one is empty or not complete."""

    name: str
    status: str
    tone: Tone
    verdict: str
    notes: tuple[str, ...]
    date: str
    version: str
    figures: tuple[Figure, ...]
    charts: tuple[Chart, ...]
    axes: tuple[Axis, ...]
    judged: Judged | None
    samples: tuple[ShownRow, ...]
    data: DataFacts | None
    planned: tuple[Planned, ...]
    memory: Pairs
    settings: tuple[Setting, ...]
    config: str
    environment: tuple[tuple[str, Pairs], ...]
    command: str
    missing: Mapping[str, str] = field(default_factory=dict)


def render_run_page(page: RunPage) -> str:
    """The page as HTML. All that comes from the run's directory is escaped, and none of it can run."""
    return render_page(
        "run.html.jinja",
        styles=DRAWN_STYLES,
        scripts=SCRIPTS,
        page=page,
        curves=payload(page.charts, page.axes),
        licence=asset("vendor/LICENSE"),
    )
