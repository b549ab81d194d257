"""Trackers are checked before anything loads, never ask for a login, and cannot end a run."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback

from tiny_runs import ROWS, Heard, Trained
from truetune.errors import BackendError
from truetune.training.monitor import GuardedTracker, guarded_trackers
from truetune.training.trackers import require_trackers, tracker_environment


@pytest.fixture
def logged_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A home without any login to W&B."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_BASE_URL", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def test_no_tracker_needs_nothing(logged_out: Path) -> None:
    require_trackers([])


@pytest.mark.parametrize("tracker", ["wandb", "tensorboard", "trackio"])
def test_a_tracker_that_is_not_installed_is_told_with_its_install_line(
    monkeypatch: pytest.MonkeyPatch, tracker: str
) -> None:
    monkeypatch.setattr("truetune.training.trackers.find_spec", lambda _: None)
    with pytest.raises(BackendError, match=f"{tracker} is not installed") as caught:
        require_trackers([tracker])
    assert f"pip install 'truetune[{tracker}]'" in str(caught.value)


def test_a_folder_of_wandbs_logs_is_no_client(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "no_such_tracker").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(BackendError, match="no_such_tracker is not installed"):
        require_trackers(["no_such_tracker"])


def test_g27_wandb_without_a_login_is_refused_with_both_ways_out(logged_out: Path) -> None:
    with pytest.raises(BackendError, match="no login") as caught:
        require_trackers(["wandb"])
    assert "WANDB_API_KEY" in str(caught.value)
    assert "WANDB_MODE=offline" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("WANDB_MODE", "offline"),
        ("WANDB_MODE", "disabled"),
        ("WANDB_API_KEY", "0" * 40),
        ("WANDB_IDENTITY_TOKEN_FILE", "token"),
    ],
)
def test_g27_offline_disabled_and_logged_in_are_accepted(
    logged_out: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    require_trackers(["wandb"])


def test_g27_a_login_stored_by_wandb_is_found_for_its_own_server_only(
    logged_out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = logged_out / ".netrc"
    netrc.write_text("machine api.wandb.ai login user password " + "0" * 40 + "\n")
    netrc.chmod(0o600)
    require_trackers(["wandb"])
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    with pytest.raises(BackendError, match="no login"):
        require_trackers(["wandb"])
    (logged_out / "elsewhere").write_text("machine wandb.example.org login user password " + "0" * 40 + "\n")
    monkeypatch.setenv("NETRC", str(logged_out / "elsewhere"))
    require_trackers(["wandb"])


def test_g27_a_stub_client_is_a_client_and_is_never_imported_for_the_check(logged_out: Path, tmp_path: Path) -> None:
    (tmp_path / "stub").mkdir()
    (tmp_path / "stub" / "wandb.py").write_text("raise SystemExit('imported')\n")
    check = (
        "from truetune.training.trackers import require_trackers; from truetune.errors import BackendError\n"
        "try: require_trackers(['wandb'])\nexcept BackendError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", check],
        env={"PYTHONPATH": str(tmp_path / "stub"), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
        timeout=5,
        stdin=subprocess.DEVNULL,
    )
    assert "WANDB_API_KEY" in done.stdout


def test_g27_a_tracker_that_cannot_write_is_a_warning_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "taken").write_text("a file where the folder should be")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "taken"))
    trained = Trained(tmp_path / "run", ROWS, report_to=("tensorboard",))
    assert trained.result.steps == 6
    assert len(trained.logged("loss")) == 6
    (warning,) = trained.heard.warnings
    assert "tensorboard failed" in warning
    assert "taken" in warning


class Failing(TrainerCallback):
    """A tracker that loses its connection at the second line."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.calls.append("begin")

    def on_log(self, *_: Any, **__: Any) -> None:
        self.calls.append("log")
        if self.calls.count("log") == 2:
            raise ConnectionError("the server is gone\nand more lines")

    def on_save(self, *_: Any, **__: Any) -> None:
        self.calls.append("save")

    def on_train_end(self, *_: Any, **__: Any) -> None:
        self.calls.append("end")


def test_g27_a_failure_in_mid_run_is_told_once_and_the_tracker_left_alone(tmp_path: Path) -> None:
    heard, tracker = Heard(), Failing()
    guarded = GuardedTracker("mine", tracker, heard)
    trained = Trained(tmp_path, ROWS, callbacks=[guarded], save_strategy="steps", save_steps=1)
    assert trained.result.steps == 6
    assert tracker.calls == ["begin", "log", "save", "log"]
    assert heard.warnings == ["mine failed; from now on metrics go to metrics.jsonl only: the server is gone"]


def test_a_tracker_in_order_hears_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with tracker_environment(run=tmp_path, logging_dir=None, project=None):
        trained = Trained(tmp_path / "checkpoints", ROWS, report_to=("tensorboard",))
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    written = [(event.step, event.value) for event in events.Scalars("train/loss")]
    assert written == [(line["step"], pytest.approx(line["loss"])) for line in trained.lines]
    assert trained.heard.warnings == []


def test_every_tracker_gets_the_project(tmp_path: Path) -> None:
    with tracker_environment(run=tmp_path, logging_dir=None, project="mine"):
        trained = Trained(tmp_path / "checkpoints", ROWS[:2])
        assert os.environ["WANDB_PROJECT"] == "mine"
    assert trained.engine.args.project == "mine"
    assert os.environ.get("WANDB_PROJECT") != "mine"


def test_only_the_trackers_asked_for_are_started() -> None:
    assert guarded_trackers((), Heard()) == []
    assert len(guarded_trackers(("tensorboard",), Heard())) == 1
