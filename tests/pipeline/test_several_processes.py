"""G28: two and three real processes train what one does, on the same rows, and end together."""

import json
import os
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import warm
import worlds
from truetune.runs.checkpoints import problems, read_manifest
from worlds import EXACT, SAVED, difference, figures

pytestmark = pytest.mark.timeout(3 * worlds.LIMIT)  # A test that is the first waits for all worlds.


@pytest.fixture(scope="module")
def folder(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A base and the scenarios' rows, trained by one process, then by two, then by three."""
    folder = tmp_path_factory.mktemp("worlds")
    shutil.copytree(tiny_base, folder / "base")
    for name in (*EXACT, "saved"):
        worlds.written_rows(folder, name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRUETUNE_CACHE", str(folder / "cache"))
        for name in worlds.trained_by(1):
            worlds.train(folder, name, processes=1)
        worlds.train(folder, "saved", processes=1, max_steps=6, **SAVED)
        _together(folder, 2)
        shutil.copytree(folder / "saved-2", folder / "saved-3")
        shutil.copytree(folder / "saved-2", folder / "back-to-1")
        _together(folder, 3, by_srun=True)
        yield folder


@pytest.fixture(scope="module")
def endings(folder: Path) -> Path:
    """The same folder, where runs of two processes have ended in many ways; at last one of the two is killed."""
    scenarios = ("differs", "asked", "signalled", "failed", "unsaved", "killed")
    _together(folder, 2, *scenarios, expected=(0, -signal.SIGKILL))
    return folder


def _together(
    folder: Path, size: int, *scenarios: str, by_srun: bool = False, expected: Sequence[int] | None = None
) -> None:
    """So many processes, which train all that has to be the same in any number, or the scenarios."""
    ends = worlds.ended(worlds.start(size, folder, *scenarios, by_srun=by_srun))
    worlds.require(ends, statuses=expected or [0] * size)


# --- exactness ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "size"), [(name, size) for size in (2, 3) for name in worlds.trained_by(size) if name != "dropout"]
)
def test_g28_several_processes_train_the_weights_of_one(folder: Path, name: str, size: int) -> None:
    alone, together = folder / f"{name}-1", folder / f"{name}-{size}"
    assert difference(alone, together) <= 1e-5
    for names in (("loss", "grad_norm"), ("eval_loss", "eval_mean_token_accuracy"), ("mean_token_accuracy",)):
        assert figures(together, *names) == pytest.approx(figures(alone, *names), abs=1e-5, rel=1e-5)
    for counted in ("num_tokens", "supervised_tokens", "eval_supervised_tokens", "learning_rate", "eval_exact_match"):
        assert figures(together, counted) == figures(alone, counted)
    assert figures(together, "loss")


@pytest.mark.parametrize(("name", "size"), [("uneven", 2), ("tiny", 2), ("packed", 2), ("uneven", 3), ("tiny", 3)])
def test_g28_every_row_is_learned_once_an_epoch_by_one_process(folder: Path, name: str, size: int) -> None:
    computed = [json.loads((folder / f"computed-{name}-{size}-{rank}.json").read_text()) for rank in range(size)]
    record = json.loads((folder / f"{name}-{size}" / "run.json").read_text())
    an_epoch = record["total_steps"] // 2
    for epoch in range(2):
        read = Counter(
            tuple(sample)
            for batches in computed
            for step, samples in batches
            if step // an_epoch == epoch
            for sample in samples
        )
        assert set(read.values()) == {1}
        held_out = EXACT[name].get("test_size", 0)
        assert len(read) == record["data"]["rows_kept"] - held_out
    assert all(batches for batches in computed)


def test_the_last_step_of_few_rows_has_some_for_one_process_only(folder: Path) -> None:
    computed = [json.loads((folder / f"computed-tiny-3-{rank}.json").read_text()) for rank in range(3)]
    at_work = [rank for rank, batches in enumerate(computed) if any(step == 1 for step, _ in batches)]
    assert len(at_work) == 1


def test_dropout_is_the_same_for_two_processes_and_for_three_and_not_for_none(folder: Path) -> None:
    assert difference(folder / "dropout-2", folder / "dropout-3") <= 1e-5
    assert figures(folder / "dropout-2", "loss") != pytest.approx(figures(folder / "plus-2", "loss"), abs=1e-4)


def test_a_record_says_how_many_processes_there_were(folder: Path) -> None:
    record = json.loads((folder / "uneven-3" / "run.json").read_text())
    assert (record["num_processes"], record["effective_batch_size"]) == (3, 12)


def test_g28_a_checkpoint_records_the_three_factors_of_a_step(folder: Path) -> None:
    recorded = read_manifest(folder / "saved-2" / "checkpoints" / "checkpoint-6")["identity"]
    names = ("training.per_device_train_batch_size", "training.gradient_accumulation_steps", "processes")
    assert [recorded[name] for name in names] == [2, 3, 2]


# --- going on -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [2, 3])
def test_a_run_goes_on_in_as_many_processes_or_in_others(folder: Path, size: int) -> None:
    whole, resumed = folder / "saved-1", folder / f"saved-{size}"
    assert difference(whole, resumed) <= 1e-5
    assert figures(resumed, "loss") == pytest.approx(figures(whole, "loss"), abs=1e-5)
    for checkpoint in (3, 6):
        assert problems(resumed / "checkpoints" / f"checkpoint-{checkpoint}") == []


def test_a_run_of_two_processes_goes_on_in_one(folder: Path) -> None:
    checkpoint = folder / "back-to-1" / "checkpoints" / "checkpoint-3"
    worlds.train(
        folder, "saved", processes=1, output="back-to-1", max_steps=6, resume_from_checkpoint=checkpoint, **SAVED
    )
    assert difference(folder / "saved-1", folder / "back-to-1") <= 1e-5


def test_a_stream_of_two_processes_goes_on_in_one_where_it_was(folder: Path) -> None:
    shutil.copytree(folder / "streamed-2", folder / "streamed-back")
    checkpoint = folder / "streamed-back" / "checkpoints" / "checkpoint-3"
    worlds.train(folder, "streamed", processes=1, output="streamed-back", resume_from_checkpoint=checkpoint)
    assert difference(folder / "streamed-1", folder / "streamed-back") <= 1e-5
    resumed, whole = (figures(folder / name, "loss") for name in ("streamed-back", "streamed-1"))
    assert resumed == pytest.approx(whole, abs=1e-5)


# --- endings ------------------------------------------------------------------------------------------------


def outcomes(folder: Path, name: str) -> list[list[str]]:
    """How the scenario ended, in the first process and in the second."""
    return [outcome_of(folder, name, rank=rank) for rank in range(2)]


def outcome_of(folder: Path, name: str, *, rank: int) -> list[str]:
    found: list[str] = json.loads((folder / f"outcomes-{name}-{rank}.json").read_text())
    return found


def seconds_behind(folder: Path, name: str, *, rank: int) -> float:
    """How long the process went on behind what happened to the other one."""
    _, over = json.loads((folder / f"times-{name}-{rank}.json").read_text())
    return float(over - json.loads((folder / f"happened-{name}.json").read_text()))


def status(folder: Path, run: str) -> tuple[str, str]:
    record = json.loads((folder / run / "run.json").read_text())
    return record["status"], record.get("error", "")


def test_processes_that_would_train_different_runs_do_not_begin(endings: Path) -> None:
    first, second = outcomes(endings, "differs")
    assert second[0] == "BackendError"
    assert "process 1 would train another run than the first process: training.weight_decay is 0.1 here" in second[1]
    assert first[0] == "OtherProcessError"
    assert "process 1 failed: process 1 would train another run" in first[1]
    # What --overwrite was to replace is there as it was.
    assert status(endings, "uneven-2") == ("finished", "")
    assert difference(endings / "uneven-1", endings / "uneven-2") <= 1e-5


def test_what_a_callback_decides_in_one_process_all_do(endings: Path) -> None:
    assert outcomes(endings, "asked") == [["finished", "None", "2"]] * 2


def test_a_signal_to_one_process_ends_all_in_one_checkpoint(endings: Path) -> None:
    assert outcomes(endings, "signalled") == [["stopped", "SIGTERM", "2"]] * 2
    assert [path.name for path in (endings / "signalled" / "checkpoints").iterdir()] == ["checkpoint-2"]
    assert problems(endings / "signalled" / "checkpoints" / "checkpoint-2") == []


def test_a_process_that_fails_ends_all_with_its_own_error(endings: Path) -> None:
    first, second = outcomes(endings, "failed")
    assert second == ["BackendError", "the fan of process 1 stands still"]
    assert first == ["OtherProcessError", "process 1 failed: the fan of process 1 stands still"]
    assert status(endings, "failed") == ("failed", "process 1 failed: the fan of process 1 stands still")


def test_the_first_process_s_failure_reaches_those_that_wait_for_it(endings: Path) -> None:
    first, second = outcomes(endings, "unsaved")
    assert first[0] == "CheckpointError"
    assert second[0] == "OtherProcessError"
    assert "No space left on device" in second[1]


def test_a_process_that_is_killed_leaves_none_behind_that_waits(endings: Path) -> None:
    outcome = outcome_of(endings, "killed", rank=0)
    assert outcome[0] == "BackendError"
    assert "process 0 of 2 has lost the others" in outcome[1]
    assert status(endings, "killed")[0] == "failed"


@pytest.mark.parametrize("name", ["failed", "killed"])
def test_the_others_end_soon_behind_one_that_fails(endings: Path, name: str) -> None:
    assert seconds_behind(endings, name, rank=0) < 30


def test_a_process_that_is_halted_is_given_up_and_named(folder: Path) -> None:
    processes = worlds.start(2, folder, "halted")
    (first,) = worlds.ended(processes, without=[1])
    assert first.status == 1, first.err  # Its outcome was told before; at exit gloo would wait for the other one.
    outcome = outcome_of(folder, "halted", rank=0)
    assert outcome[0] == "BackendError"
    assert "process 1 has given no sign of life for 10 seconds: it is halted, or its machine is gone" in outcome[1]
    assert status(folder, "halted")[0] == "failed"
    assert 10 <= seconds_behind(folder, "halted", rank=0) < 60


def test_the_first_process_killed_while_it_saves_leaves_no_checkpoint_and_none_that_waits(folder: Path) -> None:
    _together(folder, 2, "killed-saving", expected=(-signal.SIGKILL, 0))
    outcome = outcome_of(folder, "killed-saving", rank=1)
    assert outcome[0] == "BackendError"
    assert "process 1 of 2 has lost the others" in outcome[1]
    assert seconds_behind(folder, "killed-saving", rank=1) < 30
    assert not [*(folder / "killed-saving" / "checkpoints").glob("checkpoint-*")]


# --- how they are started -----------------------------------------------------------------------------------


def words(folder: Path, output: Path, *settings: str) -> list[str]:
    fast = {**worlds.FAST, "max_steps": 2, "gradient_accumulation_steps": 3, **dict(s.split("=") for s in settings)}
    given = [f"{name}={str(value).lower() if isinstance(value, bool) else value}" for name, value in fast.items()]
    base, data = str(folder / "base"), str(folder / "uneven.jsonl")
    return ["train", "--model", base, "--data", data, *given, "--output-dir", str(output)]


def command(*line: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """`python LINE`, which starts others with libraries that are there already, too."""
    environment = {**os.environ, "WARM_PYTHON": warm.executable()}
    options: dict[str, Any] = {"env": environment, "cwd": cwd, "capture_output": True, "text": True}
    return subprocess.run(warm.python(*line), timeout=worlds.LIMIT, check=False, **options)


def test_num_processes_starts_them_here_and_one_tells_what_happens(folder: Path, tmp_path: Path) -> None:
    done = command("-m", "truetune", *words(folder, tmp_path / "run"), "--num-processes", "2")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("finished: 2 of 2 steps") == 1
    assert done.stderr.count("12 sequences a step = 2 per device x 3 accumulated x 2 processes") == 1
    assert done.stderr.count("saved and verified") == 1
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["num_processes"] == 2
    assert record["config"]["training"]["num_processes"] == 2


def test_a_signal_to_the_command_ends_its_processes_in_one_checkpoint(folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    line = ["-m", "truetune", *words(folder, run, "max_steps=5000", "save_strategy=steps", "num_processes=2")]
    environment = {**os.environ, "WARM_PYTHON": warm.executable()}
    options: dict[str, Any] = {"env": environment, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(warm.python(*line, "save_steps=4000"), **options)
    try:
        deadline = time.monotonic() + worlds.LIMIT
        while not (run / "metrics.jsonl").exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=worlds.LIMIT)
    finally:
        process.kill()
    assert process.returncode == 128 + signal.SIGINT, err
    assert "Traceback" not in err
    assert out.count("stopped by SIGINT: ") == 1
    assert status(folder, str(run)) == ("stopped", "")
    (checkpoint,) = (run / "checkpoints").iterdir()
    assert problems(checkpoint) == []


def test_torchrun_is_recognised_and_chooses_one_directory_for_all(folder: Path, tmp_path: Path) -> None:
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "truetune"]
    *given, _, _ = words(folder, tmp_path)
    done = command(*torchrun, *given, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("finished: 2 of 2 steps") == 1
    (run,) = (tmp_path / "runs").iterdir()
    assert json.loads((run / "run.json").read_text())["num_processes"] == 2


def test_a_mistake_is_told_once_and_ends_with_its_own_status(folder: Path, tmp_path: Path) -> None:
    there = ["-m", "truetune", *words(folder, tmp_path / "run", "num_processes=2")]
    done = command(*there, "learnig_rate=1")
    assert done.returncode == 2
    assert done.stderr.count("did you mean") == 1
    (tmp_path / "empty.jsonl").write_text("")
    done = command(*there, "--data", str(tmp_path / "empty.jsonl"))
    assert done.returncode == 1
    assert done.stderr.count("error: ") == 1
    assert "0 usable rows" in done.stderr
    assert "Traceback" not in done.stderr
