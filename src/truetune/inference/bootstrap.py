"""How sure a difference is: rows, or blocks of a series, drawn again, many times (Efron 1979).

Rows in pairs, since both models answer the same ones: Koehn, "Statistical Significance Tests for Machine Translation
Evaluation", EMNLP 2004.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 1000
_SEED = 0
_CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Comparison:
    """`difference` is the figure of the one less that of the other, `interval` its 95 % bootstrap interval.

    `wins` are the rows on which the one is better, `losses` those on which it is worse.
    """

    difference: float
    interval: tuple[float, float]
    wins: int
    losses: int
    ties: int

    @property
    def is_sure(self) -> bool:
        """True if no difference at all lies outside the interval."""
        return not self.interval[0] <= 0.0 <= self.interval[1]


def compare(
    one: NDArray[np.float64],
    other: NDArray[np.float64],
    figure: Callable[[NDArray[np.float64]], float],
    *,
    higher_is_better: bool = True,
    tie: float = 1e-9,
    seed: int = _SEED,
) -> Comparison:
    """Compares two models by their rows' statistics, (rows, k) each, of which `figure` makes a figure of their sum.

    Two rows tie where their own figures are no further apart than `tie`.
    """
    by_row = np.array([figure(mine) - figure(others) for mine, others in zip(one, other, strict=True)])
    better = by_row if higher_is_better else -by_row
    return Comparison(
        difference=figure(one.sum(0)) - figure(other.sum(0)),
        interval=_interval(one, other, figure, seed),
        wins=int((better > tie).sum()),
        losses=int((better < -tie).sum()),
        ties=int((np.abs(better) <= tie).sum()),
    )


def _interval(
    one: NDArray[np.float64],
    other: NDArray[np.float64],
    figure: Callable[[NDArray[np.float64]], float],
    seed: int,
) -> tuple[float, float]:
    """The middle 95 % of the differences over rows drawn with replacement."""
    rows = len(one)
    # How often each row is drawn: (resamples, rows), without drawing them one by one.
    drawn = np.random.default_rng(seed).multinomial(rows, np.full(rows, 1 / rows), size=RESAMPLES).astype(np.float64)
    differences = [figure(mine) - figure(others) for mine, others in zip(drawn @ one, drawn @ other, strict=True)]
    if np.isnan(differences).all():
        return float("nan"), float("nan")
    outside = 50 * (1 - _CONFIDENCE)
    low, high = np.nanpercentile(differences, [outside, 100 - outside])
    return float(low), float(high)


def series_difference(
    one: NDArray[np.float64], other: NDArray[np.float64], *, is_paired: bool, seed: int = _SEED
) -> tuple[float, tuple[float, float]]:
    """The mean of a series less that of another, with its 95 % interval, where neighbours may depend on each other.

    Blocks are drawn again instead of values: circular ones (Politis and Romano 1992), as long as the cube root of the
    series. Of `is_paired` series, as long as each other, the differences are drawn.
    """
    generator = np.random.default_rng(seed)
    if is_paired:
        drawn = _means_of_blocks(one - other, generator)
    else:
        drawn = _means_of_blocks(one, generator) - _means_of_blocks(other, generator)
    outside = 50 * (1 - _CONFIDENCE)
    low, high = np.percentile(drawn, [outside, 100 - outside])
    return float(one.mean() - other.mean()), (float(low), float(high))


def _means_of_blocks(series: NDArray[np.float64], generator: np.random.Generator) -> NDArray[np.float64]:
    """The mean of each resample: (resamples,)."""
    count = len(series)
    length = max(1, round(count ** (1 / 3)))
    starts = generator.integers(count, size=(RESAMPLES, -(-count // length), 1))
    places = ((starts + np.arange(length)) % count).reshape(RESAMPLES, -1)[:, :count]
    means: NDArray[np.float64] = series[places].mean(axis=1)
    return means
