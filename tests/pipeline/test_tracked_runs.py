"""What a run leaves with its trackers, read back from their own files; and trackers that cannot be used (G27)."""

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback

import truetune
import warm
from conftest import write_jsonl
from heard import FAST, Heard
from read_back import (
    tensorboard_events,
    tensorboard_text,
    trackio_config,
    trackio_rows,
    trackio_runs,
    wandb_config,
    wandb_history,
    wandb_records,
    wandb_summary,
)
from truetune.runs.checkpoints import checkpoint_step
from truetune.training.trackers import tracker_places

# Read once, when trackio is imported.
os.environ.setdefault("TRACKIO_DIR", tempfile.mkdtemp(prefix="trackio-"))

SECRET = "AKIAQWERTYUIOPASDFGH"
SHORT = {**FAST, "packing": False, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 1}


def trackio_folder() -> Path:
    """Where Trackio writes in this process."""
    from trackio.utils import TRACKIO_DIR

    return Path(TRACKIO_DIR)


@pytest.fixture(scope="module")
def offline() -> Iterator[pytest.MonkeyPatch]:
    """W&B writes files and asks nobody."""
    with pytest.MonkeyPatch.context() as patched:
        for name in [name for name in os.environ if name.startswith("WANDB_")]:
            patched.delenv(name)
        patched.setenv("WANDB_MODE", "offline")
        patched.setenv("WANDB_SILENT", "true")
        yield patched


class Tracked:
    """A run of two epochs with three trackers, which was killed behind the first and has gone on from step 8."""

    def __init__(self, base: Path, folder: Path) -> None:
        rows = [{"instruction": f"Add {n} and {n + 1}", "output": f"{2 * n + 1} {SECRET}"} for n in range(24)]
        self.heard = Heard()
        self.folder = folder / "run"
        settings = {
            "model": str(base),
            "data": str(write_jsonl(folder / "train.jsonl", rows)),
            "output_dir": str(self.folder),
            "report_to": ["tensorboard", "wandb", "trackio"],
            "project": "tests",
            "test_size": 4,
            "generate": 2,
            "generate_max_new_tokens": 2,
            "save_strategy": "steps",
            "save_steps": 4,
            **SHORT,
        }
        truetune.train(**settings, num_train_epochs=1, listener=Heard())
        self.kept = json.loads((self.folder / "trackers.json").read_text())
        for folder in self.folder.glob("checkpoints/checkpoint-*"):
            if checkpoint_step(folder) > 8:
                shutil.rmtree(folder)
        self.run = truetune.train(**settings, num_train_epochs=2, resume="newest", listener=self.heard)

    @property
    def lines(self) -> list[dict[str, Any]]:
        return self.run.metrics

    def evaluated(self) -> list[int]:
        """The steps of evaluations: at the start, and behind each epoch."""
        return [line["step"] for line in self.lines if "eval_loss" in line]

    def wandb_folders(self) -> list[Path]:
        """Of both processes, in their order."""
        return sorted((self.folder / "wandb").glob("offline-run-*"))


@pytest.fixture(scope="module")
def tracked(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory, offline: pytest.MonkeyPatch) -> Tracked:
    return Tracked(tiny_base, tmp_path_factory.mktemp("tracked"))


def named(line: dict[str, Any]) -> dict[str, Any]:
    """A line of metrics.jsonl under the trackers' names."""
    numbers = {name: value for name, value in line.items() if name != "step"}
    return {
        (f"eval/{name.removeprefix('eval_')}" if name.startswith("eval_") else f"train/{name}"): value
        for name, value in numbers.items()
    }


def mirrored(row: dict[str, Any]) -> dict[str, Any]:
    """A row at a tracker as far as it mirrors metrics.jsonl: nothing of one that holds something else."""
    found = {name: value for name, value in row.items() if name.startswith(("train/", "eval/"))}
    is_line = found.keys() > {"train/global_step"} and not any("answers" in name for name in found)
    return found if is_line else {}


def test_tensorboard_has_each_line_of_metrics_jsonl_at_its_step_once(tracked: Tracked) -> None:
    events = tensorboard_events(tracked.folder / "tensorboard")
    expected: dict[str, list[tuple[int, Any]]] = {}
    for line in tracked.lines:
        for name, value in named(line).items():
            expected.setdefault(name, []).append((line["step"], pytest.approx(value)))
    scalars = [tag for tag in events.Tags()["scalars"] if tag.startswith(("train/", "eval/"))]
    found = {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in scalars}
    assert found.keys() == expected.keys()
    assert {tag: [step for step, _ in found[tag]] for tag in found} == {
        tag: [step for step, _ in expected[tag]] for tag in expected
    }
    unsteady = {"train/tokens_per_second", "train/memory_bytes"}  # Of steps that both processes did.
    assert {tag: found[tag] for tag in found if tag not in unsteady} == {
        tag: expected[tag] for tag in expected if tag not in unsteady
    }


def test_wandb_has_each_line_of_metrics_jsonl_in_one_run(tracked: Tracked) -> None:
    first, second = map(wandb_records, tracked.wandb_folders())
    ids = [next(record.run.run_id for record in records if record.HasField("run")) for records in (first, second)]
    assert ids == [tracked.kept["wandb"]["id"]] * 2
    rows = [mirrored(row) for row in wandb_history(second)]
    lines = [line for line in tracked.lines if line["step"] > 8]
    assert [row for row in rows if row] == [{**named(line), "train/global_step": line["step"]} for line in lines]


def test_trackio_has_each_line_of_metrics_jsonl_in_one_run(tracked: Tracked) -> None:
    kept = tracked.kept["trackio"]
    assert kept["name"] in trackio_runs(trackio_folder(), "tests")
    logged = trackio_rows(trackio_folder(), "tests", kept["name"])
    # The second process began behind step 8: what the first one wrote there came before.
    again = next(n for n, row in enumerate(logged) if n and "run/config" in row)
    rows = [mirrored(row) for row in logged[again:]]
    lines = [line for line in tracked.lines if line["step"] > 8]
    assert [row for row in rows if row] == [{**named(line), "train/global_step": line["step"]} for line in lines]


def test_the_config_goes_along_as_text_and_as_hyperparameters(tracked: Tracked) -> None:
    text = (tracked.folder / "config.yaml").read_text()
    events = tensorboard_events(tracked.folder / "tensorboard")
    assert tensorboard_text(events, "run/config")[-1] == "\n".join(f"    {line}" for line in text.splitlines())
    assert {"_hparams_/experiment", "_hparams_/session_start_info"} <= set(events.summary_metadata)
    (_, folder) = tracked.wandb_folders()
    assert (folder / "files" / "truetune.yaml").read_text() == text
    records = wandb_records(folder)
    assert wandb_config(records)["truetune"]["training"]["learning_rate"] == 1e-3
    assert any(file.path == "truetune.yaml" for record in records for file in record.files.files)
    assert (
        trackio_config(trackio_folder(), "tests", tracked.kept["trackio"]["name"])["training.learning_rate"] == 1e-3
    )


def test_what_became_of_the_rows_goes_along(tracked: Tracked) -> None:
    kept = str(json.loads((tracked.folder / "data-report.json").read_text())["stats"]["train_rows"])
    events = tensorboard_events(tracked.folder / "tensorboard")
    assert f"| rows trained on | {kept} |" in tensorboard_text(events, "run/data")[-1]
    assert wandb_config(wandb_records(tracked.wandb_folders()[1]))["truetune_data"]["rows trained on"] == kept
    name = tracked.kept["trackio"]["name"]
    assert trackio_config(trackio_folder(), "tests", name)["rows.rows trained on"] == kept


def test_samples_go_along_with_what_was_learned_marked(tracked: Tracked) -> None:
    (shown, *_) = tensorboard_text(tensorboard_events(tracked.folder / "tensorboard"), "run/samples")
    assert shown.count("**row**") == 3
    assert "Add 0 and 1" in shown or "Add 1 and 2" in shown
    assert "⟦" in shown
    (table,) = tracked.wandb_folders()[1].glob("files/media/table/run/samples*")
    document = json.loads(table.read_text())
    assert document["columns"] == ["row", "text, ⟦learned⟧"]
    assert all("<|im_start|>assistant\n⟦" in text and "<|im_end|>⟧" in text for _, text in document["data"])
    rows = trackio_rows(trackio_folder(), "tests", tracked.kept["trackio"]["name"])
    (first, _) = [row["run/samples"]["_value"] for row in rows if "run/samples" in row]
    assert [*first[0]] == ["row", "text, ⟦learned⟧"]


def test_answers_to_validation_rows_go_along_at_each_evaluation(tracked: Tracked) -> None:
    events = tensorboard_events(tracked.folder / "tensorboard")
    steps = [event.step for event in events.Tensors("eval/answers/text_summary")]
    assert sorted(set(steps)) == tracked.evaluated()
    answered = tensorboard_text(events, "eval/answers")[-1]
    assert answered.count("**expected**") == 2
    assert "exact_match" in answered
    assert [*tracked.wandb_folders()[1].glob("files/media/table/eval/answers*")]
    rows = trackio_rows(trackio_folder(), "tests", tracked.kept["trackio"]["name"])
    start, first, second = tracked.evaluated()
    assert [row["train/global_step"] for row in rows if "eval/answers" in row] == [start, first, first, second]


def test_what_came_of_the_run_goes_along(tracked: Tracked) -> None:
    record = json.loads((tracked.folder / "run.json").read_text())
    events = tensorboard_events(tracked.folder / "tensorboard")
    summary = wandb_summary(wandb_records(tracked.wandb_folders()[1]))
    final = trackio_rows(trackio_folder(), "tests", tracked.kept["trackio"]["name"])[-1]
    for name, value in {"loss": record["final_loss"], "tokens": record["tokens"], "verified": True}.items():
        assert events.Scalars(f"final/{name}")[-1].value == pytest.approx(float(value))
        assert summary[f"final/{name}"] == final[f"final/{name}"] == value
    assert summary["final/eval_loss"] == record["eval_loss"]
    assert final["final/peak_memory_bytes"] == record["peak_memory_bytes"]


def test_no_secret_reaches_a_tracker(tracked: Tracked) -> None:
    folders = [tracked.folder / "tensorboard", tracked.folder / "wandb", trackio_folder()]
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 6
    assert not [path for path in files if SECRET.encode() in path.read_bytes()]
    assert any(f"{SECRET[:8]}…".encode() in path.read_bytes() for path in files)


def test_a_run_tells_where_each_tracker_has_it(tracked: Tracked) -> None:
    folders = " ".join(map(str, tracked.wandb_folders()))
    assert tracker_places(tracked.folder) == [
        ("tensorboard", f"tensorboard --logdir {tracked.folder / 'tensorboard'}"),
        ("wandb", f"wandb sync {folders}"),
        ("trackio", "trackio show --project tests"),
    ]
    assert f"tensorboard: tensorboard --logdir {tracked.folder / 'tensorboard'}" in tracked.heard.lines
    assert not [line for line in tracked.heard.lines if line.startswith("warning") and "failed" in line]


def test_a_run_that_ends_leaves_no_run_of_wandbs_open(tracked: Tracked) -> None:
    import wandb

    assert wandb.run is None
    records = wandb_records(tracked.wandb_folders()[1])
    assert [record.exit.exit_code for record in records if record.HasField("exit")] == [0]


# --- other runs -------------------------------------------------------------------------------------------


def short(base: Path, rows: Path, folder: Path, **more: Any) -> dict[str, Any]:
    """Settings of a run of few steps."""
    return {"model": str(base), "data": str(rows), "output_dir": str(folder / "run"), **SHORT, **more}


class Breaks(TrainerCallback):
    """A callback of the user's that ends the run."""

    def on_step_end(self, *_: Any, **__: Any) -> None:
        raise RuntimeError("broken")


def test_a_run_that_fails_has_failed_at_its_trackers_too(
    tiny_base: Path, rows: Path, tmp_path: Path, offline: pytest.MonkeyPatch
) -> None:
    import wandb

    settings = short(tiny_base, rows, tmp_path, max_steps=2)
    with pytest.raises(RuntimeError, match="broken"):
        truetune.train(**settings, report_to="wandb", callbacks=[Breaks()])
    assert wandb.run is None
    (folder,) = (tmp_path / "run" / "wandb").glob("offline-run-*")
    assert [each.exit.exit_code for each in wandb_records(folder) if each.HasField("exit")] == [1]


def test_a_run_of_the_users_own_at_wandb_is_gone_on_with_and_left_open(
    tiny_base: Path, rows: Path, tmp_path: Path, offline: pytest.MonkeyPatch
) -> None:
    import wandb

    settings = short(tiny_base, rows, tmp_path, max_steps=2)
    with wandb.init(dir=str(tmp_path), project="mine", mode="offline") as own:
        truetune.train(**settings, report_to="wandb")
        assert wandb.run is own
        assert not (tmp_path / "run" / "wandb").exists()
        folder = Path(own.dir).parent
    logged = wandb_history(wandb_records(folder))
    assert [row["train/global_step"] for row in logged if "train/loss" in row] == [1, 2], logged
    assert "final/loss" in wandb_summary(wandb_records(folder))


def test_no_row_leaves_a_run_that_shows_none_and_a_name_that_is_taken_gets_a_number(
    tiny_base: Path, rows: Path, tmp_path: Path
) -> None:
    settings = short(tiny_base, rows, tmp_path, max_steps=1)
    for _ in range(2):
        truetune.train(
            **settings, report_to=["trackio"], report_rows=0, run_name="once", project="taken", overwrite=True
        )
    assert trackio_runs(trackio_folder(), "taken") == {"once", "once-2"}
    logged = trackio_rows(trackio_folder(), "taken", "once-2")
    assert not [row for row in logged if "run/samples" in row]
    assert any("train/loss" in row for row in logged)


def test_g27_without_a_tracker_no_client_is_initialised(
    tiny_base: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import trackio
    import wandb

    asked: list[str] = []
    monkeypatch.setattr(wandb, "init", lambda **_: asked.append("wandb"))
    monkeypatch.setattr(trackio, "init", lambda **_: asked.append("trackio"))
    monkeypatch.delenv("WANDB_MODE", raising=False)
    settings = short(tiny_base, rows, tmp_path, max_steps=1)
    run = truetune.train(**settings)
    assert run.status == "finished"
    assert asked == []
    assert not (run.directory / "trackers.json").exists()


def test_g27_disabled_trains_and_leaves_nothing(
    tiny_base: Path, rows: Path, tmp_path: Path, offline: pytest.MonkeyPatch
) -> None:
    settings = short(tiny_base, rows, tmp_path, max_steps=1)
    heard = Heard()
    with offline.context() as disabled:
        disabled.setenv("WANDB_MODE", "disabled")
        run = truetune.train(**settings, report_to="wandb", listener=heard)
    assert run.status == "finished"
    assert not [line for line in heard.lines if "wandb" in line]
    assert not (run.directory / "wandb").exists()


def test_g27_the_command_refuses_within_five_seconds_and_reads_no_standard_input(
    tiny_base: Path, rows: Path, tmp_path: Path
) -> None:
    """As on a cluster: a client, no login, and a standard input that never comes to an end."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    words = ("--model", str(tiny_base), "--data", str(rows), "--output-dir", str(tmp_path / "run"), "report_to=wandb")
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    waiting, _open = os.pipe()
    try:
        done = subprocess.run(
            [sys.executable, "-m", "truetune", "train", *words],
            stdin=waiting,
            capture_output=True,
            text=True,
            env={**environment, "HOME": str(tmp_path)},
            cwd=tmp_path,
            timeout=120,
            check=False,
        )
    finally:
        os.close(waiting)
        os.close(_open)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # Its own seconds: the machine may be busy.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 5
    assert done.returncode == 1
    assert "WANDB_API_KEY" in done.stderr
    assert "offline" in done.stderr
    assert done.stdout == ""
    assert not (tmp_path / "run").exists()


# --- W&B online -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def online(tiny_base: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What tests/tracked_online.py says; its W&B waits two seconds for a server that has gone."""
    folder = tmp_path_factory.mktemp("online")
    clean = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    wandb = {"WANDB_API_KEY": "0" * 40, "WANDB_SILENT": "true", "WANDB_FINISH_TIMEOUT": "2"}
    wandb |= {f"WANDB_{name}_DIR": str(folder / name.lower()) for name in ("CACHE", "CONFIG", "DATA")}
    tests = Path(__file__).parents[1]
    done = subprocess.run(
        warm.python(tests / "tracked_online.py", tiny_base, rows, folder),
        env={**clean, **wandb},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


def test_a_run_at_a_server_is_told_by_its_address(online: dict[str, Any]) -> None:
    ((tracker, address),) = online["kept"]["places"]
    assert tracker == "wandb"
    assert address == f"{online['url']}/me/p/runs/{online['runs'][0]}"
    assert f"wandb: {address}" in online["kept"]["heard"]


def test_a_resumed_run_goes_on_in_its_run_at_the_server(online: dict[str, Any]) -> None:
    assert len(set(online["runs"])) == 1
    assert online["again"]["places"] == online["kept"]["places"]
    steps = [line["train/global_step"] for line in online["lines"] if "train/loss" in line]
    assert steps == [1, 2, 3, 4]


def test_g27_a_server_that_goes_away_in_mid_run_is_a_warning_once_and_the_run_ends(
    online: dict[str, Any],
) -> None:
    lost = online["lost"]
    assert (lost["status"], lost["steps"]) == ("finished", 6)
    warnings = [line for line in lost["heard"] if line.startswith("warning: wandb")]
    assert len(warnings) == 1
    assert "wandb sync" in warnings[0]


# --- trackers that are passed through ---------------------------------------------------------------------

MLFLOW = '''
"""As much of MLflow's interface as its callback in transformers and truetune use; calls are kept."""
import types

__version__ = "3.1.0"
calls = []
utils = types.SimpleNamespace(
    validation=types.SimpleNamespace(MAX_PARAM_VAL_LENGTH=6000, MAX_PARAMS_TAGS_PER_BATCH=100)
)
_run = None


def is_tracking_uri_set():
    return False


def get_tracking_uri():
    return "file:./mlruns"


def active_run():
    return _run


def start_run(run_name=None, nested=False):
    global _run
    import os

    _run = types.SimpleNamespace(info=types.SimpleNamespace(run_id=os.environ.get("MLFLOW_RUN_ID", "first")))
    calls.append(("start_run", run_name, _run.info.run_id))


def set_experiment(name):
    calls.append(("set_experiment", name))


def log_params(params, synchronous=True):
    calls.append(("log_params", params))


def log_metrics(metrics, step=None, synchronous=True):
    if breaks_at is not None and step is not None and step >= breaks_at:
        raise ConnectionError("the tracking server is gone")
    calls.append(("log_metrics", metrics, step))


def log_text(text, file):
    calls.append(("log_text", text, file))


def end_run(status="FINISHED"):
    global _run
    _run = None
    calls.append(("end_run", status))


breaks_at = None
'''


@pytest.fixture
def mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A stand-in for the library, which would bring another pyarrow along."""
    (tmp_path / "stub").mkdir()
    (tmp_path / "stub" / "mlflow.py").write_text(MLFLOW)
    monkeypatch.syspath_prepend(tmp_path / "stub")
    for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
        monkeypatch.delenv(name)
    import mlflow

    yield mlflow
    del sys.modules["mlflow"]


def test_mlflow_gets_metrics_config_and_scores_and_a_resumed_run_goes_on_in_its_run(
    tiny_base: Path, rows: Path, tmp_path: Path, mlflow: Any
) -> None:
    settings = short(tiny_base, rows, tmp_path)
    train = {"report_to": "mlflow", "project": "mine", "save_strategy": "steps", "save_steps": 1}
    run = truetune.train(**settings, max_steps=2, **train)
    kinds = [call[0] for call in mlflow.calls]
    assert ("set_experiment", "mine") in mlflow.calls
    assert ("start_run", "run", "first") in mlflow.calls
    metrics = [(step, values["loss"]) for _, values, step in _logged(mlflow) if "loss" in values]
    assert metrics == [(line["step"], line["loss"]) for line in run.metrics if "loss" in line]
    assert ("log_text", (run.directory / "config.yaml").read_text(), "config.yaml") in mlflow.calls
    assert _logged(mlflow)[-1][1]["final/loss"] == run.final_loss
    assert mlflow.calls[-1] == ("end_run", "FINISHED")
    assert tracker_places(run.directory) == [("mlflow", "mlflow ui --backend-store-uri file:./mlruns")]
    truetune.train(**settings, max_steps=3, resume="newest", **train)
    assert ("start_run", "run", "first") in mlflow.calls[len(kinds) :]


def _logged(mlflow: Any) -> list[Any]:
    return [call for call in mlflow.calls if call[0] == "log_metrics"]


def test_g27_a_server_of_mlflows_that_goes_away_is_a_warning_once(
    tiny_base: Path, rows: Path, tmp_path: Path, mlflow: Any
) -> None:
    mlflow.breaks_at = 2
    heard = Heard()
    settings = short(tiny_base, rows, tmp_path)
    run = truetune.train(**settings, report_to="mlflow", max_steps=4, listener=heard)
    assert run.status == "finished"
    assert [line["step"] for line in run.metrics if "loss" in line] == [1, 2, 3, 4]
    warned = [line for line in heard.lines if "mlflow" in line and line.startswith("warning")]
    assert warned == [
        "warning: mlflow failed; from now on metrics go to metrics.jsonl only: the tracking server is gone"
    ]


def test_a_run_that_fails_has_failed_at_mlflow(tiny_base: Path, rows: Path, tmp_path: Path, mlflow: Any) -> None:
    settings = short(tiny_base, rows, tmp_path)
    with pytest.raises(RuntimeError, match="broken"):
        truetune.train(**settings, report_to="mlflow", callbacks=[Breaks()])
    assert mlflow.calls[-1] == ("end_run", "FAILED")
