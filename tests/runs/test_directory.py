"""A run's directory: files written whole, checkpoints told complete from half."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from truetune.errors import CheckpointError
from truetune.files import leftovers, remove_folder, staged_file, staged_folder, write_json, write_text
from truetune.runs.directory import RunDirectory, answers_behind, answers_file, next_directory, now, public


def write_half(path: Path) -> None:
    path.write_text("new" * 100_000)
    raise OSError("full")


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "old")
    with pytest.raises(OSError, match="full"), staged_file(tmp_path / "a.txt") as staged:
        write_half(staged)
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


def test_a_run_that_goes_on_forgets_how_it_ended(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.update_record(status="failed", error="no space")
    run.begin_record(started="now")
    assert run.read_record() == {"status": "running", "started": "now"}


@pytest.mark.parametrize(
    ("word", "kept"),
    [
        ("hf_token=abc", "hf_token=***"),
        ("--api-key: s3cr3t", "--api-key: ***"),
        ("https://me:pass@host/x", "https://***@host/x"),
        ("hf_abcdefghijklmnopqrstuv", "***"),
        ("learning_rate=1e-4", "learning_rate=1e-4"),
        ("data=tokens.jsonl", "data=tokens.jsonl"),
    ],
)
def test_a_recorded_command_holds_no_secret(word: str, kept: str) -> None:
    assert public(["truetune", word]) == ["truetune", kept]


def test_clearing_a_run_leaves_what_is_not_its_own(tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / "checkpoint-1").mkdir(parents=True)
    write_json(tmp_path / "run.json", {})
    (tmp_path / "notes.txt").write_text("mine")
    RunDirectory(tmp_path).clear()
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_answers_of_later_evaluations_are_known_by_their_step(tmp_path: Path) -> None:
    for name in ("step-0.jsonl", "step-9.jsonl", "step-10.jsonl", "step-x.jsonl", "notes.txt"):
        (tmp_path / name).touch()
    assert answers_behind(tmp_path, 9) == [answers_file(tmp_path, 10)]
    assert answers_behind(tmp_path / "missing", 0) == []


def test_clearing_a_run_takes_along_what_was_made_of_it(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    for name, files in {
        "merged": ("config.json", "manifest.json"),
        "desk-ollama": ("card.json", "model.gguf"),
        "site": ("manifest.json",),
        "base": ("config.json", "manifest.json"),
    }.items():
        (tmp_path / name).mkdir()
        for file in files:
            (tmp_path / name / file).write_text("{}")
    run.clear(base=tmp_path / "base")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "site"]


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


def test_a_metrics_line_that_was_cut_off_is_passed_over(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.append_metrics({"step": 1, "loss": 2.0})
    run.append_metrics({"step": 2, "loss": None})
    with run.metrics.open("a") as file:
        file.write('{"step": 3, "lo')
    assert run.read_metrics() == [{"step": 1, "loss": 2.0}, {"step": 2, "loss": None}]


def test_a_run_without_metrics_has_none(tmp_path: Path) -> None:
    assert RunDirectory(tmp_path).read_metrics() == []


def test_runs_from_python_rows_are_numbered_too(tmp_path: Path) -> None:
    assert next_directory(None, root=tmp_path) == tmp_path / "run-1"
    assert next_directory("org/name", root=tmp_path) == tmp_path / "name-1"


def test_the_time_is_utc_and_to_the_second() -> None:
    from datetime import UTC, datetime

    told = datetime.fromisoformat(now())
    assert told.tzinfo == UTC
    assert abs((datetime.now(UTC) - told).total_seconds()) < 5


# --- one at a time ------------------------------------------------------------------------------------------

HOLDER = """
import sys
from pathlib import Path
from truetune.runs.directory import RunDirectory

with RunDirectory(Path(sys.argv[1])).locked():
    print("locked", flush=True)
    sys.stdin.read()
"""


def test_two_trainings_never_share_a_directory_and_a_killed_ones_lock_is_gone(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "run")
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(directory.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout
    assert holder.stdout.readline() == "locked\n"
    with pytest.raises(CheckpointError, match="another training is running there"), directory.locked():
        pytest.fail("it is locked")
    holder.kill()
    holder.communicate()
    with directory.locked():
        directory.update_record(status="running")
    assert directory.read_record() == {"status": "running"}


def test_a_directory_made_for_nothing_is_gone_again(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="refused"), RunDirectory(tmp_path / "new").locked():
        raise ValueError("refused")
    assert list(tmp_path.iterdir()) == []


def test_what_killed_processes_left_is_swept_and_nothing_else(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    for place in (directory.path, directory.checkpoints):
        (place / ".unfinished-checkpoint-4-abc").mkdir(parents=True)
        (place / ".unfinished-run.json-abc").write_text("{")
        (place / ".mine").write_text("kept")
    with directory.locked():
        assert {path.name for path in tmp_path.rglob("*")} == {"checkpoints", ".mine", ".lock"}


def test_a_folder_that_is_removed_loses_its_name_before_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "doomed").mkdir()
    (tmp_path / "doomed" / "file").write_text("x")
    monkeypatch.setattr("shutil.rmtree", lambda *_args, **_options: None)  # Killed before the first file is gone.
    remove_folder(tmp_path / "doomed")
    assert not (tmp_path / "doomed").exists()
    assert [path.name for path in leftovers(tmp_path)[0].iterdir()] == ["file"]


def test_a_link_is_removed_and_not_what_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "others").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "others")
    remove_folder(tmp_path / "link")
    assert [path.name for path in tmp_path.iterdir()] == ["others"]


def test_files_and_names_are_flushed_before_a_folder_gets_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[str] = []

    def flush(handle: int) -> None:
        flushed.append(Path(f"/proc/self/fd/{handle}").resolve().name)

    monkeypatch.setattr("os.fsync", flush)
    replace = os.replace
    monkeypatch.setattr("os.replace", lambda *paths: (flushed.append("named"), replace(*paths)))
    with staged_folder(tmp_path / "out") as staged:
        (staged / "deep").mkdir()
        (staged / "deep" / "a").write_text("1")
    assert flushed[:3] == ["deep", "a", staged.name]
    assert flushed[3:] == ["named", tmp_path.name]
