"""Somebody whose run is stopped or killed, and who goes on with it in the ways that come to mind."""

import json
import shutil
import signal
import subprocess
import time
from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback
from typed import Terminal

import truetune
import warm
from conftest import arithmetic_rows, write_jsonl
from truetune.cli import main

SETTINGS = (
    "save_strategy=steps",
    "save_steps=2",
    "save_total_limit=10",
    "logging_steps=1",
    "packing=false",
    "gradient_accumulation_steps=1",
)


@pytest.fixture
def terminal(capsys: pytest.CaptureFixture[str]) -> Terminal:
    return Terminal(capsys)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the commands are typed: with rows, and without runs."""
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "faq.jsonl", arithmetic_rows(24))
    return tmp_path


def record_of(run: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((run / "run.json").read_text())
    return record


def steps_of(run: Path) -> int:
    return int(record_of(run)["steps"])


def train(base: Path, *more: object) -> tuple[object, ...]:
    """The command as it was typed the first time; it names no directory."""
    return ("train", "--model", base, "--data", "faq.jsonl", *SETTINGS, *more)


def started(base: Path, *more: object) -> "subprocess.Popen[str]":
    """A long run in a process of its own, once it has a checkpoint."""
    command = warm.truetune(*train(base, "max_steps=5000", *more))
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: list(Path("runs").glob("*/checkpoints/checkpoint-*/manifest.json")), process)
    return process


def wait_for(condition: Any, process: "subprocess.Popen[str]") -> None:
    end = time.monotonic() + 90
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "timed out"
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("number", "status", "said"),
    [
        (signal.SIGINT, 130, "stopped by SIGINT after step"),
        (signal.SIGHUP, 129, "stopped by SIGHUP after step"),
        (signal.SIGKILL, -9, ""),
    ],
)
def test_a_run_that_ended_early_goes_on_by_the_same_command_with_resume(
    number: signal.Signals, status: int, said: str, place: Path, tiny_base: Path, terminal: Terminal
) -> None:
    process = started(tiny_base)
    process.send_signal(number)
    out, errors = process.communicate(timeout=60)
    assert process.returncode == status, errors
    assert said in errors
    run = Path("runs/faq-1")
    if said:
        assert f"truetune train {run}/config.yaml --resume" in out
    told = terminal.done("runs")
    assert ("dead" if number == signal.SIGKILL else "stopped") in told.out
    last = max(int(path.name.rpartition("-")[2]) for path in run.glob("checkpoints/checkpoint-*"))
    told = terminal.done(*train(tiny_base, f"max_steps={last + 2}", "--resume"))
    assert f"going on with {run}" in told.err
    assert "the schedule changed: 5000 steps before" in told.err
    assert (record_of(run)["status"], steps_of(run)) == ("finished", last + 2)
    assert not Path("runs/faq-2").exists()


@pytest.fixture(scope="module")
def eight_steps(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder where a run of 8 steps was killed behind its checkpoint of step 4. Nothing in it may be changed."""
    folder = tmp_path_factory.mktemp("eight")
    write_jsonl(folder / "faq.jsonl", arithmetic_rows(24))
    with chdir(folder):
        assert main([*map(str, train(tiny_base, "max_steps=8"))]) == 0
    run = folder / "runs" / "faq-1"
    for path in (run / "adapter", run / "checkpoints" / "checkpoint-6", run / "checkpoints" / "checkpoint-8"):
        shutil.rmtree(path)
    (run / "run.json").write_text(json.dumps({**record_of(run), "status": "running"}))
    return folder


@pytest.fixture
def run(eight_steps: Path, place: Path) -> Path:
    """That run, where the commands are typed."""
    shutil.copytree(eight_steps, place, dirs_exist_ok=True)
    return Path("runs/faq-1")


def test_the_same_command_again_begins_anew_and_says_so(run: Path, tiny_base: Path, terminal: Terminal) -> None:
    told = terminal.done(*train(tiny_base, "max_steps=2"))
    assert f"warning: {run} did not come to its end: --resume goes on with it; this is a new run" in told.err
    assert steps_of(Path("runs/faq-2")) == 2
    refused = terminal.refused(*train(tiny_base, "max_steps=2", "--output-dir", run), status=1)
    assert "go on with --resume, replace it with --overwrite, or choose another --output-dir" in refused


def test_a_run_goes_on_by_its_name_alone_also_where_it_was_moved(run: Path, place: Path, terminal: Terminal) -> None:
    terminal.done("train", "--resume", run)
    assert (record_of(run)["status"], steps_of(run)) == ("finished", 8)
    assert record_of(run)["resumed_from"].endswith("checkpoint-4")
    kept = run.rename("kept")
    terminal.done("train", "--resume", kept, "max_steps=10")
    assert steps_of(kept) == 10
    (kept / "config.yaml").write_text(
        (kept / "config.yaml").read_text().replace("output_dir: kept", f"output_dir: {run}")
    )
    told = terminal.done("train", kept / "config.yaml", "--resume")
    assert "the run lies in kept now" in told.err
    assert "the run is complete: 10 of 10 steps are done" in told.err
    assert not run.exists()


def test_a_run_goes_on_from_a_checkpoint_by_its_path_alone(run: Path, terminal: Terminal) -> None:
    checkpoints = run / "checkpoints"
    refused = terminal.refused("train", "--resume", checkpoints / "checkpoint-3", status=1)
    assert f"there is no checkpoint {checkpoints}/checkpoint-3" in refused
    assert f"hint: there are {checkpoints}/checkpoint-4, {checkpoints}/checkpoint-2" in refused
    terminal.done("train", "--resume", checkpoints / "checkpoint-2", "max_steps=4")
    assert record_of(run)["resumed_from"] == f"{checkpoints}/checkpoint-2"
    assert steps_of(run) == 4


def test_what_makes_another_run_is_refused_by_name_and_what_does_not_is_taken(
    run: Path, tiny_base: Path, terminal: Terminal
) -> None:
    refused = terminal.refused(*train(tiny_base, "max_steps=8", "--resume", "learning_rate=1e-3"), status=1)
    assert "training.learning_rate was" in refused
    assert "is 0.001" in refused
    assert "hint: set them back" in refused
    moved = Path("faq.jsonl").rename("questions.jsonl")
    assert "data file not found: faq.jsonl" in terminal.refused("train", "--resume", run, status=1)
    terminal.done("train", "--resume", run, f"data.path={moved}")
    assert steps_of(run) == 8


def test_without_its_newest_checkpoint_a_run_goes_on_from_the_one_before_and_without_any_it_starts(
    run: Path, tiny_base: Path, terminal: Terminal
) -> None:
    (run / "checkpoints" / "checkpoint-4" / "adapter_model.safetensors").write_bytes(b"half")
    told = terminal.done("train", "--resume", run, "max_steps=4")
    assert "warning: checkpoint-4 is not complete (adapter_model.safetensors has 4 of" in told.err
    assert record_of(run)["resumed_from"].endswith("checkpoint-2")
    shutil.rmtree(run / "checkpoints")
    refused = terminal.refused(*train(tiny_base, "--resume"), status=1)
    assert "no run of this model and data in runs/ has a checkpoint to go on from" in refused
    assert "or start without --resume" in refused


class SecondCtrlC(TrainerCallback):
    """Ends the run in the middle of a step, as a second Ctrl-C does."""

    def on_step_end(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
        if state.global_step == 3:
            raise KeyboardInterrupt


def test_a_second_ctrl_c_says_from_where_the_run_goes_on(
    place: Path, tiny_base: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = {"max_steps": 5, "save_strategy": "steps", "save_steps": 2, "packing": False}
    with pytest.raises(KeyboardInterrupt):
        truetune.train(
            model=str(tiny_base), data="faq.jsonl", output_dir="run", callbacks=[SecondCtrlC()], **settings
        )
    assert "stopped at once, in the middle of a step; --resume goes on from checkpoint-2" in caplog.text
    assert record_of(place / "run")["status"] == "stopped"
