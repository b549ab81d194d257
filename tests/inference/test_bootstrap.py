"""Intervals of differences: by rows, both models on the same ones."""

import numpy as np
import pytest

from truetune.inference.bootstrap import compare
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
