"""Layers are compiled where it gains a run more than it takes, and the reason is said."""

from dataclasses import replace
from typing import Any

import pytest

from truetune.planning.compilation import LongRun, compilation

DAY = LongRun(
    tokens=30_000_000,
    parameters=135_000_000,
    are_adapters=False,
    device="cpu",
    precision="bf16",
    threads=2,
    backend="trl",
    is_quantized=False,
    drops_out=False,
    checkpoints=False,
    num_processes=1,
    lacks=None,
)


def test_a_long_run_on_a_cpu_is_compiled_and_says_how_long_it_is() -> None:
    choice = compilation(DAY)
    assert (choice.name, choice.value) == ("training.torch_compile", True)
    assert "about 2,531 minutes of training" in choice.reason


def test_adapters_are_compiled_on_a_single_thread_only() -> None:
    assert "side by side" in compilation(replace(DAY, are_adapters=True)).reason
    assert compilation(replace(DAY, are_adapters=True, threads=1)).value is True


def test_a_short_run_is_not() -> None:
    choice = compilation(replace(DAY, tokens=100_000))
    assert choice.value is False
    assert "about 8 minutes" in choice.reason
    assert "too short" in choice.reason
    assert "a minute or less of training" in compilation(replace(DAY, tokens=10_000)).reason


def test_weights_that_learn_take_longer_than_frozen_ones() -> None:
    assert DAY.seconds == pytest.approx(1.5 * replace(DAY, are_adapters=True).seconds)
    assert replace(DAY, threads=4).seconds == pytest.approx(DAY.seconds / 2)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"device": "cuda"}, "cuda"),
        ({"backend": "unsloth"}, "unsloth"),
        ({"is_quantized": True}, "quantised"),
        ({"drops_out": True}, "dropout"),
        ({"checkpoints": True}, "gradient checkpointing"),
        ({"num_processes": 2}, "several processes"),
        ({"lacks": "torch compiles with g++, which is not installed here"}, "g++"),
    ],
    ids=str,
)
def test_what_stands_against_it_is_the_reason(change: dict[str, Any], reason: str) -> None:
    choice = compilation(replace(DAY, **change))
    assert choice.value is False
    assert reason in choice.reason
