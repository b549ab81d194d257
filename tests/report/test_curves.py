"""Curves: thinned without losing an extreme, smoothed without inventing one, and never stopped by what was logged."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from properties import examples
from truetune.report.curves import (
    DRAWN,
    Curve,
    axes,
    charts,
    draw,
    logged,
    number,
    payload,
    smoothed,
    summary,
    thinned,
)
from truetune.runs.columns import Column, columns_of


def curve(values: list[float], *, look: Any = "line") -> Curve:
    return Curve("loss", np.arange(1, len(values) + 1), np.array(values, np.float64), look)


def lines(**columns: list[Any]) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl, one a step."""
    count = len(next(iter(columns.values())))
    return [{"step": at + 1, **{name: values[at] for name, values in columns.items()}} for at in range(count)]


def columns(**values: list[Any]) -> dict[str, Column]:
    """What is read of such lines."""
    return columns_of(lines(**values), names=DRAWN)


@given(
    st.lists(st.floats(-1e6, 1e6) | st.just(math.nan), min_size=1, max_size=300),
    st.integers(1, 20),
)
@examples(100)
def test_thinning_keeps_the_ends_and_the_extremes_of_every_stretch(values: list[float], buckets: int) -> None:
    whole = curve(values)
    few = thinned(whole, buckets=buckets)
    logged_values = dict(zip(whole.steps.tolist(), values, strict=True))
    for step, value in zip(few.steps.tolist(), few.values.tolist(), strict=True):
        np.testing.assert_equal(value, logged_values[step])
    assert few.steps.tolist() == sorted(set(few.steps.tolist()))
    assert (few.steps[0], few.steps[-1]) == (1, len(values))
    assert len(few.steps) <= max(2 * buckets, 3 * buckets + 2)
    size = -(-len(values) // buckets)
    for start in range(0, len(values), size):
        stretch = np.array(values[start : start + size])
        kept = few.values[(few.steps > start) & (few.steps <= start + size)]
        if not np.isnan(stretch).all():
            assert np.nanmin(kept) == np.nanmin(stretch)
            assert np.nanmax(kept) == np.nanmax(stretch)
        assert np.isnan(stretch).any() == np.isnan(kept).any()


def test_a_curve_with_few_points_is_drawn_as_it_was_logged() -> None:
    whole = curve([3.0, 1.0, 2.0])
    assert thinned(whole, buckets=2) is whole


def test_one_step_in_a_hundred_thousand_is_not_lost() -> None:
    values = [1.0] * 100_000
    values[61_803] = 99.5
    drawn = payload(charts(columns(loss=values)), ())
    raw, trend = drawn["charts"][0]["curves"]
    assert raw["values"][raw["steps"].index(61_804)] == 99.5
    assert len(raw["steps"]) < 10_000
    assert max(trend["values"]) < 2


def test_a_value_that_is_no_number_is_a_gap_and_is_counted() -> None:
    found = logged(columns(loss=[2.0, None, 1.0]), "loss", name="training")
    assert found is not None
    assert payload(charts(columns(loss=[2.0, None, 1.0])), ())["charts"][0]["curves"][0]["values"] == [2.0, None, 1.0]
    told = summary(found)
    assert (told.points, told.not_numbers, told.first, told.last) == (3, 1, 2.0, 1.0)
    ((_, path),) = draw([found]).paths
    assert path.count("M") == 2


def test_a_curve_without_any_number_is_no_curve() -> None:
    assert logged(columns(loss=[None, None]), "loss", name="training") is None
    assert charts(columns(loss=[None, "x"])) == ()


@given(st.lists(st.floats(-100, 100), min_size=40, max_size=200))
@examples(100)
def test_a_smoothed_curve_is_the_mean_of_its_neighbours(values: list[float]) -> None:
    trend = smoothed(curve(values))
    assert trend is not None
    half = max(2, len(values) // 100)
    for at, mean in enumerate(trend.values):
        around = values[max(at - half, 0) : at + half + 1]
        assert mean == pytest.approx(sum(around) / len(around), abs=1e-9)


def test_smoothing_passes_over_what_is_no_number_and_leaves_short_curves_alone() -> None:
    trend = smoothed(curve([1.0] * 20 + [math.nan] + [1.0] * 20))
    assert trend is not None
    assert trend.values.tolist() == [1.0] * 41
    assert smoothed(curve([1.0] * 39)) is None


def test_lines_become_charts_with_what_they_hold() -> None:
    metrics = [
        {"step": 0, "eval_loss": 4.4, "eval_mean_token_accuracy": 0.2, "eval_exact_match": 0.0, "eval_runtime": 7.7},
        *lines(loss=[4.0, 3.0], grad_norm=[1.0, 2.0], learning_rate=[2e-4, 1e-4], num_tokens=[100, 250]),
        {"step": 2, "eval_loss": 3.5, "eval_exact_match": 0.5, "eval_steps_per_second": 3.0},
    ]
    found = {chart.name: chart for chart in charts(columns_of(metrics, names=DRAWN))}
    assert list(found) == ["Loss", "Learning rate", "Gradient norm", "Token accuracy", "exact match"]
    assert found["Loss"].is_main
    training, validation = found["Loss"].curves
    assert (training.steps.tolist(), training.values.tolist()) == ([1, 2], [4.0, 3.0])
    assert (validation.steps.tolist(), validation.values.tolist()) == ([0, 2], [4.4, 3.5])
    assert found["exact match"].summaries[0].most == 0.5


def test_memory_is_drawn_in_the_unit_of_its_chart() -> None:
    (chart,) = charts(columns(memory_bytes=[3_100_000_000, None, 2_900_000_000]))
    assert (chart.name, chart.about.split()[0]) == ("Memory", "GB")
    assert (chart.summaries[0].first, chart.summaries[0].last) == (pytest.approx(3.1), pytest.approx(2.9))
    (sent,) = payload([chart], ())["charts"][0]["curves"]
    assert (sent["key"], sent["scale"]) == ("memory_bytes", 1e-9)
    assert sent["values"] == [pytest.approx(3.1), None, pytest.approx(2.9)]


def test_curves_can_be_drawn_over_tokens_from_the_first_on() -> None:
    (tokens,) = axes(columns(num_tokens=[100, 250]))
    assert (tokens.name, tokens.steps.tolist(), tokens.values.tolist()) == ("tokens", [0, 1, 2], [0, 100, 250])
    assert axes(columns(num_tokens=[100, 90])) == ()
    assert axes(columns(num_tokens=[100])) == ()


def test_a_step_that_was_logged_twice_counts_as_it_was_logged_last() -> None:
    twice = [{"step": 2, "loss": 9.0}, {"step": 1, "loss": 3.0}, {"step": 2, "loss": 1.0}]
    found = logged(columns_of(twice, names=DRAWN), "loss", name="training")
    assert found is not None
    assert (found.steps.tolist(), found.values.tolist()) == ([1, 2], [3.0, 1.0])


@pytest.mark.parametrize("value", ["1", None, True, [], {}, math.nan, math.inf, 10**400, 1e300])
def test_what_is_no_number_is_none(value: Any) -> None:
    assert math.isnan(number(value))


@pytest.mark.parametrize("step", ["1", None, True, -1, 1.5, 2**60])
def test_a_line_without_a_step_is_passed_over(step: Any) -> None:
    metrics = [{"step": step, "loss": 1.0}, {"loss": 1.0}, {"step": 3, "loss": 2.0}]
    found = logged(columns_of(metrics, names=DRAWN), "loss", name="training")
    assert found is not None
    assert found.steps.tolist() == [3]


def test_a_drawing_stays_in_its_box() -> None:
    drawn = draw([curve([5.0, -3.0, 8.0]), curve([2.0, 2.0], look="points")])
    assert (drawn.least, drawn.most, drawn.first_step, drawn.last_step) == (-3.0, 8.0, 1, 3)
    assert [kind for kind, _ in drawn.paths] == ["line", "points", "points dot"]
    assert drawn.paths[0][1] == "M0 86.4L500 290L1000 10"


def test_a_curve_of_one_point_is_drawn_as_one() -> None:
    assert draw([curve([2.0])]).paths[1] == ("line dot", "M0 290h0")
