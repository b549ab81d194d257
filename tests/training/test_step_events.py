"""What a listener is told of each step is what the run did."""

from pathlib import Path

import pytest

from tiny_runs import ROWS, Trained


@pytest.mark.parametrize(
    ("settings", "saved"),
    [
        ({"save_strategy": "steps", "save_steps": 4, "max_steps": 10}, [4, 8, 10]),
        ({"save_strategy": "epoch", "num_train_epochs": 2}, [6, 12]),
        ({"save_strategy": "no", "max_steps": 3}, []),
    ],
)
def test_the_checkpoint_that_is_told_to_come_next_is_the_one_that_comes(
    tmp_path: Path, settings: dict[str, object], saved: list[int]
) -> None:
    trained = Trained(tmp_path, ROWS, **settings)
    folders = sorted(int(path.name.rpartition("-")[2]) for path in tmp_path.glob("checkpoint-*"))
    assert folders == saved
    for event in trained.heard.steps:
        assert event.next_checkpoint == next((step for step in saved if step > event.step), None)


def test_a_step_tells_its_rate_and_the_newest_evaluation(tmp_path: Path) -> None:
    trained = Trained(tmp_path, ROWS, validation=ROWS[:2], eval_strategy="steps", eval_steps=2, max_steps=5)
    rates = [line["learning_rate"] for line in trained.lines if "loss" in line]
    assert [event.learning_rate for event in trained.heard.steps] == rates
    evaluated = {line["step"]: line["eval_loss"] for line in trained.lines if "eval_loss" in line}
    # An evaluation comes after its step: the next step is the first to know of it.
    assert [event.eval_step for event in trained.heard.steps] == [0, 0, 2, 2, 4]
    for event in trained.heard.steps:
        assert event.eval_loss == evaluated[event.eval_step or 0]
        assert event.memory_bytes is not None
        assert 1e7 < event.memory_bytes < 1e11
    logged = [line["memory_bytes"] for line in trained.lines if "loss" in line]
    assert logged == pytest.approx([event.memory_bytes for event in trained.heard.steps], rel=0.2)
