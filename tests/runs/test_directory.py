"""A run's directory: files written whole, checkpoints told complete from half."""

import json
from pathlib import Path

import pytest

from truetune.errors import CheckpointError
from truetune.files import staged_folder, write_json, write_text
from truetune.runs.directory import RunDirectory, checkpoint_step, missing_files, next_directory, now

COMPLETE = ("adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json")


def checkpoint(run: Path, step: int, *, without: str | None = None) -> Path:
    folder = run / "checkpoints" / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    for name in COMPLETE:
        if name != without:
            (folder / name).write_text("x")
    return folder


def test_complete_checkpoints_come_newest_first_by_number(tmp_path: Path) -> None:
    for step in (5, 100, 20):
        checkpoint(tmp_path, step)
    found = RunDirectory(tmp_path).complete_checkpoints()
    assert [path.name for path in found] == ["checkpoint-100", "checkpoint-20", "checkpoint-5"]


@pytest.mark.parametrize("name", COMPLETE)
def test_a_checkpoint_that_lacks_a_file_is_not_complete(tmp_path: Path, name: str) -> None:
    half = checkpoint(tmp_path, 8, without=name)
    assert any(name.split(".")[0] in missing for missing in missing_files(half))
    assert RunDirectory(tmp_path).complete_checkpoints() == []


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(tmp_path / "a.txt", "new" * 100_000 + "\ud800")
    assert (tmp_path / "a.txt").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_a_staged_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    with staged_folder(tmp_path / "out") as staged:
        (staged / "a").write_text("1")
        assert not (tmp_path / "out").exists()
    with pytest.raises(FileNotFoundError), staged_folder(tmp_path / "out") as staged:
        (staged / "b" / "not there").write_text("2")
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "a"]


def test_the_record_is_added_to_and_a_missing_or_damaged_one_is_told(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"run\.json is missing"):
        run.read_record()
    run.update_record(status="running", steps=1)
    run.update_record(status="finished")
    assert run.read_record() == {"status": "finished", "steps": 1}
    run.record.write_text("{")
    with pytest.raises(CheckpointError, match="damaged"):
        run.read_record()


def test_metrics_of_steps_to_be_taken_again_are_forgotten(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    for step in range(1, 6):
        run.append_metrics({"step": step, "loss": float(step)})
    run.forget_metrics_after(3)
    assert [line["step"] for line in run.read_metrics()] == [1, 2, 3]


def test_clearing_a_run_leaves_what_is_not_its_own(tmp_path: Path) -> None:
    checkpoint(tmp_path, 1)
    write_json(tmp_path / "run.json", {})
    (tmp_path / "notes.txt").write_text("mine")
    RunDirectory(tmp_path).clear()
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_runs_are_numbered_by_their_data(tmp_path: Path) -> None:
    assert next_directory("data/train.jsonl", root=tmp_path) == tmp_path / "train-1"
    (tmp_path / "train-1").mkdir()
    assert next_directory("data/train.jsonl", root=tmp_path) == tmp_path / "train-2"


def test_json_is_written_readable_and_exact(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"é": [1.5, None]})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"é": [1.5, None]}


def test_no_reader_ever_sees_half_a_file(tmp_path: Path) -> None:
    import threading

    path, sizes = tmp_path / "run.json", set()
    write_json(path, ["x"] * 50_000)
    is_over = threading.Event()

    def read() -> None:
        while not is_over.is_set():
            try:
                sizes.add(len(json.loads(path.read_text(encoding="utf-8"))))
            except (ValueError, OSError):
                sizes.add(0)

    reader = threading.Thread(target=read)
    reader.start()
    for count in range(50_001, 50_040):
        write_json(path, ["x"] * count)
    is_over.set()
    reader.join()
    assert len(sizes) > 1
    assert min(sizes) >= 50_000
    assert [file.name for file in tmp_path.iterdir()] == ["run.json"]


def test_what_is_written_can_be_read_by_others(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "x")
    with staged_folder(tmp_path / "folder") as staged:
        (staged / "b.txt").write_text("x")
    assert (tmp_path / "a.txt").stat().st_mode & 0o444 == 0o444
    assert (tmp_path / "folder").stat().st_mode & 0o555 == 0o555


def test_a_staged_folder_takes_the_place_of_the_old_one_whole(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("1")
    with staged_folder(tmp_path / "out") as staged:
        (staged / "new").write_text("2")
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["old"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_interrupted_write_leaves_the_old_folder(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("1")
    with pytest.raises(KeyboardInterrupt), staged_folder(tmp_path / "out"):
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "old"]


def test_a_metrics_line_that_was_cut_off_is_passed_over_and_replaced_on_resume(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.append_metrics({"step": 1, "loss": 2.0})
    run.append_metrics({"step": 2, "loss": None})
    with run.metrics.open("a") as file:
        file.write('{"step": 3, "lo')
    assert run.read_metrics() == [{"step": 1, "loss": 2.0}, {"step": 2, "loss": None}]
    run.forget_metrics_after(1)
    run.append_metrics({"step": 2, "loss": 1.0})
    assert run.read_metrics() == [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}]


def test_a_run_without_metrics_has_none(tmp_path: Path) -> None:
    assert RunDirectory(tmp_path).read_metrics() == []
    RunDirectory(tmp_path).forget_metrics_after(0)
    assert RunDirectory(tmp_path).read_metrics() == []


def test_sharded_whole_models_are_complete_checkpoints_too(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, 3, without="adapter_model.safetensors")
    assert missing_files(folder) == ["adapter_model.safetensors or model.safetensors"]
    (folder / "model.safetensors.index.json").write_text("{}")
    assert missing_files(folder) == []
    assert missing_files(tmp_path / "checkpoints" / "checkpoint-99")


def test_a_folder_holds_a_run_by_its_record_or_its_checkpoints(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    assert not run.holds_run()
    checkpoint(tmp_path, 1)
    assert run.holds_run()
    run.clear()
    assert not run.holds_run()
    run.update_record(status="running")
    assert run.holds_run()


@pytest.mark.parametrize(("name", "step"), [("checkpoint-12", 12), ("checkpoint-12.tmp", -1), ("checkpoint", -1)])
def test_the_step_of_a_checkpoint_is_in_its_name(name: str, step: int) -> None:
    assert checkpoint_step(Path(name)) == step


def test_runs_from_python_rows_are_numbered_too(tmp_path: Path) -> None:
    assert next_directory(None, root=tmp_path) == tmp_path / "run-1"
    assert next_directory("org/name", root=tmp_path) == tmp_path / "name-1"


def test_the_time_is_utc_and_to_the_second() -> None:
    from datetime import UTC, datetime

    told = datetime.fromisoformat(now())
    assert told.tzinfo == UTC
    assert abs((datetime.now(UTC) - told).total_seconds()) < 5
