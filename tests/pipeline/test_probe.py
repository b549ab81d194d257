"""`plan --probe`: real steps of the run itself, timed and weighed."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from conftest import arithmetic_rows, write_jsonl
from truetune.cli import main

SLOWLY = 10_000.0


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRUETUNE_CACHE", str(tmp_path / "cache"))


def test_a_probe_tells_time_and_memory_by_real_steps_and_leaves_nothing(
    tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = arithmetic_rows(30)
    for place in (3, 9, 17, 24):
        rows[place]["output"] = f"answer {place} " * 60
    data = write_jsonl(tmp_path / "a.jsonl", rows)
    words = ["plan", "--model", str(tiny_base), "--data", str(data), "test_size=0.3", "precision=fp32"]
    assert main([*words, f"output_dir={tmp_path / 'run'}", "--probe", "--price-per-hour", "3600", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    probe, time = told["probe"], told["time"]
    assert probe["largest"]["tokens"] > 560 > probe["usual"]["tokens"]
    assert all(probe[step]["seconds"] > 0 for step in ("first", "largest", "usual", "evaluation"))
    assert 0 < probe["evaluation"]["tokens"] <= told["tokens"] / 2
    assert (time["source"], told["seconds"]) == (
        "probe",
        sum(time[part] for part in ("training", "evaluating", "saving")),
    )
    rate = probe["evaluation"]["seconds"] / probe["evaluation"]["tokens"]
    assert time["evaluating"] >= told["evaluations"] * probe["evaluation"]["tokens"] * rate * 0.999
    assert 0 < probe["saving"] < 60
    assert time["saving"] == pytest.approx(told["checkpoints"] * probe["saving"])
    assert told["cost"] == pytest.approx(told["seconds"])
    memory = told["memory"]
    assert memory["peak_bytes"] == sum(memory["parts"].values())
    assert "not estimated" in memory["parts"]
    assert not (tmp_path / "run").exists()


def test_a_probe_measures_this_machine_alone(tiny_base: Path, rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", "--model", str(tiny_base), "--probe"]
    assert main([*words, "--data", str(rows), "--device", "t4"]) == 2
    assert "a probe measures this machine" in capsys.readouterr().err
    assert main(words) == 2
    assert "--data" in capsys.readouterr().err


def test_a_probe_times_the_training_alone_as_a_run_does(
    tiny_base: Path, rows: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The clock is set on as the engine is built."""
    from truetune.training import trl

    build, clock, ahead = trl.build_engine, time.perf_counter, [0.0]

    def built_slowly(*args: Any, **options: Any) -> trl.Engine:
        ahead[0] += SLOWLY
        return build(*args, **options)

    monkeypatch.setattr(time, "perf_counter", lambda: clock() + ahead[0])
    monkeypatch.setattr(trl, "build_engine", built_slowly)
    assert main(["plan", "--model", str(tiny_base), "--data", str(rows), "--probe", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert 0 < told["probe"]["first"]["seconds"] < SLOWLY
    assert told["seconds"] < SLOWLY
