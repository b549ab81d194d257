"""Trackers are checked before anything loads, never ask for a login, and cannot end a run."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from transformers import TrainerCallback

from read_back import tensorboard_events
from tiny_runs import ROWS, Heard, Trained
from truetune.config.kinds import Tracker
from truetune.errors import BackendError
from truetune.training.trackers import require_reachable, require_trackers, tracker_places
from truetune.training.trackers.facts import Table, cut
from truetune.training.trackers.guard import GuardedTracker, guarded_trackers
from truetune.training.trackers.mirrors import Mirror
from truetune.training.trackers.places import Situation, keep, tracker_environment
from truetune.training.trackers.required import _NEEDS

TRACKERS: tuple[str, ...] = get_args(Tracker)


@pytest.fixture
def logged_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A home without any login, which is the working directory too."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    asked = {name for needs in _NEEDS.values() for name in needs.variables}
    for name in [name for name in os.environ if name.startswith("WANDB_") or name in asked | {"NETRC"}]:
        monkeypatch.delenv(name)
    return tmp_path


def installed(folder: Path, *modules: str) -> None:
    """Makes modules that can be found, and end the process that imports them."""
    for module in modules:
        path = folder.joinpath(*module.split("."))
        path.mkdir(parents=True)
        for package in (path, *path.parents[: module.count(".")]):
            (package / "__init__.py").write_text("raise SystemExit('imported')\n")


def test_the_trackers_are_those_of_transformers() -> None:
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    assert set(TRACKERS) == set(INTEGRATION_TO_CALLBACK) == set(_NEEDS)


def test_no_tracker_needs_nothing(logged_out: Path) -> None:
    require_trackers([])
    require_reachable([])


@pytest.mark.parametrize("tracker", [name for name in TRACKERS if _NEEDS[name].modules])
def test_a_tracker_that_is_not_installed_is_told_with_its_install_line(
    monkeypatch: pytest.MonkeyPatch, tracker: str
) -> None:
    monkeypatch.setattr("truetune.training.trackers.required.find_spec", lambda _: None)
    with pytest.raises(BackendError, match=f"{tracker} is not installed") as caught:
        require_trackers([tracker])
    assert f"pip install {_NEEDS[tracker].install}" in str(caught.value)


@pytest.mark.parametrize("tracker", ["wandb", "tensorboard", "trackio"])
def test_the_three_that_truetune_ships_with_are_its_own_extras(tracker: str) -> None:
    assert _NEEDS[tracker].install == f"'truetune[{tracker}]'"


def test_a_package_in_a_package_that_is_not_there_is_not_installed() -> None:
    with pytest.raises(BackendError, match="azure_ml is not installed"):
        require_trackers(["azure_ml"])


def test_a_folder_of_wandbs_logs_is_no_client(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "dvclive").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(BackendError, match="dvclive is not installed"):
        require_trackers(["dvclive"])


@pytest.mark.parametrize("tracker", [name for name in TRACKERS if _NEEDS[name].remedy])
def test_g27_a_tracker_without_a_login_is_refused_with_the_way_out_and_taken_with_one(
    logged_out: Path, monkeypatch: pytest.MonkeyPatch, tracker: str
) -> None:
    installed(logged_out, *_NEEDS[tracker].modules)
    monkeypatch.syspath_prepend(logged_out)
    with pytest.raises(BackendError, match=f"{tracker} has no login") as caught:
        require_trackers([tracker])
    assert _NEEDS[tracker].variables[0] in str(caught.value)
    monkeypatch.setenv(_NEEDS[tracker].variables[0], "set")
    require_trackers([tracker])


def test_g27_a_login_that_another_tracker_stored_is_found(logged_out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(logged_out, "comet_ml")
    monkeypatch.syspath_prepend(logged_out)
    (logged_out / ".comet.config").write_text("[comet]\n")
    require_trackers(["comet_ml"])


# --- W&B --------------------------------------------------------------------------------------------------


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
        ("WANDB_API_KEY", "local-" + "0" * 40),
        ("WANDB_API_KEY", "wandb_v1_" + "a_B" * 25),
        ("WANDB_API_KEY", "header.payload.signature"),
        ("WANDB_IDENTITY_TOKEN_FILE", "token"),
    ],
)
def test_g27_offline_disabled_and_logged_in_are_accepted(
    logged_out: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    require_trackers(["wandb"])


@pytest.mark.parametrize("key", ["0" * 39, "local-" + "0" * 39, "0" * 40 + " ", '"' + "0" * 40 + '"', "sk.not.a key"])
def test_g27_a_key_of_another_shape_is_refused_before_wandb_would_end_the_run(
    logged_out: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    from wandb.sdk.lib.wbauth.validation import check_api_key

    monkeypatch.setenv("WANDB_API_KEY", key)
    assert check_api_key(key) is not None
    with pytest.raises(BackendError, match="WANDB_API_KEY is no key") as caught:
        require_trackers(["wandb"])
    assert key not in str(caught.value)


def test_g27_two_logins_are_refused_as_wandb_would(logged_out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_IDENTITY_TOKEN_FILE", "token")
    with pytest.raises(BackendError, match="both are set"):
        require_trackers(["wandb"])


@pytest.mark.parametrize("place", ["wandb/settings", ".config/wandb/settings"])
def test_g27_a_folder_in_which_wandb_offline_was_said_needs_no_login(logged_out: Path, place: str) -> None:
    (logged_out / place).parent.mkdir(parents=True)
    (logged_out / place).write_text("[default]\nmode = offline\n")
    require_trackers(["wandb"])
    require_reachable(["wandb"])


def test_g27_damaged_settings_of_wandbs_say_nothing(logged_out: Path) -> None:
    (logged_out / "wandb").mkdir()
    (logged_out / "wandb" / "settings").write_text("mode = offline\n")
    with pytest.raises(BackendError, match="no login"):
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
    installed(tmp_path / "stub", "wandb")
    check = (
        "from truetune.training.trackers import require_trackers; from truetune.errors import BackendError\n"
        "try: require_trackers(['wandb'])\nexcept BackendError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", check],
        env={"PYTHONPATH": os.pathsep.join([str(tmp_path / "stub"), *filter(None, sys.path)]), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        stdin=subprocess.DEVNULL,
    )
    assert "WANDB_API_KEY" in done.stdout


# --- folders and servers ----------------------------------------------------------------------------------


def test_a_folder_that_cannot_be_made_is_refused(logged_out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (logged_out / "taken").write_text("a file where the folder should be")
    with pytest.raises(BackendError, match=r"logging_dir: \S+/taken/logs cannot be used: \S+/taken is a file"):
        require_trackers(["tensorboard"], logging_dir="taken/logs")
    require_trackers(["tensorboard"], logging_dir="free/logs")
    assert not (logged_out / "free").exists()
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(logged_out / "taken"))
    with pytest.raises(BackendError, match=r"WANDB_DIR: .* is a file"):
        require_trackers(["wandb"])


@pytest.fixture
def server() -> Iterator[str]:
    """Something that takes connections on this machine."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


@pytest.fixture
def nobody() -> str:
    """An address on this machine where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return f"http://127.0.0.1:{listening.getsockname()[1]}"


@pytest.mark.parametrize(
    ("tracker", "variable", "remedy"),
    [
        ("wandb", "WANDB_BASE_URL", "WANDB_MODE=offline"),
        ("mlflow", "MLFLOW_TRACKING_URI", "file:./mlruns"),
        ("trackio", "TRACKIO_SERVER_URL", "start the server"),
    ],
)
def test_g27_a_server_that_does_not_answer_is_told_before_training(
    logged_out: Path,
    monkeypatch: pytest.MonkeyPatch,
    server: str,
    nobody: str,
    tracker: str,
    variable: str,
    remedy: str,
) -> None:
    monkeypatch.setenv(variable, server)
    require_reachable([tracker])
    monkeypatch.setenv(variable, nobody)
    started = time.monotonic()
    with pytest.raises(BackendError, match=r"127\.0\.0\.1 does not answer") as caught:
        require_reachable([tracker])
    assert time.monotonic() - started < 5
    assert remedy in str(caught.value)


def test_g27_no_server_is_asked_where_none_is_used_or_a_proxy_stands_between(
    logged_out: Path, monkeypatch: pytest.MonkeyPatch, nobody: str
) -> None:
    require_reachable(["tensorboard", "mlflow", "trackio"])
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    require_reachable(["mlflow"])
    monkeypatch.setenv("WANDB_BASE_URL", nobody)
    with monkeypatch.context() as offline:
        offline.setenv("WANDB_MODE", "offline")
        require_reachable(["wandb"])
    monkeypatch.setenv("http_proxy", "http://proxy.invalid:3128")
    monkeypatch.setenv("no_proxy", "")
    require_reachable(["wandb"])


# --- in a training ----------------------------------------------------------------------------------------


def test_g27_a_tracker_that_cannot_write_is_a_warning_and_the_run_goes_on(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file where the folder should be")
    heard = Heard()
    trackers = guarded_trackers(
        ("tensorboard",), heard, Situation(tmp_path, "mine", logging_dir=str(tmp_path / "taken"))
    )
    trained = Trained(tmp_path / "run", ROWS, callbacks=trackers)
    assert trained.result.steps == 6
    assert len(trained.logged("loss")) == 6
    (warning,) = heard.warnings
    assert "tensorboard failed" in warning
    assert "taken" in warning


class Failing(TrainerCallback):
    """A tracker that asks, prints, and loses its connection at the second line."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        print("a greeting")
        self.calls.append(f"begin {sys.stdin.isatty()} {sys.stdin.read()!r}")

    def on_log(self, *_: Any, **__: Any) -> None:
        self.calls.append("log")
        if self.calls.count("log") == 2:
            raise ConnectionError("https://user:secret-word@host is gone\nand more lines")

    def on_save(self, *_: Any, **__: Any) -> None:
        self.calls.append("save")

    def on_train_end(self, *_: Any, **__: Any) -> None:
        self.calls.append("end")


def test_g27_a_failure_in_mid_run_is_told_once_and_the_tracker_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    heard, tracker = Heard(), Failing()
    guarded = GuardedTracker("mine", Mirror(tracker, Situation(tmp_path, "run")), heard)
    trained = Trained(tmp_path, ROWS, callbacks=[guarded], save_strategy="steps", save_steps=1)
    guarded.conclude({"loss": 1.0})
    assert trained.result.steps == 6
    assert tracker.calls == ["begin False ''", "log", "save", "log"]
    (warning,) = heard.warnings
    assert warning.startswith("mine failed; from now on metrics go to metrics.jsonl only: https://")
    assert "secret-word" not in warning
    printed = capsys.readouterr()
    assert "a greeting" not in printed.out
    assert "a greeting" in printed.err


class Hearing(TrainerCallback):
    """A tracker that hears."""

    def __init__(self) -> None:
        self.logs: list[tuple[int, dict[str, Any]]] = []
        self.ends: list[str] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        self.logs.append((state.global_step, {name: value for name, value in logs.items() if name != "step"}))

    def on_train_end(self, args: Any, *_: Any, **__: Any) -> None:
        self.ends.append(args.run_name)


def test_a_tracker_hears_the_lines_of_metrics_jsonl_and_no_others(tmp_path: Path) -> None:
    tracker = Hearing()
    guarded = GuardedTracker("mine", Mirror(tracker, Situation(tmp_path, "run", project="p")), Heard())
    trained = Trained(tmp_path, ROWS, validation=ROWS[:4], callbacks=[guarded], eval_strategy="epoch")
    lines = [{name: value for name, value in line.items() if name != "step"} for line in trained.lines]
    assert [logs for _, logs in tracker.logs] == lines
    assert [step for step, _ in tracker.logs] == [line["step"] for line in trained.lines]
    assert tracker.ends == []
    guarded.conclude({})
    guarded.abandon()
    assert tracker.ends == ["run"]


def test_a_resumed_run_has_each_step_once_in_tensorboard(tmp_path: Path) -> None:
    """The first process wrote steps behind its newest checkpoint: they are done again."""
    folder = tmp_path / "run"
    for resumed_at, steps in ((None, 6), (4, 8)):
        trackers = guarded_trackers(("tensorboard",), Heard(), Situation(folder, "run", resumed_at=resumed_at))
        resume_from = folder / "checkpoint-4" if resumed_at else None
        trained = Trained(
            folder,
            ROWS,
            callbacks=trackers,
            max_steps=steps,
            save_strategy="steps",
            save_steps=4,
            resume_from=resume_from,
        )
        for tracker in trackers:
            tracker.conclude({"loss": 0.5})
    events = tensorboard_events(folder / "tensorboard")
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 3, 4, 5, 6, 7, 8]
    written = [event.value for event in events.Scalars("train/loss")][4:]
    assert written == pytest.approx([line["loss"] for line in trained.lines if "loss" in line])
    assert [(event.step, event.value) for event in events.Scalars("final/loss")] == [(8, 0.5)]


def test_trackers_that_ask_the_environment_find_the_project_and_the_run_to_go_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    monkeypatch.setenv("COMET_PROJECT_NAME", "before")
    keep(tmp_path, "mlflow", id="abc", uri="file:./mlruns")
    names = ("mlflow", "comet_ml")
    with tracker_environment(names, Situation(tmp_path, "run", project="mine")):
        assert os.environ["MLFLOW_EXPERIMENT_NAME"] == os.environ["COMET_PROJECT_NAME"] == "mine"
        assert "MLFLOW_RUN_ID" not in os.environ
    assert os.environ["COMET_PROJECT_NAME"] == "before"
    assert "MLFLOW_EXPERIMENT_NAME" not in os.environ
    with tracker_environment(names, Situation(tmp_path, "run", resumed_at=4)):
        assert os.environ["MLFLOW_RUN_ID"] == "abc"
        assert os.environ["COMET_PROJECT_NAME"] == "before"
    monkeypatch.setenv("MLFLOW_RUN_ID", "the user's")
    with tracker_environment(names, Situation(tmp_path, "run", resumed_at=4)):
        assert os.environ["MLFLOW_RUN_ID"] == "the user's"


def test_only_the_trackers_asked_for_are_started(tmp_path: Path) -> None:
    assert guarded_trackers((), Heard(), Situation(tmp_path, "run")) == []
    assert len(guarded_trackers(("tensorboard",), Heard(), Situation(tmp_path, "run"))) == 1


# --- where they are, and how texts look -------------------------------------------------------------------


def test_each_tracker_is_told_with_the_command_that_shows_it(tmp_path: Path) -> None:
    run = tmp_path / "a run"
    assert tracker_places(run) == []
    keep(run, "tensorboard", folder="tensorboard")
    keep(run, "wandb", id="1", url=None, folders=["wandb/one", "/elsewhere/two"])
    keep(run, "trackio", project="my project", name="run")
    keep(run, "mlflow", id="2", uri="file:./mlruns")
    assert dict(tracker_places(run)) == {
        "tensorboard": f"tensorboard --logdir '{run}/tensorboard'",
        "wandb": f"wandb sync '{run}/wandb/one' /elsewhere/two",
        "trackio": "trackio show --project 'my project'",
        "mlflow": "mlflow ui --backend-store-uri file:./mlruns",
    }
    keep(run, "wandb", id="1", url="https://wandb.example.org/me/p/runs/1", folders=["wandb/one"])
    keep(run, "mlflow", id="2", uri="https://mlflow.example.org")
    assert dict(tracker_places(run))["wandb"] == "https://wandb.example.org/me/p/runs/1"
    assert dict(tracker_places(run))["mlflow"] == "https://mlflow.example.org"


def test_damaged_places_are_none(tmp_path: Path) -> None:
    (tmp_path / "trackers.json").write_text('{"wandb": 3, "tensorboard"')
    assert tracker_places(tmp_path) == []


def test_texts_of_rows_are_code_in_markdown_whatever_they_hold() -> None:
    table = Table(("text",), (("# no heading\n```\n<script>|**no bold**",),))
    assert table.as_markdown() == "**text**\n\n    # no heading\n    ```\n    <script>|**no bold**"


def test_long_texts_are_cut_in_the_middle() -> None:
    assert cut("a" * 2_000) == "a" * 2_000
    assert cut("a" * 1_500 + "b" * 1_500) == "a" * 1_000 + " … 1,000 characters … " + "b" * 1_000
