"""What a plan says of settings that nobody named: for the run's own rank, rate, steps and rows."""

from pathlib import Path

import pytest

import truetune
from conftest import arithmetic_rows, write_jsonl
from truetune.cli import main
from truetune.config.load import load_config
from truetune.listener import LogListener
from truetune.pipeline.check import prepare_for
from truetune.pipeline.find_lr import _RangeTraining
from truetune.pipeline.forecast import Forecast
from truetune.pipeline.machine import ask_machine


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRUETUNE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "a.jsonl", arithmetic_rows(60))


def reasons(forecast: Forecast) -> dict[str, str]:
    return {choice.name: choice.reason for choice in forecast.plan.settings}


def test_alpha_and_decay_are_told_for_the_runs_own_rank_and_rate(tiny_base: Path, data: Path) -> None:
    told = reasons(truetune.plan(model=str(tiny_base), data=data, r=8, learning_rate=1e-2, max_steps=100))
    assert told["adapter.lora_alpha"].startswith("updates are multiplied by 2,")
    assert told["training.weight_decay"].startswith("shrinks a weight by 0.005 of itself in 100 steps")


def test_a_warm_up_in_steps_leaves_its_share_untold(tiny_base: Path, data: Path) -> None:
    assert "training.warmup_ratio" in reasons(truetune.plan(model=str(tiny_base), data=data))
    assert "training.warmup_ratio" not in reasons(truetune.plan(model=str(tiny_base), data=data, warmup_steps=3))


def test_only_tokens_of_training_rows_are_learned_by_the_rank(tiny_base: Path, data: Path) -> None:
    forecast = truetune.plan(model=str(tiny_base), data=data, test_size=0.5, r="auto")
    rows = len(forecast.plan.sequences)
    share = round(forecast.counts["supervised_tokens"] * rows / 60)
    assert rows < 60
    assert reasons(forecast)["adapter.r"].endswith(f", here {share}")


def test_passes_are_doubted_by_the_steps_that_are_taken(tiny_base: Path, data: Path) -> None:
    few, many = (truetune.plan(model=str(tiny_base), data=data, max_steps=steps).plan for steps in (30, 900))
    assert not any(line.startswith("training.num_train_epochs") for line in few.warnings)
    assert any(line.startswith("training.num_train_epochs") for line in many.warnings)


def test_the_command_tells_batches_then_warnings_then_settings(
    tiny_base: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", "--model", str(tiny_base), "--data", str(data), "gradient_accumulation_steps=4"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "8 an epoch of 30 batches a process; " in lines[0]
    warned = [number for number, line in enumerate(lines) if line.startswith("warning: ")]
    assert warned
    heading = lines.index("settings:")
    assert max(warned) < heading
    assert len(lines) > heading + 5
    assert all(line.startswith("  ") for line in lines[heading + 1 :])
    assert truetune.plan(model=str(tiny_base), data=data).as_json()["micro_batches"] == 30


def test_a_range_test_tells_the_rank_that_the_rows_choose(tiny_base: Path, data: Path) -> None:
    config = load_config({"model": str(tiny_base), "data.path": str(data), "r": "auto"}).config
    listener = LogListener()
    machine = ask_machine(config, listener)
    prepared = prepare_for(machine, config, source=None, formatting=None, listener=listener)
    assert _RangeTraining(config, machine, prepared, listener)._held()["r"] == 16
