"""bench/plan.py: its cases are what they are called, its rows reach the largest batch, and errors are summed up."""

import json
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[1] / "bench"
sys.path.insert(0, str(BENCH))

from plan import CASES, FEWEST, HELD_OUT, SHORTEST, Measure, half_a_minute, line, measured, tell, write_rows  # noqa: E402

from truetune.config.load import load_config  # noqa: E402


def test_there_are_as_many_cases_as_are_asked_for_and_none_is_both_fitted_to_and_held_out() -> None:
    names = [case.name for case in (*CASES, *HELD_OUT)]
    assert len(CASES) >= 24
    assert len(set(names)) == len(names)
    models = {case.model for case in CASES}
    assert models >= {"demo", "deep", "wide", "words"}
    for wanted in ("full", "QLoRA", "8-bit AdamW", "checkpointing", "8x256", "1x4096"):
        assert any(wanted in name for name in names), wanted


@pytest.mark.parametrize("case", [*CASES, *HELD_OUT], ids=lambda case: case.name)
def test_a_cases_settings_are_settings(case: object) -> None:
    given = {"model": "demo", "data.path": "rows.jsonl", **case.settings}  # type: ignore[attr-defined]
    assert load_config(settings=given).config


def test_most_rows_are_longer_than_the_limit_so_that_some_batch_is_the_largest(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", 64)
    rows = [json.loads(text) for text in (tmp_path / "rows.jsonl").read_text().splitlines()]
    long = [len(row["output"].split()) > 64 for row in rows]
    assert sum(long) >= len(rows) * 3 / 4


def test_errors_are_told_and_summed_up_apart(capsys: pytest.CaptureFixture[str]) -> None:
    fitted = Measure(CASES[0].name, 110, 100, {}, None, 1.0)
    held_out = Measure(HELD_OUT[0].name, 80, 100, {}, 3.0, 2.0)
    assert "(+10.0%)" in line(fitted)
    assert "(-20.0%); 3.0 s planned, 2.0 s taken (+50.0%)" in line(held_out)
    tell([fitted, held_out], is_markdown=False)
    said = capsys.readouterr().out.splitlines()
    assert said == [
        "memory: 1 runs, median error 10.0%, worst 10.0%",
        "memory, not fitted to: 1 runs, median error 20.0%, worst 20.0%",
        "time: 1 runs, median error 50.0%, worst 50.0%",
    ]


def test_a_case_is_halved_until_a_step_is_short_enough_and_trained_for_half_a_minute() -> None:
    planned = {"seconds": 80.0, "total_steps": 4}
    assert half_a_minute(CASES[1], planned, step_seconds=None) == (CASES[1], FEWEST)
    case, steps = half_a_minute(CASES[1], planned, step_seconds=3.0)
    assert (case.length, case.batch, steps) == (CASES[1].length // 8, CASES[1].batch, 12)
    assert half_a_minute(CASES[1], planned, step_seconds=1e-3)[0].length == SHORTEST


def test_memory_is_held_against_the_estimate_even_where_a_probe_has_measured_it() -> None:
    planned = {"memory": {"peak_bytes": 120, "parts": {"weights": 90, "not estimated": 30}}}
    measure = measured(CASES[0], planned, {"peak_memory_bytes": 100, "seconds": 2.0}, 3.0)
    assert (measure.planned_bytes, measure.parts) == (90, {"weights": 90})
