"""The five guidelines for data of the fine-tuning guide, each as a figure that was measured, with its range."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from truetune.data.catalog import RULES
from truetune.data.examples import Location
from truetune.data.rules import Problem
from truetune.lint.sketch import Sketches


@dataclass(frozen=True, slots=True)
class Guideline:
    """A figure and the range that it should lie in; `measures` says what it is, `source` whose the range is."""

    name: str
    measures: str
    value: float
    low: float | None
    high: float | None
    source: str

    @property
    def is_within(self) -> bool:
        return (self.low is None or self.value >= self.low) and (self.high is None or self.value <= self.high)

    def as_json(self) -> dict[str, Any]:
        return {"code": RULES[self.name].code, **asdict(self), "range": self.range, "is_within": self.is_within}

    @property
    def range(self) -> str:
        """The range in words: at least 0.9."""
        match self.low, self.high:
            case None, high:
                return f"at most {high:g}"
            case low, None:
                return f"at least {low:g}"
            case low, high:
                return f"{low:,g} to {high:,g}"


_GUIDE, _OURS = "the guide", "truetune's own, from what real sets have"


def guidelines(rows: Sketches, *, clusters: int, flagged: int, forms: Mapping[str, int]) -> tuple[Guideline, ...]:
    """The five figures of these rows: `clusters` of distinct ones, `flagged` ones with a warning, `forms` counted."""
    count = len(rows)
    if not count:
        return ()
    return (
        Guideline("quantity", "rows that can be used", count, 100, 10_000, _GUIDE),
        Guideline(
            "quality",
            "share of rows that no rule warns of",
            1 - flagged / count,
            0.95,
            None,
            _OURS,
        ),
        Guideline("diversity", "share of rows that are no near duplicate", clusters / count, 0.95, None, _OURS),
        Guideline(
            "consistency",
            "share of rows in the commonest form and language",
            _consistency(rows, forms),
            0.9,
            None,
            _OURS,
        ),
        Guideline(
            "length", "longest answers (95 %) over the middle one", _spread(rows.answer_length), None, 20.0, _OURS
        ),
    )


def out_of_range(found: Sequence[Guideline], where: Location) -> Iterator[Problem]:
    """A finding for each figure outside its range."""
    for guideline in found:
        if not guideline.is_within:
            expected = f"{guideline.range} is the range ({guideline.source})"
            message = f"{guideline.measures}: {guideline.value:,.4g}, and {expected}"
            yield Problem.found(guideline.name, message, where)


def _consistency(rows: Sketches, forms: Mapping[str, int]) -> float:
    by_form = max(forms.values()) / sum(forms.values()) if forms else 1.0
    known = rows.language[rows.language != ""]
    by_language = np.unique(known, return_counts=True)[1].max() / len(known) if len(known) else 1.0
    return float(by_form * by_language)


def _spread(lengths: Any) -> float:
    some = lengths[lengths > 0]
    return float(np.percentile(some, 95) / np.median(some)) if len(some) else 1.0
