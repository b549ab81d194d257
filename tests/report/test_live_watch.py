"""What is new in a run's files: each whole line once, whoever writes meanwhile; nothing that is no file of a run."""

import json
import os
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from live import log_steps, step_line, write_run
from properties import examples
from truetune.pipeline.review.live.watch import Position, log_news, news, parse_position, snapshot
from truetune.runs.directory import RunDirectory

SECRET = "hf_" + "QwErTyUiOpAsDfGhJkLzXcVbNmQwErTyUi"


def steps_of(curves: object) -> list[int]:
    assert isinstance(curves, dict)
    found = [curve for chart in curves["charts"] for curve in chart["curves"] if curve["key"] == "loss"]
    steps: list[int] = found[0]["steps"] if found else []
    return steps


@given(cuts=st.lists(st.integers(0, 2_000), max_size=6))
@examples(100)
def test_a_snapshot_and_what_comes_after_it_are_all_lines_once(
    cuts: list[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Wherever a writer's bytes happen to end when somebody looks."""
    run = RunDirectory(tmp_path_factory.mktemp("run"))
    whole = b"".join(json.dumps(step_line(step)).encode() + b"\n" for step in range(1, 12))
    places = [0, *sorted(min(cut, len(whole)) for cut in cuts), len(whole)]
    run.metrics.write_bytes(whole[: places[1]])
    first = snapshot(run)
    steps, position = steps_of(first.curves), first.position
    for start, end in pairwise(places[1:]):
        with run.metrics.open("ab") as file:
            file.write(whole[start:end])
        found = news(run, position)
        assert not found.is_restarted
        steps += [int(line["step"] or 0) for line in found.lines]
        position = found.position
    assert steps == list(range(1, 12))


def test_nothing_new_is_nothing(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", steps=5)
    position = snapshot(run).position
    assert news(run, position).lines == ()
    assert news(run, position).position == position


def test_a_run_without_metrics_yet_is_heard_from_its_first_line(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a")
    run.metrics.unlink(missing_ok=True)
    first = snapshot(run)
    assert (first.curves["charts"], first.problem) == ([], "")
    log_steps(run, range(1, 3))
    assert [line["step"] for line in news(run, first.position).lines] == [1, 2]


def test_a_run_that_went_back_to_a_checkpoint_is_begun_anew(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", steps=9)
    position = snapshot(run).position
    kept = run.metrics.read_text().splitlines(keepends=True)[:4]
    staged = tmp_path / "staged"
    staged.write_text("".join(kept))
    staged.replace(run.metrics)
    log_steps(run, range(5, 60))
    found = news(run, position)
    assert found.is_restarted
    log_steps(run, range(60, 61))
    assert [line["step"] for line in news(run, found.position).lines if "loss" in line] == [60]


def test_another_run_in_the_same_file_is_begun_anew(tmp_path: Path) -> None:
    """A new file may get the number of the one that was removed, and may have grown as long."""
    run = write_run(tmp_path / "a", steps=3)
    position = snapshot(run).position
    run.metrics.write_text("".join(json.dumps(step_line(step, loss=9.5)) + "\n" for step in range(1, 30)))
    assert news(run, position).is_restarted
    run.metrics.write_text("")
    assert news(run, position).is_restarted


def test_more_than_can_be_told_line_by_line_is_a_snapshot(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", steps=1)
    position = snapshot(run).position
    log_steps(run, range(2, 9_000))
    found = news(run, position)
    assert (found.is_restarted, found.lines) == (True, ())
    assert found.position == snapshot(run).position


def test_a_line_without_an_end_holds_nothing_up(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", steps=2)
    position = snapshot(run).position
    with run.metrics.open("a") as file:
        file.write("x" * 3_000_000)
    found = news(run, position)
    assert found.is_restarted
    assert news(run, found.position).lines == ()
    with run.metrics.open("a") as file:
        file.write("\n" + json.dumps(step_line(3)) + "\n")
    assert [line["step"] for line in news(run, found.position).lines] == [3]


def test_what_is_no_number_is_a_gap_and_what_is_no_line_is_left_out(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", steps=1)
    position = snapshot(run).position
    odd = [
        '{"step": 2, "loss": NaN, "grad_norm": null, "note": "</script>", "learning_rate": true, "deep": {"a": 1}}',
        '{"loss": 1.0}',
        '{"step": "3", "loss": 1.0}',
        '{"step": 1e99, "loss": 1.0}',
        "[1, 2]",
        "\udcff\x00 {",
        "[" * 100_000,
        '{"step": 4, "loss": 0.123456789}',
    ]
    with run.metrics.open("a", encoding="utf-8", errors="surrogateescape") as file:
        file.write("\n".join(odd) + "\n")
    nothing = {"loss": None, "grad_norm": None, "learning_rate": None, "deep": None, "step": 2}
    assert list(news(run, position).lines) == [nothing, {"step": 4, "loss": 0.123457}]
    assert "damaged" in snapshot(run).problem


@pytest.mark.parametrize("kind", ["link", "pipe", "folder", "device"])
def test_what_is_no_file_of_the_run_is_not_read(kind: str, tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", steps=1)
    outside = tmp_path / "outside"
    outside.write_text(json.dumps(step_line(1)) + "\nnot yours\n")
    for file in (run.metrics, run.log):
        file.unlink(missing_ok=True)
        match kind:
            case "link":
                file.symlink_to(outside)
            case "pipe":
                os.mkfifo(file)
            case "folder":
                file.mkdir()
            case "device":
                file.symlink_to("/dev/zero")
    assert snapshot(run).curves["charts"] == []
    assert "cannot be read" in snapshot(run).problem
    assert news(run, Position()).lines == ()
    assert log_news(run.log, None) is None


def test_only_the_end_of_an_endless_run_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = write_run(tmp_path / "a", steps=100)
    monkeypatch.setattr("truetune.pipeline.review.live.watch._DRAWN", 2_000)
    found = snapshot(run)
    steps = steps_of(found.curves)
    assert steps == list(range(steps[0], 101))
    assert 80 < steps[0] < 100
    assert "end" in found.problem
    assert found.position.offset == run.metrics.stat().st_size


@pytest.mark.parametrize("text", ["", "x", "1", "-1-ab", "1-AB", "1e3-ab", "1-ab/..", "9" * 30 + "-ab", "١-ab"])
def test_a_position_that_is_none_is_the_beginning(text: str) -> None:
    assert parse_position(text) == Position()


def test_a_position_comes_back_as_it_went(tmp_path: Path) -> None:
    position = snapshot(write_run(tmp_path / "a", steps=2)).position
    assert parse_position(str(position)) == position != Position()


# --- the log ----------------------------------------------------------------------------------------------


def test_the_log_is_told_from_its_end_and_then_as_it_grows(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    assert log_news(log, None) is None
    log.write_text("".join(f"line {number}\n" for number in range(10_000)) + "half a li")
    first = log_news(log, None)
    assert first is not None
    assert first.is_whole
    assert first.text.startswith("line ")
    assert first.text.endswith("line 9999\n")
    assert len(first.text) < 40_000
    assert log_news(log, first.position) is None
    with log.open("a") as file:
        file.write("ne\nnext\n")
    second = log_news(log, first.position)
    assert second is not None
    assert (second.text, second.is_whole) == ("half a line\nnext\n", False)


def test_a_log_that_began_anew_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    log.write_text("old\n" * 50)
    first = log_news(log, None)
    assert first is not None
    log.write_text("new\n")
    second = log_news(log, first.position)
    assert second is not None
    assert (second.text, second.is_whole) == ("new\n", True)


def test_a_log_is_plain_text_without_keys(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    log.write_bytes(f"\x1b[31mred\x1b[0m\x07 {SECRET}\n10%\r20%\r30%\nüber\xff\n".encode("latin-1"))
    found = log_news(log, None)
    assert found is not None
    assert "\x1b" not in found.text
    assert "\x07" not in found.text
    assert SECRET not in found.text
    assert found.text.startswith("red hf_QwErT…\n30%\n")
