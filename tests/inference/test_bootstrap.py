"""Intervals of differences: by rows, both models on the same ones, and by blocks of series."""

import numpy as np
import pytest

from truetune.inference.bootstrap import compare, series_difference
from truetune.inference.metrics import mean


def values(*numbers: float) -> np.ndarray:
    return np.array([[number, 1.0] for number in numbers])


def noise(rows: int, *, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=rows)


def test_a_difference_that_is_the_same_on_every_row_is_sure_however_far_rows_lie_apart() -> None:
    base = noise(40, seed=1) * 100
    found = compare(values(*(base + 0.5)), values(*base), mean)
    assert found.difference == pytest.approx(0.5)
    assert found.interval == (pytest.approx(0.5), pytest.approx(0.5))
    assert found.is_sure
    assert (found.wins, found.losses, found.ties) == (40, 0, 0)


def test_the_interval_is_the_normal_one_where_rows_are_many() -> None:
    differences = noise(400, seed=2) + 0.3
    found = compare(values(*differences), values(*np.zeros(400)), mean)
    half = 1.96 * differences.std() / 20
    assert found.interval[0] == pytest.approx(differences.mean() - half, abs=0.02)
    assert found.interval[1] == pytest.approx(differences.mean() + half, abs=0.02)


def test_what_may_be_chance_is_not_sure() -> None:
    found = compare(values(1, 0, 1, 0), values(0, 1, 1, 0), mean)
    assert not found.is_sure
    assert (found.wins, found.losses, found.ties) == (1, 1, 2)


def test_lower_losses_are_wins_and_near_ones_tie() -> None:
    found = compare(values(1.0, 1.5, 3.0, 2.0004), values(2.0, 2.0, 2.0, 2.0), mean, higher_is_better=False, tie=1e-3)
    assert (found.wins, found.losses, found.ties) == (2, 1, 1)


def test_rows_count_by_their_tokens() -> None:
    one, other = np.array([[10.0, 10.0], [0.0, 90.0]]), np.array([[0.0, 10.0], [0.0, 90.0]])
    assert compare(one, other, mean).difference == pytest.approx(0.1)


def test_a_row_without_a_figure_is_no_win_and_no_loss() -> None:
    found = compare(np.array([[0.0, 0.0], [1.0, 1.0]]), np.array([[0.0, 0.0], [0.0, 1.0]]), mean)
    assert (found.wins, found.losses, found.ties) == (1, 0, 0)
    assert found.difference == 1.0


def test_the_same_rows_give_the_same_interval() -> None:
    one, other = values(*noise(30, seed=3)), values(*noise(30, seed=4))
    assert compare(one, other, mean) == compare(one, other, mean)
    assert compare(one, other, mean).interval != compare(one, other, mean, seed=1).interval


# --- series -----------------------------------------------------------------------------------------------


def wandering(count: int, *, seed: int, memory: float = 0.9) -> np.ndarray:
    """A series in which each value hangs on the one before."""
    steps = np.random.default_rng(seed).normal(size=count)
    series = np.zeros(count)
    for place in range(1, count):
        series[place] = memory * series[place - 1] + steps[place]
    return series


def test_what_two_series_share_is_no_noise_where_they_are_paired() -> None:
    shared = wandering(200, seed=1)
    small = noise(200, seed=2) * 0.01
    difference, interval = series_difference(shared + 0.1 + small, shared, is_paired=True)
    assert difference == pytest.approx(0.1, abs=0.005)
    assert 0.09 < interval[0] < interval[1] < 0.11
    _, apart = series_difference(shared + 0.1 + small, shared, is_paired=False)
    assert apart[0] < 0 < apart[1]


def test_a_series_whose_neighbours_hang_together_is_less_sure_than_one_whose_values_are_free() -> None:
    one, other = wandering(1000, seed=3), wandering(1000, seed=4)
    shuffled = [np.random.default_rng(5).permutation(each) for each in (one, other)]
    (low, high), (free_low, free_high) = (
        series_difference(*pair, is_paired=False)[1] for pair in ((one, other), shuffled)
    )
    assert high - low > 1.8 * (free_high - free_low)


def test_of_free_values_the_interval_is_the_normal_one() -> None:
    series = noise(1000, seed=6)
    _, (low, high) = series_difference(series, np.zeros(1000), is_paired=True)
    half = 1.96 * series.std() / np.sqrt(1000)
    assert (low, high) == (
        pytest.approx(series.mean() - half, abs=0.012),
        pytest.approx(series.mean() + half, abs=0.012),
    )


def test_series_of_different_lengths_are_compared_and_the_same_ones_again_alike() -> None:
    one, other = noise(30, seed=7) + 1, noise(17, seed=8)
    found = series_difference(one, other, is_paired=False)
    assert found == series_difference(one, other, is_paired=False)
    assert found[0] == pytest.approx(one.mean() - other.mean())
