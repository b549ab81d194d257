"""A run's directory: files written whole, checkpoints told complete from half."""

import json
from pathlib import Path

import pytest

from truetune.errors import CheckpointError
from truetune.files import staged_folder, write_json, write_text
from truetune.runs.directory import RunDirectory, missing_files, next_directory

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
