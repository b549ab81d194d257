"""The arithmetic of a learning-rate range test: which rates to try, when to stop, and what the curve says.

The test is Smith's (arXiv 1506.01186, section 3.3), with exponentially rising rates as in fastai and Lightning.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

LEAST_STEPS, FEW_STEPS, MANY_STEPS = 5, 40, 80
"""The fewest steps that make a curve; those of a test on few rows, and on many."""
_PASSES = 3
_DECADES = 2
"""How far below and above the rates at hand a test goes: a hundredth hardly learns, a hundredfold diverges."""
_WINDOW = 0.1
"""The share of the steps that the smoothed loss looks back on, and over which a slope is taken."""
_LOST = 4.0
"""A smoothed loss of so many times the lowest is lost: fastai's and Lightning's bound."""
_LEAST_LOST = 0.25
"""The share of the first loss below which nothing is lost: where rows are known by heart, noise alone is fourfold."""
_CERTAIN = 4.0
"""Standard errors of a fall that is one: of many noisy averages the lowest is below the first by chance."""
_LEAST_FALL = 0.02
"""The share of the first loss that a fall worth the name has."""
_SAFE = 10.0
"""How far a run should stay below the rate of the lowest loss, behind which training breaks."""


@dataclass(frozen=True, slots=True)
class Point:
    """`loss` is what the step at `learning_rate` left, read on the next batch; it may be NaN or infinite."""

    learning_rate: float
    loss: float
    smoothed_loss: float


@dataclass(frozen=True, slots=True)
class Curve:
    """What a test of `steps` rates saw: `start` is the loss before its first step; `points` end where it stopped."""

    start: float
    points: tuple[Point, ...]
    steps: int
    diverged: bool

    @property
    def diverged_at(self) -> float | None:
        return self.points[-1].learning_rate if self.diverged and self.points else None

    @property
    def usable(self) -> list[Point]:
        """The points whose smoothed loss is a number."""
        return [point for point in self.points if math.isfinite(point.smoothed_loss)]

    @property
    def losses(self) -> list[float]:
        """Those that are numbers, the one before the first step among them."""
        return [self.start, *(point.loss for point in self.usable)]


@dataclass(frozen=True, slots=True)
class Reading:
    """What a curve says. `suggestion`, and `steepest`, where the loss falls fastest, are None if it does not fall."""

    suggestion: float | None
    steepest: float | None
    lowest: float | None
    reason: str


# --- before and while it trains ---------------------------------------------------------------------------


def default_steps(steps_per_epoch: int) -> int:
    """Three passes over the rows, but not so few that the curve is coarse nor more than it gains by."""
    return min(MANY_STEPS, max(FEW_STEPS, _PASSES * steps_per_epoch))


def rising_rates(around: Sequence[float], steps: int) -> list[float]:
    """From a hundredth of the lowest of `around` to a hundred times the highest, each by the same factor."""
    low, high = min(around) / 10**_DECADES, max(around) * 10**_DECADES
    return [low * (high / low) ** (step / (steps - 1)) for step in range(steps)]


def smooth(losses: Sequence[float], *, steps: int) -> list[float]:
    """Exponential moving averages over a tenth of the steps, corrected for their short past."""
    beta = 1 - 1 / _window(steps)
    averages, total, weight = [], 0.0, 0.0
    for loss in losses:
        total, weight = beta * total + loss, beta * weight + 1
        averages.append(total / weight)
    return averages


def is_lost(losses: Sequence[float], *, steps: int) -> bool:
    """True once the newest loss is not finite, or the smoothed one is four times the lowest it was."""
    if not math.isfinite(losses[-1]):
        return True
    smoothed = smooth(losses, steps=steps)
    return smoothed[-1] > max(_LOST * min(smoothed), _LEAST_LOST * losses[0])


def _window(steps: int) -> int:
    return max(1, round(_WINDOW * steps))


# --- behind it --------------------------------------------------------------------------------------------


def draw_curve(rates: Sequence[float], losses: Sequence[float], *, diverged: bool) -> Curve:
    """The curve of a test: `losses` begin with the one before the first rate, and may end before the last."""
    smoothed = smooth(losses, steps=len(rates))
    points = zip(rates, losses[1:], smoothed[1:], strict=False)
    start = losses[0] if losses else math.nan
    return Curve(start, tuple(Point(*point) for point in points), len(rates), diverged)


def read_curve(curve: Curve) -> Reading:
    """A tenth of the rate of the lowest smoothed loss (Howard's rule), if the loss rises behind it.

    Else the rate around which it falls fastest, which needs no such end. That is the lower one where both are known,
    and too low on the demo's rows: a loss that has fallen far cannot fall fast any more, whatever the rate.
    """
    points = curve.usable
    if len(points) < 2:
        return Reading(None, None, None, _nothing_seen(curve))
    lowest = _lowest(curve)
    at_lowest = points[lowest].learning_rate
    if not _falls(curve, lowest):
        return Reading(None, None, at_lowest, _no_fall(curve))
    steepest = points[_steepest(curve, lowest)].learning_rate
    if _turns(curve, lowest):
        reason = (
            f"a tenth of {at_lowest:.1e}, where the smoothed loss is lowest; it falls fastest around {steepest:.1e}"
        )
        return Reading(_rounded(at_lowest / _SAFE), steepest, at_lowest, reason)
    reason = f"the loss falls fastest around {steepest:.1e}, and never rises again: a higher rate may do as well"
    return Reading(_rounded(steepest), steepest, at_lowest, reason)


def _lowest(curve: Curve) -> int:
    """The place of the lowest smoothed loss, the first ones left out: they are averages of too few."""
    points = curve.usable
    places = range(min(_window(curve.steps), len(points)) - 1, len(points))
    return min(places, key=lambda place: points[place].smoothed_loss)


def _steepest(curve: Curve, lowest: int) -> int:
    """The place, up to the lowest, where the steps behind it are most below those before it, over a window of each.

    The smoothed loss itself lags behind: its steepest fall would be at twice the rate.
    """
    losses, window = curve.losses, _window(curve.steps)
    falls = {
        place: sum(losses[place + 1 - window : place + 1]) - sum(losses[place + 1 : place + 1 + window])
        for place in range(window - 1, len(losses) - window)
    }
    return max((place for place in falls if place <= lowest), key=falls.__getitem__, default=lowest)


def _falls(curve: Curve, lowest: int) -> bool:
    """True if the smoothed loss falls further than noise would make it."""
    first = _first(curve)
    return first - curve.usable[lowest].smoothed_loss > max(_CERTAIN * _error(curve), _LEAST_FALL * first)


def _turns(curve: Curve, lowest: int) -> bool:
    """True if the smoothed loss rises again, further than noise would make it."""
    points = curve.usable
    return curve.diverged or points[-1].smoothed_loss - points[lowest].smoothed_loss > _CERTAIN * _error(curve)


def _error(curve: Curve) -> float:
    """The standard error of a difference of levels: of a mean of a window's losses, and of a smoothed loss."""
    window = _window(curve.steps)
    return _noise(curve.losses) * math.sqrt(1 / window + 1 / (2 * window - 1))


def _first(curve: Curve) -> float:
    """The loss before anything is learned, from as many steps as are smoothed over."""
    first = curve.losses[: _window(curve.steps)]
    return sum(first) / len(first)


def _noise(losses: Sequence[float]) -> float:
    """The standard deviation of a step's loss, from second differences: neither trend nor an outlier changes it."""
    bends = [
        abs(left - 2 * middle + right) for left, middle, right in zip(losses, losses[1:], losses[2:], strict=False)
    ]
    return median(bends) / (0.6745 * math.sqrt(6)) if bends else 0.0


def _no_fall(curve: Curve) -> str:
    low, high = curve.points[0].learning_rate, curve.points[-1].learning_rate
    said = f"the loss does not fall, beyond its noise, anywhere between {low:.1e} and {high:.1e}: "
    if curve.diverged:
        return f"{said}it diverges without having fallen, the rates are too high"
    if curve.usable[-1].smoothed_loss > _first(curve) * (1 + _LEAST_FALL):
        return f"{said}it ends above where it began, the steps are too few or the rates too high"
    return f"{said}the rates are too low, the steps too few, or there is nothing left to learn from these rows"


def _nothing_seen(curve: Curve) -> str:
    if curve.diverged:
        return "the loss is lost at once: the rates are too high, or the weights are broken"
    return "the test ended before there was a curve to read"


def _rounded(rate: float) -> float:
    """One digit: more would pretend to know more."""
    return float(f"{rate:.0e}")
