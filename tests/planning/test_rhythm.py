"""How often a run evaluates and saves, held against the callbacks that decide it in a training."""

from pathlib import Path

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import DefaultFlowCallback

from truetune.planning.rhythm import Strategy, times
from truetune.training.monitor import MetricsCallback


def counted(folder: Path, strategy: Strategy, *, every: float, total_steps: int, steps_per_epoch: int) -> list[int]:
    """How often a training of so many steps evaluates and saves, by what its callbacks say after every step."""
    args = TrainingArguments(
        str(folder),
        eval_strategy=strategy,
        eval_steps=every,
        save_strategy=strategy,
        save_steps=every,
        report_to=[],
    )
    state, control = TrainerState(max_steps=total_steps), TrainerControl()
    state.compute_steps(args, total_steps)
    callbacks = (DefaultFlowCallback(), MetricsCallback(lambda _: None))
    done = [0, 0]
    for step in range(1, total_steps + 1):
        state.global_step = step
        ends = ("on_step_end", *(["on_epoch_end"] if step % steps_per_epoch == 0 or step == total_steps else []))
        for end in ends:
            control.should_evaluate = control.should_save = False
            for callback in callbacks:
                getattr(callback, end)(args, state, control)
            done = [done[0] + control.should_evaluate, done[1] + control.should_save]
    return done


@pytest.mark.parametrize("strategy", ["no", "epoch", "steps"])
@pytest.mark.parametrize(
    ("total_steps", "steps_per_epoch"), [(24, 8), (20, 8), (3, 8), (1, 1)], ids=["3", "2.5", "0.4", "one step"]
)
@pytest.mark.parametrize("every", [1, 4, 5, 100, 0.3, 0.01])
def test_a_run_evaluates_and_saves_as_often_as_is_planned(
    strategy: Strategy, every: float, total_steps: int, steps_per_epoch: int, tmp_path: Path
) -> None:
    planned = times(strategy, every=every, total_steps=total_steps, steps_per_epoch=steps_per_epoch)
    done = counted(tmp_path, strategy, every=every, total_steps=total_steps, steps_per_epoch=steps_per_epoch)
    assert done == [planned, planned]
