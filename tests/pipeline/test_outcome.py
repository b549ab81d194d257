"""What is told at a training's end is what its directory says, and no more than that."""

import json
from pathlib import Path
from typing import Any

import pytest

from truetune.pipeline.review.outcome import outcome

RECORD: dict[str, Any] = {
    "status": "finished",
    "steps": 8,
    "total_steps": 8,
    "seconds": 184.0,
    "tokens": 5_678,
    "supervised_tokens": 1_234,
    "tokens_per_second": 260.4,
    "peak_memory_bytes": 3_000_000_000,
    "device": "cpu",
    "adapter": "adapter",
    "metric_for_best_model": "eval_loss",
    "best_metric": 1.5,
    "best_step": 4,
    "planned": {"memory": {"peak_bytes": 2_000_000_000}, "seconds": 92.0, "disk_bytes": 1_000_000},
    "config": {"evaluation": {"load_best_model_at_end": False}},
}
LINES = [
    {"step": 0, "eval_loss": 3.0},
    {"step": 1, "loss": 2.5, "epoch": 0.25},
    {"step": 4, "loss": 1.25, "epoch": 1.0},
    {"step": 4, "eval_loss": 1.5},
    {"step": 8, "loss": 0.75, "epoch": 2.0},
    {"step": 8, "eval_loss": 1.75},
]


def told(folder: Path, *, lines: list[dict[str, Any]] = LINES, **changes: Any) -> Any:
    (folder / "run.json").write_text(json.dumps({**RECORD, **changes}))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "data-report.json").write_text(json.dumps({"stats": {"train_rows": 1_200}}))
    return outcome(folder)


def test_a_finished_run_tells_what_was_learned_how_long_it_took_and_what_was_planned(tmp_path: Path) -> None:
    found = told(tmp_path)
    assert found.verdict == "finished: 8 of 8 steps in 3 min 04 s, 260 tokens a second"
    assert found.learned == (
        ("learned", "1,234 tokens of 5,678 read: 1,200 rows, 2 epochs"),
        ("loss", "from 2.5000 at step 1 to 0.7500"),
        ("validation", "from 3.0000 before training to 1.7500, lowest 1.5000 at step 4"),
    )
    assert [(each.name, each.planned, each.taken, each.difference) for each in found.planned] == [
        ("Steps", "8", "8", "+0%"),
        ("Time", "1 min 32 s", "3 min 04 s", "+100%"),
        ("Peak memory", "2.00 GB", "3.00 GB", "+50%"),
        ("Disk", "1.00 MB", "0 bytes", "-100%"),
    ]


def test_the_best_weights_are_told_where_they_were_taken(tmp_path: Path) -> None:
    best = {"evaluation": {"load_best_model_at_end": True}}
    assert dict(told(tmp_path, config=best).learned)["validation"].endswith(
        "lowest 1.5000 at step 4, whose weights these are"
    )
    found = told(tmp_path, config=best, metric_for_best_model="eval_rouge_l", best_metric=0.51239)
    assert dict(found.learned)["best"] == "eval_rouge_l 0.5124 at step 4, whose weights these are"
    assert "whose weights" not in dict(found.learned)["validation"]


def test_a_run_without_validation_says_what_its_loss_does_not_tell(tmp_path: Path) -> None:
    found = told(tmp_path, lines=[line for line in LINES if "loss" in line], best_metric=None, best_step=None)
    assert dict(found.learned)["validation"].startswith("none: the training loss alone does not tell")
    assert dict(found.next)["judge"] == f"truetune eval {tmp_path} --data ROWS"


def test_a_stopped_run_is_gone_on_with_and_has_no_outcome_of_its_plan(tmp_path: Path) -> None:
    found = told(tmp_path, status="stopped", stopped_by="SIGINT", steps=4, adapter=None)
    assert found.verdict.startswith("stopped by SIGINT: 4 of 8 steps in")
    assert found.planned == ()
    assert found.next == (
        ("go on", f"truetune train {tmp_path / 'config.yaml'} --resume"),
        ("look", f"truetune report {tmp_path}"),
    )
    assert "weights" not in dict(found.places)


def test_a_resumed_run_tells_the_time_of_its_last_part_as_such(tmp_path: Path) -> None:
    found = told(tmp_path, resumed_from="checkpoints/checkpoint-4")
    assert "in 3 min 04 s, since it was resumed, 260" in found.verdict
    assert [each.name for each in found.planned] == ["Steps", "Peak memory", "Disk"]


def test_places_are_named_as_far_as_they_are_there_and_commands_can_be_pasted(tmp_path: Path) -> None:
    run = tmp_path / "my runs"
    run.mkdir()
    found = told(run)
    assert dict(found.places) == {"run": str(run), "weights": str(run / "adapter")}
    (run / "log.txt").write_text("")
    assert dict(told(run).places)["log"] == str(run / "log.txt")
    assert dict(found.next) == {
        "talk": f"truetune chat '{run}'",
        "judge": f"truetune eval '{run}'",
        "look": f"truetune report '{run}'",
    }


@pytest.mark.parametrize("rows", [1, 1.0])
def test_one_row_is_one_row(rows: float, tmp_path: Path) -> None:
    told(tmp_path, lines=[{"step": 1, "loss": 2.0, "epoch": 1.0}])
    (tmp_path / "data-report.json").write_text(json.dumps({"stats": {"train_rows": rows}}))
    learned = dict(outcome(tmp_path).learned)
    assert learned["learned"].endswith("read: 1 row, 1 epoch")
    assert learned["loss"] == "2.0000"


def test_a_directory_that_tells_little_is_told_without_an_error(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"status": "finished", "steps": 3, "total_steps": 3}')
    found = outcome(tmp_path)
    assert found.verdict == "finished: 3 of 3 steps"
    assert [name for name, _ in found.learned] == ["validation"]
