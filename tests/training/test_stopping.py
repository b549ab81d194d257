"""Runs that end early: on request with a checkpoint, and on their own when the loss is no number any more."""

import json
import math
import os
import signal
import subprocess
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from conftest import tiny_model
from tiny_runs import LORA, ROWS, TOKENIZER, Heard, Trained, job
from truetune.errors import BackendError, CheckpointError
from truetune.model.adapter import add_adapter, verify_adapter
from truetune.runs.checkpoints import problems
from truetune.training.monitor import MetricsCallback, NonFiniteGuard, SignalCallback
from truetune.training.trl import build_engine, overflowed, train
from warm import python

CHILD = """
import sys, time
from pathlib import Path
from transformers import TrainerCallback
from tiny_runs import ROWS, Trained

class Slow(TrainerCallback):
    def on_step_begin(self, args, state, control, **_):
        print("begins", state.global_step + 1, flush=True)
        time.sleep(float(sys.argv[2]))

trained = Trained(Path(sys.argv[1]), ROWS, num_train_epochs=1000, logging_steps=7, callbacks=[Slow()])
print("ended", trained.result.stopped_by, trained.result.steps, trained.lines[-1]["step"], flush=True)
"""


class Child:
    """A training in a process of its own, from its first step on."""

    def __init__(self, folder: Path, *, seconds_a_step: float) -> None:
        paths = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
        self.process = subprocess.Popen(
            python("-c", CHILD, folder, seconds_a_step),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        assert self.process.stdout
        assert self.process.stdout.readline() == "begins 1\n"

    def kill(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def end(self) -> tuple[list[str], str]:
        """What it printed, and what went wrong."""
        printed, errors = self.process.communicate(timeout=60)
        return printed.splitlines(), errors


@pytest.mark.parametrize(
    "number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP], ids=lambda number: number.name
)
def test_a_signal_ends_the_run_after_its_step_with_a_checkpoint(tmp_path: Path, number: signal.Signals) -> None:
    child = Child(tmp_path, seconds_a_step=0.3)
    child.kill(number)
    printed, errors = child.end()
    assert child.process.returncode == 0, errors
    assert printed[-1] == f"ended {number.name} 1 1"
    assert problems(tmp_path / "checkpoint-1") == []


def test_a_second_signal_ends_the_run_at_once(tmp_path: Path) -> None:
    child = Child(tmp_path, seconds_a_step=100)
    child.kill(signal.SIGINT)
    time.sleep(0.2)
    assert child.process.poll() is None
    child.kill(signal.SIGINT)
    started = time.monotonic()
    printed, errors = child.end()
    assert time.monotonic() - started < 30
    assert "KeyboardInterrupt" in errors
    assert child.process.returncode != 0
    assert printed == []
    assert not list(tmp_path.glob("checkpoint-*"))


def test_a_signal_that_is_ignored_stays_so() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with SignalCallback() as signals:
            signal.raise_signal(signal.SIGHUP)
        assert signals.received is None
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


class SignalledAt(TrainerCallback):
    """Raises a signal as a step begins."""

    def __init__(self, step: int) -> None:
        self._step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self._step:
            signal.raise_signal(signal.SIGINT)


def test_a_stopped_run_is_saved_logged_resumable_and_not_evaluated(tmp_path: Path) -> None:
    settings = {
        "num_train_epochs": 2,
        "save_strategy": "epoch",
        "eval_strategy": "epoch",
        "validation": ROWS[:2],
        "logging_steps": 100,
    }
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    stopped = Trained(tmp_path, ROWS, callbacks=[SignalledAt(3)], **settings)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    assert stopped.result.stopped_by == "SIGINT"
    assert stopped.result.steps == 4
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-4"]
    assert [line["step"] for line in stopped.lines if "loss" in line] == [1, 4]
    assert [line["step"] for line in stopped.lines if "eval_loss" in line] == [0]
    resumed = Trained(tmp_path, ROWS, resume_from=tmp_path / "checkpoint-4", **settings)
    whole = Trained(tmp_path / "whole", ROWS, **settings)
    assert torch.equal(resumed.weights(), whole.weights())
    assert resumed.result.stopped_by is None
    assert resumed.result.tokens == whole.result.tokens


def test_outside_the_main_thread_signals_stay_with_whoever_embeds_us() -> None:
    before = signal.getsignal(signal.SIGINT)
    seen: list[Any] = []

    def embed() -> None:
        with SignalCallback() as signals:
            seen.append((signals.received, signal.getsignal(signal.SIGINT)))

    thread = threading.Thread(target=embed)
    thread.start()
    thread.join()
    assert seen == [(None, before)]


# --- losses that are no numbers -----------------------------------------------------------------------------


class Poisoned(TrainerCallback):
    """Spoils a weight of the model as a step begins."""

    def __init__(self, step: int) -> None:
        self._step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if state.global_step == self._step - 1:
            with torch.no_grad():
                next(value for value in model.parameters() if value.requires_grad).fill_(math.nan)


def diverging(folder: Path, lines: list[dict[str, Any]], *, from_step: int, **changes: Any) -> None:
    """A training whose weights are no numbers from that step on."""
    settings = job(folder, num_train_epochs=2, save_strategy="steps", save_steps=1, **changes)
    engine = build_engine(
        settings,
        model=add_adapter(tiny_model(), LORA, seed=1),
        tokenizer=TOKENIZER,
        train=ROWS,
        validation=(),
        listener=Heard(),
        callbacks=[Poisoned(from_step)],
    )
    train(engine, settings, metrics=MetricsCallback(lines.append))


def test_g20_three_non_finite_steps_in_a_row_end_the_run_and_name_the_last_good_checkpoint(tmp_path: Path) -> None:
    lines: list[dict[str, Any]] = []
    with pytest.raises(BackendError, match=r"non-finite.*nan.*step 6.*checkpoint-3\n") as caught:
        diverging(tmp_path, lines, from_step=4)
    assert "learning_rate" in str(caught.value.hint)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5]
    assert all(math.isfinite(line["loss"]) for line in lines[:3])
    assert [line["loss"] for line in lines[3:]] == [None, None]
    assert "NaN" not in json.dumps(lines)


def test_g20_a_run_that_diverges_at_once_has_no_good_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="step 3; last good checkpoint: none"):
        diverging(tmp_path, [], from_step=1)
    assert not list(tmp_path.glob("checkpoint-*"))


def test_g20_rotation_never_trades_a_good_checkpoint_for_a_bad_one(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="checkpoint-3"):
        diverging(tmp_path, [], from_step=4, save_total_limit=1)
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-3"]


def test_g20_the_guard_counts_steps_in_a_row_of_either_kind() -> None:
    guard = NonFiniteGuard()
    for step, loss in enumerate([1.0, math.nan, math.inf, 1.0, math.nan, math.nan, 1.0], start=1):
        guard.check(step=step, loss=loss, grad_norm=1.0, newest_checkpoint=lambda: None)
        assert guard.is_alarmed == (not math.isfinite(loss))
    guard.check(step=8, loss=1.0, grad_norm=math.nan, newest_checkpoint=lambda: None)
    guard.check(step=9, loss=1.0, grad_norm=math.inf, newest_checkpoint=lambda: None)
    with pytest.raises(BackendError, match="step 10"):
        guard.check(step=10, loss=math.nan, grad_norm=None, newest_checkpoint=lambda: None)


def test_g20_one_infinite_loss_is_logged_as_null_and_does_not_end_the_run(tmp_path: Path) -> None:
    class InfiniteOnce(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 2:
                engine._step.add(loss=torch.tensor(math.inf))
                engine._tr_loss += math.inf

    settings = job(tmp_path)
    engine = build_engine(
        settings,
        model=tiny_model(),
        tokenizer=TOKENIZER,
        train=ROWS,
        validation=(),
        listener=Heard(),
        callbacks=[InfiniteOnce()],
    )
    lines: list[dict[str, Any]] = []
    result = train(engine, settings, metrics=MetricsCallback(lines.append))
    assert result.steps == 6
    assert lines[1]["loss"] is None
    assert all(line["loss"] > 0 for line in lines if line["step"] in (1, 6))


def test_g20_loss_scaling_that_still_looks_for_its_scale_is_no_divergence() -> None:
    def accelerator(*, skipped: bool, scale: float) -> Any:
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        scaler.scale(torch.ones(()))
        return SimpleNamespace(optimizer_step_was_skipped=skipped, scaler=scaler)

    assert overflowed(accelerator(skipped=True, scale=65536.0))
    assert not overflowed(accelerator(skipped=True, scale=0.5))
    assert not overflowed(accelerator(skipped=False, scale=65536.0))
    assert not overflowed(SimpleNamespace(optimizer_step_was_skipped=False, scaler=None))


def test_a_diverged_adapter_is_never_called_saved(tmp_path: Path) -> None:
    model = add_adapter(tiny_model(), replace(LORA, r=2), seed=1)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_B" in name:
                value.fill_(math.nan)
    model.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="not finite: the run diverged"):
        verify_adapter(model, tmp_path)
