"""The curve of a range test: known curves have known answers, and noise has none."""

import itertools
import math
import random
from collections.abc import Callable

import pytest

from truetune.planning.range_test import (
    Curve,
    default_steps,
    draw_curve,
    is_lost,
    read_curve,
    rising_rates,
    smooth,
)

STEPS = 80
RATES = rising_rates([5e-4], STEPS)


def falling(rate: float, *, center: float = 5e-4) -> float:
    """From 3 down to 0.5, fastest at the center."""
    return 0.5 + 2.5 / (1 + (rate / center) ** 2)


def cliff(rate: float) -> float:
    """Falls fastest at 2e-3, and is lost behind 5e-3."""
    return falling(rate, center=2e-3) + (0 if rate < 5e-3 else 500 * (rate - 5e-3))


def curve_of(loss: Callable[[float], float], *, noise: float = 0.0, seed: int = 0, steps: int = STEPS) -> Curve:
    """The curve of a test whose losses are those of a function; it ends where a test would."""
    chance, rates = random.Random(seed), rising_rates([5e-4], steps)
    losses: list[float] = []
    for rate in (rates[0], *rates):
        losses.append(loss(rate) + chance.gauss(0, noise))
        if is_lost(losses, steps=steps):
            return draw_curve(rates, losses, diverged=True)
    return draw_curve(rates, losses, diverged=False)


def test_rates_rise_by_one_factor_from_a_hundredth_of_the_lowest_to_a_hundredfold_of_the_highest() -> None:
    rates = rising_rates([1e-4, 5e-4], 11)
    assert len(rates) == 11
    assert rates[0] == pytest.approx(1e-6)
    assert rates[-1] == pytest.approx(5e-2)
    factors = [after / before for before, after in itertools.pairwise(rates)]
    assert factors == pytest.approx([factors[0]] * 10)


def test_a_test_has_three_passes_of_steps_within_40_and_80() -> None:
    assert [default_steps(per_epoch) for per_epoch in (1, 20, 100)] == [40, 60, 80]


def test_averages_are_corrected_for_their_short_past() -> None:
    assert smooth([2.0] * 5, steps=STEPS) == pytest.approx([2.0] * 5)
    assert smooth([2.0, 1.0], steps=20) == pytest.approx([2.0, (0.5 * 2 + 1) / 1.5])
    assert smooth([3.0, 1.0, 2.0], steps=5) == [3.0, 1.0, 2.0]


def test_a_loss_that_does_not_rise_again_suggests_where_it_falls_fastest() -> None:
    reading = read_curve(curve_of(falling))
    assert reading.steepest == pytest.approx(5e-4, rel=0.15)
    assert reading.suggestion == pytest.approx(reading.steepest, rel=0.1)
    assert "never rises again" in reading.reason


@pytest.mark.parametrize("seed", range(10))
def test_noise_moves_the_suggestion_little(seed: int) -> None:
    suggestion = read_curve(curve_of(falling, noise=0.3, seed=seed)).suggestion
    assert suggestion is not None
    assert 2e-4 < suggestion < 1e-3


def test_a_fall_that_ends_at_a_cliff_is_answered_with_a_tenth_of_the_lowest_rate() -> None:
    curve = curve_of(cliff)
    reading = read_curve(curve)
    assert curve.diverged_at is not None
    assert 5e-3 < curve.diverged_at < RATES[-1]
    assert reading.lowest is not None
    assert reading.suggestion == pytest.approx(reading.lowest / 10, rel=0.1)
    assert reading.steepest == pytest.approx(2e-3, rel=0.3)
    assert "a tenth" in reading.reason


def test_a_loss_that_falls_to_the_highest_rate_suggests_one_and_says_so() -> None:
    reading = read_curve(curve_of(lambda rate: 5 - 0.2 * math.log(rate / RATES[0])))
    assert reading.suggestion is not None
    assert reading.lowest == RATES[-1]
    assert "higher rate may do" in reading.reason


def test_a_loss_that_rises_again_without_being_lost_suggests_a_tenth_of_its_lowest_rate() -> None:
    curve = curve_of(lambda rate: 2 + abs(math.log10(rate / 5e-3)), noise=0.02)
    reading = read_curve(curve)
    assert curve.diverged_at is None
    assert reading.suggestion is not None
    assert 2.5e-4 <= reading.suggestion <= 1e-3
    assert "a tenth" in reading.reason


def test_no_rate_is_suggested_where_training_diverges_at_once() -> None:
    curve = curve_of(lambda rate: 2.0 if rate == RATES[0] else 2.0 + 1e6 * rate)
    reading = read_curve(curve)
    assert (reading.suggestion, reading.steepest) == (None, None)
    assert "too high" in reading.reason
    assert curve.diverged_at is not None
    assert curve.diverged_at < 2e-5


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("steps", [40, 80])
def test_no_rate_is_suggested_where_there_is_nothing_but_noise(seed: int, steps: int) -> None:
    reading = read_curve(curve_of(lambda _: 2.0, noise=0.2, seed=seed, steps=steps))
    assert reading.suggestion is None
    assert "does not fall" in reading.reason


def test_rates_that_only_raise_the_loss_are_called_too_high() -> None:
    reading = read_curve(curve_of(lambda rate: 2.0 + 10 * rate))
    assert reading.suggestion is None
    assert "too high" in reading.reason


def test_a_fall_of_a_thousandth_is_none() -> None:
    reading = read_curve(curve_of(lambda rate: 2.0 - 0.02 * rate))
    assert reading.suggestion is None
    assert "too low" in reading.reason


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_a_loss_that_is_no_number_ends_the_test_and_is_left_out_of_the_reading(broken: float) -> None:
    curve = curve_of(lambda rate: falling(rate) if rate < 1e-2 else broken)
    assert curve.diverged_at == pytest.approx(1e-2, rel=0.2)
    assert not math.isfinite(curve.points[-1].loss)
    assert curve.usable == list(curve.points[:-1])
    assert read_curve(curve).lowest == curve.points[-2].learning_rate
    assert read_curve(curve).suggestion == pytest.approx(1e-3, rel=0.2)


def test_a_loss_that_is_no_number_from_the_start_says_nothing() -> None:
    curve = draw_curve(RATES, [math.nan], diverged=True)
    assert curve.diverged_at is None
    assert read_curve(curve).suggestion is None
    assert "at once" in read_curve(curve).reason


def test_a_test_that_was_stopped_at_once_says_nothing() -> None:
    for losses in ([], [2.0], [2.0, 1.9]):
        assert "before there was a curve" in read_curve(draw_curve(RATES, losses, diverged=False)).reason


def test_a_loss_is_lost_at_four_times_the_lowest() -> None:
    assert not is_lost([4.0, 1.0, 3.9], steps=5)
    assert is_lost([4.0, 1.0, 4.1], steps=5)
    assert not is_lost([4.0, 2.0, 7.9], steps=5)


def test_rows_known_by_heart_are_not_lost_by_their_noise() -> None:
    assert not is_lost([4.0, 0.001, 0.5], steps=5)
    assert is_lost([4.0, 0.001, 1.1], steps=5)
