"""Curves of a run: what was logged by step, thinned without losing an extreme, smoothed, and summed up."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from truetune.runs.columns import Column
from truetune.runs.columns import number as number

Look = Literal["line", "faint", "points"]
Columns = Mapping[str, Column]

BUCKETS = 2_000
"""Stretches of a curve of each of which the least and the largest value are drawn: one a pixel of a wide screen."""
_STILL = 400
"""Those of the drawing for paper, and for browsers without scripts."""
_OF_AN_AXIS = 500
_SMOOTHED, _WORTH_SMOOTHING = 50, 40
"""A smoothed value is the mean over a fiftieth of the logged ones; fewer than forty are not smoothed."""


# --- values -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Curve:
    """Values by step, which rises; NaN where what was logged is no number. `is_made`: not logged, but made of it.

    `key` is the name of what was logged, `scale` what it was multiplied by, to be in the chart's unit.
    """

    name: str
    steps: NDArray[np.int64]
    values: NDArray[np.float64]
    look: Look = "line"
    is_made: bool = False
    key: str = ""
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class Summary:
    """A curve in figures, with the steps of its least and its largest value."""

    name: str
    points: int
    not_numbers: int
    first: float
    first_at: int
    last: float
    least: float
    least_at: int
    most: float
    most_at: int


@dataclass(frozen=True, slots=True)
class Axis:
    """What curves can be drawn over besides steps: its values at some of these."""

    name: str
    steps: NDArray[np.int64]
    values: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Chart:
    """Curves on one scale. `is_main`: drawn large."""

    name: str
    about: str
    curves: tuple[Curve, ...]
    is_main: bool = False

    @property
    def summaries(self) -> list[Summary]:
        return [summary(curve) for curve in self.curves if not curve.is_made]

    @property
    def drawn(self) -> "Drawn":
        return draw([thinned(curve, buckets=_STILL) for curve in self.curves])


@dataclass(frozen=True, slots=True)
class Drawn:
    """A chart as SVG paths in a box of 1,000 by 300, each with its classes."""

    paths: tuple[tuple[str, str], ...]
    first_step: int
    last_step: int
    least: float
    most: float


# --- out of what was logged -------------------------------------------------------------------------------

_CHARTS: Mapping[str, tuple[str, tuple[tuple[str, str, Look], ...]]] = {
    "Loss": ("nats a learned token", (("training", "loss", "line"), ("validation", "eval_loss", "points"))),
    "Learning rate": ("", (("learning rate", "learning_rate", "line"),)),
    "Gradient norm": ("before clipping", (("gradient norm", "grad_norm", "line"),)),
    "Tokens a second": (
        "the mean since the run began, or was last resumed",
        (("tokens a second", "tokens_per_second", "line"),),
    ),
    "Memory": (
        "GB that the process held behind the step; on a GPU, of its memory",
        (("memory", "memory_bytes", "line"),),
    ),
    "Token accuracy": (
        "the share of learned tokens that the model thinks the likeliest",
        (("training", "mean_token_accuracy", "line"), ("validation", "eval_mean_token_accuracy", "points")),
    ),
}
"""Each chart: what its values are, and its curves with their names in metrics.jsonl."""
_MAIN = "Loss"
_SCALES = {"memory_bytes": 1e-9}
"""What logged values are multiplied by, to be in a chart's unit."""
_NOISY = ("loss", "grad_norm", "mean_token_accuracy")
_NO_SCORES = {"eval_loss", "eval_mean_token_accuracy", "eval_supervised_tokens", "eval_runtime"}
_MOST_SCORES = 6
_AXES = {"tokens": "num_tokens", "epochs": "epoch"}

DRAWN: tuple[str, ...] = (*(key for _, curves in _CHARTS.values() for _, key, _ in curves), *_AXES.values())
"""What is drawn of a run's lines, besides the scores of evaluations."""


def charts(columns: Columns) -> tuple[Chart, ...]:
    """What columns of metrics.jsonl hold: the charts that have a curve, and one for each score of an evaluation."""
    named = [(name, about, curves) for name, (about, curves) in _CHARTS.items()]
    named += [(name, "at each evaluation", ((name, key, "points"),)) for name, key in _scores(columns)]
    found = ((name, about, tuple(_curves(columns, curves))) for name, about, curves in named)
    return tuple(Chart(name, about, curves, name == _MAIN) for name, about, curves in found if curves)


def axes(columns: Columns) -> tuple[Axis, ...]:
    """Tokens and epochs by step, as far as they were logged and rise."""
    found = (logged(columns, key, name=name) for name, key in _AXES.items())
    return tuple(_axis(thinned(curve, buckets=_OF_AN_AXIS)) for curve in found if curve and _rises(curve))


def _rises(curve: Curve) -> bool:
    return len(curve.values) > 1 and bool((np.diff(curve.values) > 0).all())


def _axis(curve: Curve) -> Axis:
    """With the beginning, which is not logged of what only training steps have."""
    start = [0] if curve.steps[0] > 0 else []
    return Axis(curve.name, np.append(start, curve.steps).astype(np.int64), np.append(start, curve.values))


def _scores(columns: Columns) -> list[tuple[str, str]]:
    evaluated = (key for key in columns if key.startswith("eval_") and not key.endswith("_per_second"))
    scores = [key for key in evaluated if key not in _NO_SCORES]
    return [(key.removeprefix("eval_").replace("_", " "), key) for key in scores[:_MOST_SCORES]]


def _curves(columns: Columns, named: Sequence[tuple[str, str, Look]]) -> Iterator[Curve]:
    for name, key, look in named:
        curve = logged(columns, key, name=name, look=look)
        if curve is None:
            continue
        if key in _SCALES:
            curve = replace(curve, values=curve.values * _SCALES[key], scale=_SCALES[key])
        trend = smoothed(curve) if key in _NOISY else None
        yield curve if trend is None else replace(curve, look="faint")
        if trend is not None:
            yield trend


def logged(columns: Columns, key: str, *, name: str, look: Look = "line") -> Curve | None:
    """A column by step, of a step that was logged twice the later value. None where none is a number."""
    if (column := columns.get(key)) is None:
        return None
    column = column.in_order
    return None if np.isnan(column.values).all() else Curve(name, column.steps, column.values, look, key=key)


# --- figures ----------------------------------------------------------------------------------------------


def thinned(curve: Curve, *, buckets: int = BUCKETS) -> Curve:
    """Of a long curve, the first and the last point, and of each bucket the least, the largest and one that is NaN.

    They are points of the curve: nothing is averaged.
    """
    count = len(curve.steps)
    if count <= 2 * buckets:
        return curve
    size = -(-count // buckets)
    # What fills the last bucket up is a number, and neither the least nor the largest one.
    padded = np.append(curve.values, np.full(size * buckets - count, curve.values[-1])).reshape(buckets, size)
    is_nan = np.isnan(padded)
    starts = np.arange(buckets) * size
    places = [
        np.where(is_nan, np.inf, padded).argmin(axis=1) + starts,
        np.where(is_nan, -np.inf, padded).argmax(axis=1) + starts,
        (is_nan.argmax(axis=1) + starts)[is_nan.any(axis=1)],
        np.array([0, count - 1]),
    ]
    kept = np.unique(np.concatenate(places))
    kept = kept[kept < count]
    return replace(curve, steps=curve.steps[kept], values=curve.values[kept])


def smoothed(curve: Curve) -> Curve | None:
    """The mean of the values around each one; None for a curve too short to need it."""
    count = len(curve.values)
    if count < _WORTH_SMOOTHING:
        return None
    half = max(2, count // (2 * _SMOOTHED))
    is_number = ~np.isnan(curve.values)
    sums = np.append(0.0, np.cumsum(np.where(is_number, curve.values, 0.0)))
    counts = np.append(0, np.cumsum(is_number))
    low, high = np.maximum(np.arange(count) - half, 0), np.minimum(np.arange(count) + half + 1, count)
    held = counts[high] - counts[low]
    means = (sums[high] - sums[low]) / np.where(held, held, 1)
    return Curve(f"{curve.name}, smoothed", curve.steps, np.where(held, means, np.nan), is_made=True)


def summary(curve: Curve) -> Summary:
    """The curve in figures. It has a number somewhere."""
    known = np.flatnonzero(~np.isnan(curve.values))
    values, steps = curve.values[known], curve.steps[known]
    least, most = int(values.argmin()), int(values.argmax())
    return Summary(
        name=curve.name,
        points=len(curve.values),
        not_numbers=len(curve.values) - len(known),
        first=float(values[0]),
        first_at=int(steps[0]),
        last=float(values[-1]),
        least=float(values[least]),
        least_at=int(steps[least]),
        most=float(values[most]),
        most_at=int(steps[most]),
    )


# --- as a page takes them ---------------------------------------------------------------------------------


def payload(charts: Sequence[Chart], axes: Sequence[Axis]) -> dict[str, Any]:
    """The curves as the page's script reads them, thinned; null where a value is no number."""
    return {
        "axes": [{"name": axis.name, **_points(axis.steps, axis.values)} for axis in axes],
        "charts": [_chart(chart) for chart in charts],
    }


def _chart(chart: Chart) -> dict[str, Any]:
    curves = [_curve(each) for each in chart.curves]
    return {"name": chart.name, "about": chart.about, "main": chart.is_main, "curves": curves}


def _curve(curve: Curve) -> dict[str, Any]:
    few = thinned(curve)
    return {
        "name": curve.name,
        "look": curve.look,
        "key": curve.key,
        "scale": curve.scale,
        **_points(few.steps, few.values),
    }


def _points(steps: NDArray[np.int64], values: NDArray[np.float64]) -> dict[str, Any]:
    rounded = [None if math.isnan(value) else float(f"{value:.6g}") for value in values.tolist()]
    return {"steps": steps.tolist(), "values": rounded}


def draw(curves: Sequence[Curve]) -> Drawn:
    """The curves in one box, from the first step of any to the last, and from the least value to the largest."""
    first, last = min(int(each.steps[0]) for each in curves), max(int(each.steps[-1]) for each in curves)
    least, most = (
        min(float(np.nanmin(each.values)) for each in curves),
        max(float(np.nanmax(each.values)) for each in curves),
    )
    wide, high = max(last - first, 1), (most - least) or 1.0
    paths: list[tuple[str, str]] = []
    for curve in curves:
        across = (1000 * (curve.steps - first) / wide).round(1).tolist()
        down = (290 - 280 * (curve.values - least) / high).round(1).tolist()
        paths.append((curve.look, _path(across, down)))
        if curve.look == "points" or len(curve.values) == 1:
            dots = (f"M{x:g} {y:g}h0" for x, y in zip(across, down, strict=True) if not math.isnan(y))
            paths.append((f"{curve.look} dot", "".join(dots)))
    return Drawn(tuple(paths), first, last, least, most)


def _path(across: Sequence[float], down: Sequence[float]) -> str:
    """A line through the points, interrupted where one is NaN."""
    drawn, is_open = [], False
    for x, y in zip(across, down, strict=True):
        is_gap = math.isnan(y)
        if not is_gap:
            drawn.append(f"{'L' if is_open else 'M'}{x:g} {y:g}")
        is_open = not is_gap
    return "".join(drawn)
