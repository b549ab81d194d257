"""A run's time: by the two batches of a probe, or by the operations that it takes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from truetune.model.load import read_config
from truetune.model.shape import ModelShape, configured_shape
from truetune.model.source import resolve_model
from truetune.planning.timing import Amount, Probed, Timed, cpu_rate, gpu_rate, measured, reckoned, spread

AMOUNT = Amount(steps=10, tokens=1_000, evaluations=2, evaluation_tokens=50, checkpoints=3)
PROBED = Probed(
    first=Timed(100, 5.0),
    largest=Timed(300, 4.0),
    usual=Timed(100, 2.0),
    evaluation=Timed(25, 0.5),
    saving=0.4,
    loading=9.0,
    peak_bytes=1,
)
PLAIN: dict[str, Any] = {
    "rate": 1e9,
    "learned": 0.5,
    "are_adapters": True,
    "is_quantized": False,
    "checkpointing": False,
}


@pytest.fixture(scope="module")
def shape(tiny_base: Path) -> ModelShape:
    return configured_shape(read_config(resolve_model(str(tiny_base))))


def test_two_batches_tell_what_a_step_and_what_a_token_costs() -> None:
    """1 s a step and 0.01 s a token: the first step took 3 s more, and does so once."""
    told = measured(PROBED, AMOUNT)
    assert told.training == pytest.approx(10 * 1.0 + 1_000 * 0.01 + 3.0)
    assert told.evaluating == pytest.approx(2 * 50 * 0.02)
    assert told.saving == pytest.approx(3 * 0.4)
    assert told.total == pytest.approx(told.training + told.evaluating + told.saving)
    assert told.source == "probe"


@pytest.mark.parametrize(
    "largest",
    [Timed(110, 9.0), Timed(300, 1.5), Timed(300, 6.5)],
    ids=["nearly as many tokens", "faster than the usual one", "so slow that a step would cost less than nothing"],
)
def test_batches_that_tell_no_line_tell_one_rate(largest: Timed) -> None:
    told = measured(replace(PROBED, largest=largest, first=Timed(100, 0.1)), replace(AMOUNT, tokens=2_000))
    assert told.training == pytest.approx(2_000 * 0.02)


def test_a_run_that_neither_evaluates_nor_saves_takes_no_time_for_it() -> None:
    told = measured(replace(PROBED, evaluation=None, saving=None), AMOUNT)
    assert (told.evaluating, told.saving) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("changes", "factor"),
    [
        ({"rate": 2e9}, 1 / 2),
        ({"checkpointing": True}, 3 / 2),
        ({"are_adapters": False}, 3 / 2),
        ({"are_adapters": False, "checkpointing": True}, 2),
    ],
)
def test_an_estimate_goes_with_the_passes_and_the_rate(
    shape: ModelShape, changes: dict[str, Any], factor: float
) -> None:
    plain, other = reckoned(shape, AMOUNT, **PLAIN), reckoned(shape, AMOUNT, **{**PLAIN, **changes})
    assert other.training == pytest.approx(factor * plain.training)
    assert plain.source == "estimate"


def test_a_quantised_base_and_more_learned_tokens_take_longer(shape: ModelShape) -> None:
    plain = reckoned(shape, AMOUNT, **PLAIN)
    for slower in ({"is_quantized": True}, {"learned": 1.0}):
        other = reckoned(shape, AMOUNT, **{**PLAIN, **slower})
        assert other.training > plain.training
        assert other.evaluating > plain.evaluating
    all_tokens = reckoned(shape, AMOUNT, **{**PLAIN, "learned": 1.0})
    operations = 4 * (shape.linear_weights + shape.vocabulary * shape.hidden)
    assert all_tokens.training == pytest.approx(AMOUNT.tokens * operations / 1e9)


def test_generated_tokens_cost_more_than_those_that_are_read(shape: ModelShape) -> None:
    answering = replace(AMOUNT, answer_tokens=50)
    probed = [measured(PROBED, each).evaluating for each in (AMOUNT, answering)]
    reckoned_ = [reckoned(shape, each, **{**PLAIN, "learned": 1.0}).evaluating for each in (AMOUNT, answering)]
    for without, with_ in (probed, reckoned_):
        assert with_ > 2 * without
    assert measured(PROBED, answering).training == measured(PROBED, AMOUNT).training


def test_rates_go_with_threads_and_devices() -> None:
    assert cpu_rate("bf16", 4) == 4 * cpu_rate("bf16", 1) > 4 * cpu_rate("fp32", 1)
    assert gpu_rate(1e12, 8) == 8 * gpu_rate(1e12, 1) < 8e12


def test_a_spread_is_of_all_lengths_and_names_no_place_twice() -> None:
    lengths = [7, 3, 9, 1, 5, 8, 2, 6, 4, 10]
    for offset in (0.25, 0.5, 0.75):
        chosen = spread(lengths, 5, offset=offset)
        assert [lengths[place] for place in chosen] == sorted(lengths[place] for place in set(chosen))
        assert {(lengths[place] - 1) // 2 for place in chosen} == set(range(5))
    assert sorted(spread(lengths, 10, offset=0.5)) == list(range(10))
    assert spread(lengths, 5, offset=0.25) != spread(lengths, 5, offset=0.75)
    assert spread([], 0, offset=0.5) == []
