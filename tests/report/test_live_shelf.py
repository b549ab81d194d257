"""The runs that are served: all there are, each under an id of its own, and read only when they have changed."""

import os
from pathlib import Path
from typing import Any

import pytest

from live import log_steps, write_run
from truetune.errors import CheckpointError
from truetune.pipeline.review.live import shelf as room
from truetune.pipeline.review.live.pages import head_of, line_of
from truetune.pipeline.review.live.shelf import Shelf
from truetune.runs.ledger import read_run


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the runs that were read, in order. Looking again is not put off."""
    names: list[str] = []

    def counted(path: Any) -> Any:
        names.append(Path(path).name)
        return read_run(path)

    monkeypatch.setattr(room, "read_run", counted)
    monkeypatch.setattr(room, "_REST", 0)
    return names


def by_name(shelf: Shelf) -> dict[str, str]:
    return {run.name: run.entry.status for run in shelf.runs().values()}


def test_runs_are_named_beneath_their_folder_and_known_by_ids_that_are_no_paths(tmp_path: Path) -> None:
    for name in ("a", "sweep/rate=1", "sweep/rate=2"):
        write_run(tmp_path / name)
    shelf = Shelf([tmp_path])
    assert by_name(shelf) == dict.fromkeys(("a", "sweep/rate=1", "sweep/rate=2"), "finished")
    for id, run in shelf.runs().items():
        assert id.isalnum()
        assert (found := shelf.run(id))
        assert found.entry.path == run.entry.path
    assert shelf.run(str(tmp_path / "a")) is None
    assert shelf.run("../a") is None


def test_a_run_that_is_named_twice_is_one_and_one_may_be_named_alone(tmp_path: Path) -> None:
    write_run(tmp_path / "runs" / "a")
    assert by_name(Shelf([tmp_path / "runs" / "a"])) == {"a": "finished"}
    assert list(by_name(Shelf([tmp_path / "runs", tmp_path / "runs" / "a"]))) == ["runs/a"]


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such folder"):
        Shelf([tmp_path / "none"])


def test_only_what_has_changed_is_read_again(tmp_path: Path, read: list[str]) -> None:
    runs = {name: write_run(tmp_path / name, steps=3) for name in ("a", "b", "c")}
    shelf = Shelf([tmp_path])
    before = dict(shelf.runs())
    assert read == ["a", "b", "c"]
    assert all(shelf.runs()[id] is run for id, run in before.items())
    assert read == ["a", "b", "c"]
    runs["b"].update_record(final_loss=0.25)
    assert {run.name: run.entry.final_loss for run in shelf.runs().values()} == {"a": 1.0, "b": 0.25, "c": 1.0}
    assert read == ["a", "b", "c", "b"]


def test_new_runs_come_and_removed_ones_go(tmp_path: Path, read: list[str]) -> None:
    run = write_run(tmp_path / "a")
    shelf = Shelf([tmp_path])
    (id,) = shelf.runs()
    run.record.unlink()
    write_run(tmp_path / "b")
    assert by_name(shelf) == {"b": "finished"}
    assert shelf.run(id) is None


def test_a_run_at_work_is_asked_each_time_since_its_process_may_have_died(tmp_path: Path, read: list[str]) -> None:
    run = write_run(tmp_path / "a", steps=2, status="running")
    shelf = Shelf([tmp_path])
    with run.locked():
        assert by_name(shelf) == {"a": "running"}
    assert by_name(shelf) == {"a": "dead"}


@pytest.mark.parametrize("name", ["run.json", "metrics.jsonl"])
@pytest.mark.parametrize("kind", ["link", "pipe", "folder", "device", "garbage"])
def test_a_hostile_run_is_told_as_unreadable_and_holds_nobody_up(name: str, kind: str, tmp_path: Path) -> None:
    write_run(tmp_path / "good")
    bad = write_run(tmp_path / "bad", steps=1, status="running").path / name
    outside = tmp_path / "secret.json"
    outside.write_text((tmp_path / "good" / "run.json").read_text().replace("org/model", "not yours"))
    bad.unlink()
    match kind:
        case "link":
            bad.symlink_to(outside)
        case "pipe":
            os.mkfifo(bad)
        case "folder":
            bad.mkdir()
        case "device":
            bad.symlink_to("/dev/zero")
        case "garbage":
            bad.write_bytes(b"\x00\xff" * 1000 + b"[" * 100_000)
    found = {run.name: run for run in Shelf([tmp_path]).runs().values()}
    assert found["good"].entry.status == "finished"
    expected = "dead" if (name, kind) == ("metrics.jsonl", "garbage") else "unreadable"
    assert found["bad"].entry.status == expected
    assert "not yours" not in repr(line_of(found["bad"])) + repr(head_of(found["bad"]))


def test_a_record_of_absurd_size_is_not_read(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a")
    with run.record.open("r+b") as file:
        file.truncate(10**12)
    assert by_name(Shelf([tmp_path])) == {"a": "unreadable"}


def test_a_lines_figures_are_numbers_or_nothing(tmp_path: Path) -> None:
    odd = {"steps": 10**400, "final_loss": float("nan"), "eval_loss": "low", "total_steps": True}
    run = write_run(tmp_path / "a")
    run.update_record(**odd, error="x" * 10_000)
    (found,) = Shelf([tmp_path]).runs().values()
    line = line_of(found)
    assert [line[name] for name in ("steps", "loss", "eval_loss", "total_steps")] == [None] * 4
    assert len(line["problem"]) < 300


def test_the_time_left_follows_from_the_last_step(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", steps=25, total=100, status="running")
    with run.locked():
        (found,) = Shelf([tmp_path]).runs().values()
        head = head_of(found)
    # 75 steps of 64 tokens, 640 of them a second.
    assert head["seconds_left"] == pytest.approx(7.5)
    assert (head["steps"], head["learning_rate"]) == (25, 1e-4)
    log_steps(run, range(26, 27))
    (dead,) = Shelf([tmp_path]).runs().values()
    assert head_of(dead)["seconds_left"] is None


def test_a_run_that_has_logged_one_step_tells_of_it(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", steps=1, total=100, status="running")
    with run.locked():
        (found,) = Shelf([tmp_path]).runs().values()
        head = head_of(found)
    assert (head["steps"], head["learning_rate"], head["seconds_left"]) == (1, 1e-4, pytest.approx(9.9))
