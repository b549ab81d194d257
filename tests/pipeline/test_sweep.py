"""Sweeps: runs one after the other, each its own process, gone on with by the same command, ranked at the end."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import truetune
import warm
from conftest import arithmetic_rows, write_jsonl
from heard import Heard
from truetune.cli import main
from truetune.config.load import load_config
from truetune.config.schema import Config
from truetune.errors import CheckpointError, ConfigError
from truetune.pipeline.review.grid import Grid, read_grid
from truetune.pipeline.review.sweep import Sweep, SweptRun, run_sweep, sweep_directory, sweep_so_far
from truetune.runs.directory import RunDirectory
from truetune.runs.ledger import RunEntry

SMALL = ("precision=fp32", "logging_steps=1", "adapter.r=4", "save_strategy=no", "gradient_accumulation_steps=1")


class Setting:
    """A base and rows, and the grids of words about them."""

    def __init__(self, base: Path, rows: Path) -> None:
        self.base, self.rows = base, rows

    def load(self, words: Sequence[str]) -> Config:
        given = {"model.name_or_path": str(self.base), "data.path": str(self.rows)}
        return load_config(None, settings=given, overrides=words).config

    def grid(self, *words: str) -> Grid:
        return read_grid([*SMALL, *words], self.load)

    def words(self, folder: Path, *words: str) -> list[str]:
        """Those of the command."""
        files = ("--model", str(self.base), "--data", str(self.rows), "--output-dir", str(folder))
        return ["sweep", *files, *SMALL, *words]


@pytest.fixture(scope="module")
def setting(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Setting:
    return Setting(tiny_base, write_jsonl(tmp_path_factory.mktemp("swept") / "sums.jsonl", arithmetic_rows(24)))


WORDS = ("max_steps=10", "test_size=6", "learning_rate=1e-5,1e-2")


@pytest.fixture(scope="module")
def warmed() -> Iterator[None]:
    """The processes that a sweep starts need not load the libraries."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "executable", warm.executable())
        yield


@pytest.fixture(scope="module")
def swept(setting: Setting, warmed: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Sweep, Heard]:
    """A sweep of two rates that has come to its end."""
    heard = Heard()
    folder = tmp_path_factory.mktemp("sweeps") / "rates"
    return run_sweep(setting.grid(*WORDS), folder, listener=heard), heard


def times(sweep: Sweep) -> dict[str, int]:
    """When each run's record was last written."""
    return {run.name: (run.path / "run.json").stat().st_mtime_ns for run in sweep.runs}


def test_each_run_trains_with_its_own_settings_and_the_lowest_validation_loss_is_the_best(
    swept: tuple[Sweep, Heard],
) -> None:
    sweep, _ = swept
    assert sweep.is_complete
    assert [run.name for run in sweep.runs] == ["learning_rate=0.01", "learning_rate=1e-05"]
    assert sweep.best is sweep.runs[0]
    losses = [run.figure("eval_loss") or 0.0 for run in sweep.runs]
    assert 0.0 < losses[0] < losses[1]
    for run in sweep.runs:
        opened = truetune.open_run(run.path)
        assert opened.config.training.learning_rate == run.settings["training.learning_rate"]
        assert (opened.status, opened.steps) == ("finished", 10)
        assert opened.eval_loss == run.figure("eval_loss")


def test_a_run_of_a_sweep_is_the_run_that_train_would_make(
    swept: tuple[Sweep, Heard], setting: Setting, tmp_path: Path
) -> None:
    words = [*SMALL, "max_steps=10", "test_size=6", "learning_rate=1e-2"]
    config = setting.load(words).model_copy(update={"output_dir": str(tmp_path / "alone")})
    assert truetune.train(config).losses == truetune.open_run(swept[0].runs[0].path).losses


def test_the_same_sweep_again_trains_nothing(swept: tuple[Sweep, Heard], setting: Setting) -> None:
    sweep, _ = swept
    before, heard = times(sweep), Heard()
    again = run_sweep(setting.grid(*WORDS), sweep.path, listener=heard)
    assert times(again) == before
    assert [run.name for run in again.runs] == [run.name for run in sweep.runs]
    assert heard.text().count("is finished") == 2


def test_a_folder_of_another_sweep_or_of_a_run_is_refused(swept: tuple[Sweep, Heard], setting: Setting) -> None:
    sweep, _ = swept
    with pytest.raises(ConfigError, match=r"another sweep: training\.max_steps was 10 and is 11"):
        run_sweep(setting.grid("max_steps=11", *WORDS[1:]), sweep.path)
    with pytest.raises(ConfigError, match=r"training\.learning_rate was swept and is 0\.001"):
        run_sweep(setting.grid(*WORDS[:2], "learning_rate=1e-3", "seed=1,2"), sweep.path)
    with pytest.raises(ConfigError, match="holds a run, and no sweep"):
        run_sweep(setting.grid(*WORDS), sweep.runs[0].path)
    with RunDirectory(sweep.path).locked(), pytest.raises(CheckpointError, match="in use"):
        run_sweep(setting.grid(*WORDS), sweep.path)


def test_the_same_sweep_has_the_same_folder_and_another_one_another(
    swept: tuple[Sweep, Heard], setting: Setting, tmp_path: Path
) -> None:
    assert sweep_directory(setting.grid(*WORDS), root=tmp_path) == tmp_path / "sums-sweep-1"
    (tmp_path / "sums-sweep-1").mkdir()
    (tmp_path / "sums-sweep-1" / "sweep.json").write_bytes((swept[0].path / "sweep.json").read_bytes())
    assert sweep_directory(setting.grid(*WORDS), root=tmp_path) == tmp_path / "sums-sweep-1"
    assert sweep_directory(setting.grid(*WORDS[:2], "lr=1e-3,1e-4"), root=tmp_path) == tmp_path / "sums-sweep-1"
    assert sweep_directory(setting.grid("max_steps=9", *WORDS[1:]), root=tmp_path) == tmp_path / "sums-sweep-2"


def test_the_plan_of_a_sweep_tells_what_is_still_to_come_and_writes_nothing(
    swept: tuple[Sweep, Heard], setting: Setting, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = swept[0].path
    before = sorted(path.name for path in folder.rglob("*"))
    words = setting.words(
        folder, "max_steps=10", "test_size=6", "learning_rate=1e-5,1e-2,1e-3", "--dry-run", "--json"
    )
    assert main(words) == 0
    document = json.loads(capsys.readouterr().out)
    assert [(run["status"], run["total_steps"]) for run in document["runs"]] == [
        ("finished", None),
        ("finished", None),
        ("not started", 10),
    ]
    assert document["seconds"] == document["runs"][2]["seconds"] > 0
    assert document["disk_bytes"] == document["runs"][2]["disk_bytes"] > 0
    assert sorted(path.name for path in folder.rglob("*")) == before


def test_a_run_that_fails_ends_no_other_and_is_tried_again_only_when_asked(
    setting: Setting, warmed: None, tmp_path: Path
) -> None:
    def sweep(*, retry: bool = False) -> tuple[Sweep, str]:
        heard = Heard()
        grid = setting.grid("max_steps=1", f"model.name_or_path={tmp_path / 'late'},{setting.base}")
        return run_sweep(grid, tmp_path / "sweep", retry=retry, listener=heard), heard.text()

    found, told = sweep()
    assert [run.status for run in found.runs] == ["finished", "failed"]
    assert found.best is found.runs[0]
    assert f"model not found: {tmp_path / 'late'}" in str(found.runs[1].problem)
    assert "did not finish: model not found" in told
    log = next((tmp_path / "sweep" / "logs").glob("*late*"))
    before = log.stat().st_mtime_ns
    found, told = sweep()
    assert "--retry tries it again" in told
    assert log.stat().st_mtime_ns == before
    (tmp_path / "late").symlink_to(setting.base)
    found, told = sweep(retry=True)
    assert found.is_complete
    assert {run.problem for run in found.runs} == {None}


def test_a_signal_stops_the_run_and_the_sweep_and_the_same_command_goes_on(setting: Setting, tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    command = warm.truetune(*setting.words(folder, "max_steps=150,2", "learning_rate=1e-3", "--json"))
    environment = {**os.environ, "WARM_PYTHON": warm.executable()}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, env=environment, text=True, **pipes) as process:
        first = folder / "max_steps=150" / "metrics.jsonl"
        end = time.monotonic() + 120
        while not (first.exists() and first.stat().st_size):
            assert time.monotonic() < end, "timed out"
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        printed, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    document = json.loads(printed)
    assert document["stopped_by"] == "SIGINT"
    assert {run["name"]: run["status"] for run in document["runs"]} == {
        "max_steps=150": "stopped",
        "max_steps=2": "not started",
    }
    stopped_at = json.loads((folder / "max_steps=150" / "run.json").read_text())["steps"]
    assert 0 < stopped_at < 150
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    runs: list[dict[str, Any]] = json.loads(done.stdout)["runs"]
    assert {run["name"]: run["steps"] for run in runs} == {"max_steps=150": 150, "max_steps=2": 2}
    record = json.loads((folder / "max_steps=150" / "run.json").read_text())
    assert f"checkpoint-{stopped_at}" in str(record["resumed_from"])
    assert json.loads(done.stdout)["ranked_by"] == "final_loss"


def test_a_wrong_value_of_any_run_is_told_before_anything_is_made(
    setting: Setting, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(setting.words(tmp_path / "sweep", "learning_rate=1e-4,fast")) == 2
    assert "training.learning_rate must be" in capsys.readouterr().err
    assert not (tmp_path / "sweep").exists()


def test_a_folder_without_a_sweep_has_none(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no sweep"):
        sweep_so_far(tmp_path)


def test_the_table_names_the_best_run_and_says_what_is_not_known(
    swept: tuple[Sweep, Heard], setting: Setting, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = swept[0].path
    assert main(setting.words(folder, *WORDS)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split("\t")[:3] == ["run", "learning_rate", "status"]
    assert lines[1].split("\t")[0] == "learning_rate=0.01"
    assert lines[1].endswith("\tbest")
    assert f"best: {folder / 'learning_rate=0.01'} (by validation loss)" in lines


def test_a_run_is_ranked_by_the_weights_that_it_ended_with() -> None:
    def ranked(*, keeps_best: bool) -> float | None:
        settings = {"evaluation.load_best_model_at_end": keeps_best}
        entry = RunEntry(Path("a"), "finished", eval_loss=2.0, best_eval_loss=1.0, settings=settings)
        return SweptRun("a", {}, Path("a"), entry, None).figure("eval_loss")

    assert (ranked(keeps_best=True), ranked(keeps_best=False)) == (1.0, 2.0)
