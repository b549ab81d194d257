"""A data report as one HTML file that needs nothing beside it: its values, its figures and its page."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from truetune.data.catalog import Rule, Severity
from truetune.lint.guidelines import Guideline
from truetune.report.page import render_page
from truetune.report.stretches import Stretches

_BINS = 30
_WIDE = 20
"""From so many times the median on, the longest makes linear bins useless."""


# --- values -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Text:
    """A text of a row. `kind` is that of lint.parts.Part, or `field` for one of a row that could not be read.

    `is_place`: the finding is about this one.
    """

    kind: str
    field: str
    stretches: Stretches
    is_place: bool = False


@dataclass(frozen=True, slots=True)
class ShownRow:
    """A row's place and its texts; `about` says what more there is to say of it."""

    where: str
    texts: tuple[Text, ...]
    about: str = ""


@dataclass(frozen=True, slots=True)
class Finding:
    """A finding, its row, and behind it the row it is related to, if that reads otherwise."""

    where: str
    field: str | None
    message: str
    rows: tuple[ShownRow, ...]


@dataclass(frozen=True, slots=True)
class RuleFindings:
    """What a rule found: `rows` counts all, `shown` are the first. `explanation` is its page (Markdown)."""

    rule: Rule
    severity: Severity
    rows: int
    hint: str | None
    shown: tuple[Finding, ...]
    explanation: str = ""

    @property
    def blocks(self) -> "tuple[Block, ...]":
        return tuple(markdown_blocks(self.explanation))


@dataclass(frozen=True, slots=True)
class Lengths:
    """How long rows are in some measure; `limit` is marked."""

    name: str
    values: NDArray[np.int64]
    limit: int | None = None

    @property
    def figures(self) -> dict[str, int]:
        points = {"shortest": 0, "median": 50, "95 %": 95, "longest": 100}
        return {"rows": len(self.values)} | {
            name: int(np.percentile(self.values, point)) for name, point in points.items()
        }

    @property
    def histogram(self) -> "Histogram":
        return histogram(self.values)


@dataclass(frozen=True, slots=True)
class Shares:
    """How a whole is made up: each part's name and count."""

    name: str
    parts: tuple[tuple[str, int], ...]

    @property
    def total(self) -> int:
        return sum(count for _, count in self.parts)


@dataclass(frozen=True, slots=True)
class Cluster:
    """Rows that say nearly the same: how many, how many different ones, and the first of these side by side."""

    rows: int
    texts: int
    shown: tuple[ShownRow, ...]


@dataclass(frozen=True, slots=True)
class DataPage:
    """All that the report of a data set shows."""

    files: tuple[str, ...]
    rows_read: int
    rows_kept: int
    date: str
    version: str
    model: str | None
    passes: bool
    verdict: str
    findings: tuple[RuleFindings, ...]
    guidelines: tuple[Guideline, ...]
    lengths: tuple[Lengths, ...]
    shares: tuple[Shares, ...]
    clusters: tuple[Cluster, ...]
    all_clusters: int
    samples: tuple[ShownRow, ...]
    surprising: tuple[ShownRow, ...] = ()
    known: tuple[ShownRow, ...] = ()

    @property
    def title(self) -> str:
        first, *others = self.files or ("no data",)
        return f"{first} and {len(others):,} more" if others else first


# --- figures ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Histogram:
    """Counts of whole numbers: counts[i] of them are edges[i] or more and less than edges[i + 1]."""

    edges: tuple[int, ...]
    counts: tuple[int, ...]

    @property
    def bars(self) -> Iterator[tuple[int, float, str]]:
        """Place, height in percent of the highest, and what the bar says."""
        highest = max(self.counts)
        for place, count in enumerate(self.counts):
            low, high = self.edges[place], self.edges[place + 1] - 1
            span = f"{low:,}" if low == high else f"{low:,} to {high:,}"
            yield place, 100 * count / highest, f"{span}: {count:,} rows"

    @property
    def ticks(self) -> list[tuple[float, int]]:
        """Some edges, each with its place in percent."""
        last = len(self.counts)
        places = sorted({round(last * part / 4) for part in range(5)})
        return [(100 * place / last, self.edges[place]) for place in places]

    def place(self, value: float) -> float:
        """Where a value stands, in percent from the left."""
        at = float(np.interp(value, self.edges, np.arange(len(self.edges))))
        return 100 * at / len(self.counts)


def histogram(values: NDArray[np.int64], *, bins: int = _BINS) -> Histogram:
    """Equal bins, or bins that grow by a factor where the longest is many times the median; every value is in one."""
    low, high = int(values.min()), int(values.max())
    edges = (
        _log_edges(low, high, bins) if high > _WIDE * max(float(np.median(values)), 1) else _edges(low, high, bins)
    )
    return Histogram(tuple(edges.tolist()), tuple(np.histogram(values, edges)[0].tolist()))


def _edges(low: int, high: int, bins: int) -> NDArray[np.int64]:
    step = -(-(high + 1 - low) // bins)
    return np.arange(low, high + 1 + step, step)


def _log_edges(low: int, high: int, bins: int) -> NDArray[np.int64]:
    grown = np.geomspace(max(low, 1), high + 1, bins + 1).round().astype(np.int64)
    return np.unique(np.concatenate([[low], grown, [high + 1]]))


@dataclass(frozen=True, slots=True)
class Meter:
    """A guideline's range and its figure on a scale from 0 to 100."""

    start: float
    end: float
    at: float


def meter(guideline: Guideline) -> Meter:
    """Shares stand on a scale up to 1, counts on one of powers of ten, ratios on one up to twice their bound."""
    low, high, value = guideline.low, guideline.high, guideline.value
    if high is None:
        return Meter(100 * (low or 0), 100, _percent(value))
    if low is None:
        return Meter(0, 50, _percent(value / (2 * high)))
    bottom, top = np.log10(low / 100), np.log10(high * 100)
    places = (np.log10(max(each, 1e-9)) for each in (low, high, value))
    return Meter(*(_percent((each - bottom) / (top - bottom)) for each in places))


def _percent(share: float) -> float:
    return 100 * min(max(float(share), 0.0), 1.0)


# --- rendering --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Block:
    """A heading, a paragraph, an item of a list, or code; `pieces` are text and inline code in turn."""

    kind: Literal["heading", "paragraph", "item", "code"]
    text: str

    @property
    def pieces(self) -> list[str]:
        return self.text.split("`")


def markdown_blocks(source: str) -> Iterator[Block]:
    """So much of Markdown as the rules' pages use; the title, which the page has anyway, is left out."""
    for number, fenced in enumerate(source.split("```")):
        if number % 2:
            yield Block("code", fenced.partition("\n")[2].rstrip("\n"))
        else:
            yield from _prose(fenced.splitlines())


def _prose(lines: Iterable[str]) -> Iterator[Block]:
    kind: Literal["paragraph", "item"] = "paragraph"
    held: list[str] = []
    for line in [*lines, ""]:
        starts_item, is_heading = line.startswith(("- ", "* ")), line.startswith("#")
        if held and (starts_item or is_heading or not line.strip()):
            yield Block(kind, " ".join(held))
            kind, held = "paragraph", []
        if is_heading and not line.startswith("# "):
            yield Block("heading", line.lstrip("# "))
        elif line.strip() and not is_heading:
            kind = "item" if starts_item else kind
            held.append(line[2:] if starts_item else line.strip())


def render_data_page(page: DataPage) -> str:
    """The page as HTML. All that comes from the data is escaped."""
    return render_page("data.html.jinja", scripts=("templates/data.js",), page=page, meter=meter)
