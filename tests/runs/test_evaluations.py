"""What `truetune eval` stored, read in one way by all: the newest first, and only what can be read."""

import json
from pathlib import Path
from typing import Any

import pytest

from truetune.pipeline.review.kept_figures import read_kept_run
from truetune.runs.directory import RunDirectory
from truetune.runs.evaluations import StoredEvaluation, stored_evaluations


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    directory = RunDirectory(tmp_path / "run")
    directory.begin_record(started="2026-11-29T06:01:11Z", config={})
    directory.evaluations.mkdir()
    return directory


def store(run: RunDirectory, name: str, *, time: str = "", **document: Any) -> Path:
    path = run.evaluations / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"record": {"time": time}, **document}))
    return path


def names(stored: list[StoredEvaluation]) -> list[str]:
    return [each.path.stem for each in stored]


def test_the_newest_comes_first_by_time_and_then_by_number(run: RunDirectory) -> None:
    store(run, "validation-10", time="2026-11-02")
    store(run, "validation-9", time="2026-11-02")
    store(run, "test-1", time="2026-11-03")
    store(run, "old-3")
    assert names(stored_evaluations(run)) == ["test-1", "validation-10", "validation-9", "old-3"]
    assert [each.name for each in stored_evaluations(run)] == ["test", "validation", "validation", "old"]


def test_those_on_tasks_are_found_where_eval_puts_them(run: RunDirectory) -> None:
    store(run, "lm-eval/gsm8k-1", figures=[{"task": "gsm8k"}])
    store(run, "validation-1", eval_loss=1.5)
    assert {each.name: each.is_of_tasks for each in stored_evaluations(run)} == {"gsm8k": True, "validation": False}


def test_what_is_damaged_or_lies_outside_the_run_is_left_out(run: RunDirectory, tmp_path: Path) -> None:
    (run.evaluations / "cut-1.json").write_text('{"eval_loss": 1.')
    (run.evaluations / "list-1.json").write_text("[1]")
    (tmp_path / "foreign.json").write_text('{"eval_loss": 1.5}')
    (run.evaluations / "foreign-1.json").symlink_to(tmp_path / "foreign.json")
    assert stored_evaluations(run) == []


def test_a_run_that_was_never_evaluated_has_none(tmp_path: Path) -> None:
    assert stored_evaluations(RunDirectory(tmp_path)) == []


def test_a_comparison_takes_the_newest_of_each_name_and_the_lines_that_are_whole(run: RunDirectory) -> None:
    store(run, "validation-1", time="2026-11-02", eval_loss=2.0)
    path = store(run, "validation-2", time="2026-11-03", eval_loss=1.0, metrics={"bleu": 31.0, "judged": "well"})
    store(run, "validation-3", time="2026-11-01", eval_loss=3.0)
    lines = [{"row": "a", "loss": 2.5, "tokens": 2}, {"row": "b", "loss": "high", "tokens": 2}, {"row": ["c"]}]
    kept = path.with_suffix(".losses.jsonl")
    kept.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"row": "half')
    where = {"path": "rows.jsonl", "line": 3}
    answers = [{"where": where, "prompt": "p", "scores": {"bleu": 31.0, "judged": None}}, {"where": 7, "prompt": "p"}]
    path.with_suffix(".answers.jsonl").write_text("".join(json.dumps(each) + "\n" for each in answers))
    (found,) = read_kept_run(run.path).evaluations.values()
    assert found.figures == {"eval_loss": 1.0, "bleu": 31.0}
    assert found.losses == {"a": (2.5, 2)}
    assert found.scores == {("rows.jsonl", 3, "p"): {"bleu": 31.0}}
