"""A run's log: all that was said, once, without secrets, and never at the run's cost."""

import os
import re
from pathlib import Path

import pytest

from truetune.runs import log as log_module
from truetune.runs.log import Repeats, RunLog


@pytest.fixture
def said() -> list[str]:
    """What the log tells of itself."""
    return []


@pytest.fixture
def log(said: list[str]) -> RunLog:
    return RunLog(warn=said.append)


def lines(path: Path) -> list[str]:
    """The file's lines without their times."""
    return [re.sub(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  ", "", line) for line in path.read_text().splitlines()]


def test_what_was_said_before_there_was_a_directory_is_in_the_log_with_its_time(log: RunLog, tmp_path: Path) -> None:
    log.say("reading rows")
    log.open(tmp_path / "log.txt", goes_on=False)
    log.say("loading\nthe model")
    log.begin()
    log.close()
    heading, *others = (tmp_path / "log.txt").read_text().splitlines()
    assert re.match(r"=== \d{4}-\d\d-\d\d \d\d:\d\d:\d\d [+-]\d{4}, truetune \S+ begins: truetune", heading)
    assert [line[21:] for line in others] == ["reading rows", "loading", "the model"]
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  ", line) for line in others[:2])
    assert log.path == tmp_path / "log.txt"


def test_a_run_that_does_not_begin_leaves_no_log(log: RunLog, tmp_path: Path) -> None:
    log.open(tmp_path / "log.txt", goes_on=False)
    assert log.path is None
    log.leave()
    log.say("refused")
    log.close()
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_does_not_begin_leaves_the_log_that_it_would_have_replaced(log: RunLog, tmp_path: Path) -> None:
    path = tmp_path / "log.txt"
    path.write_text("of the run before\n")
    log.open(path, goes_on=False)
    log.say("words")
    assert "of the run before" not in path.read_text()
    log.leave()
    assert path.read_text() == "of the run before\n"
    assert list(tmp_path.iterdir()) == [path]


def test_a_run_that_begins_replaces_the_log_and_one_that_goes_on_adds_to_it(log: RunLog, tmp_path: Path) -> None:
    path = tmp_path / "log.txt"
    path.write_text("of the run before\n")
    log.open(path, goes_on=False)
    log.begin()
    log.say("the first time")
    log.leave()
    log.close()
    again = RunLog()
    again.say("checking")
    again.open(path, goes_on=True)
    again.leave()
    again.close()
    assert [re.sub(r".* (begins|goes on): .*", r"\1", line) for line in lines(path)] == [
        "begins",
        "the first time",
        "goes on",
        "checking",
    ]
    assert list(tmp_path.iterdir()) == [path]


def test_equal_lines_are_counted_whatever_stands_between_them(log: RunLog, tmp_path: Path) -> None:
    log.open(tmp_path / "log.txt", goes_on=False)
    for step in range(2_345):
        log.hear("a kernel is missing")
        log.hear(f"another one, at step {step // 1_000}")
    log.say("the end\n")
    log.say("the end\n")
    log.close()
    kept = lines(tmp_path / "log.txt")
    assert [line for line in kept if "kernel" in line] == [
        "a kernel is missing",
        "(10 times) a kernel is missing",
        "(100 times) a kernel is missing",
        "(1,000 times) a kernel is missing",
        "(2,345 times) a kernel is missing",
    ]
    assert kept.count("the end") == 2
    assert len(kept) < 30


def test_lines_without_end_do_not_fill_memory() -> None:
    repeats = Repeats()
    assert [repeats.take(f"line {number}") for number in range(25_000)][-1] == "line 24999"
    assert len(list(repeats.untold())) == 0
    assert len(repeats._counts) <= 10_000


def test_what_libraries_say_has_a_bound_and_our_own_words_have_none(
    log: RunLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log.open(tmp_path / "log.txt", goes_on=False)
    for number in range(130):
        log.hear(f"{number} " + "x" * 100_000)
    log.say("our own")
    log.close()
    kept = lines(tmp_path / "log.txt")
    assert 9_500_000 < (tmp_path / "log.txt").stat().st_size < 10_500_000
    assert kept[-2:] == ["libraries have said 10 MB: nothing more of it is kept", "our own"]


def test_what_is_written_past_python_has_a_bound_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_module, "_MOST", 1_000_000)
    log, number = RunLog(), os.open(tmp_path / "elsewhere", os.O_CREAT | os.O_WRONLY)
    with log.receiving(number):
        log.open(tmp_path / "log.txt", goes_on=False)
        for _ in range(100):
            os.write(number, b"x" * 99_999 + b"\n")
            log.say("a step")
    os.write(number, b"back")
    log.close()
    os.close(number)
    assert (tmp_path / "log.txt").stat().st_size < 1_200_000
    assert "libraries have written 1 MB past Python: nothing more of it is kept" in lines(tmp_path / "log.txt")
    assert (tmp_path / "elsewhere").read_text() == "back"


def test_no_secret_is_in_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef0123456789abcdef01234567")
    monkeypatch.setenv("SHORT_KEY", "a")
    log = RunLog()
    log.open(tmp_path / "log.txt", goes_on=False)
    log.hear("logging in with 0123456789abcdef0123456789abcdef01234567")
    log.say("from https://user:s3cr3t-s3cr3t@hub.internal.net/model, " + "hf_" + "qLmZrTcWkPvBnXsDjHgFyUeIoAuvwxyzQW")
    log.say("KeyError: 'tokens' and 300 tokens: all there")
    log.close()
    text = (tmp_path / "log.txt").read_text()
    assert "0123456789abcdef" not in text
    assert "s3cr3t" not in text
    assert "uvwxyz" not in text
    assert "KeyError: 'tokens' and 300 tokens: all there" in text


def test_colours_and_control_characters_are_left_out(log: RunLog, tmp_path: Path) -> None:
    log.open(tmp_path / "log.txt", goes_on=False)
    log.say("\x1b[1;31mred\x1b[0m \x1b]8;;http://a\x07link\x1b]8;;\x07 \x00bell\x07 \ud800")
    log.close()
    assert lines(tmp_path / "log.txt")[-1] == "red link bell \\ud800"


def test_a_disk_that_takes_no_more_is_told_once_and_the_run_goes_on(log: RunLog, said: list[str]) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    log.open(Path("/dev/full"), goes_on=True)
    for _ in range(3):
        log.say("words")
        log.hear("noise")
    log.begin()
    log.close()
    (warning,) = said
    assert "No space left on device" in warning
    assert "the run goes on" in warning


def test_a_log_that_cannot_be_opened_is_told_and_what_would_be_in_it_is_on_no_terminal(
    log: RunLog, said: list[str], tmp_path: Path
) -> None:
    log.open(tmp_path / "not there" / "log.txt", goes_on=False)
    log.say("words")
    log.begin()
    log.close()
    assert len(said) == 1
    assert log.path is None


def test_a_closed_log_writes_no_more(log: RunLog, tmp_path: Path) -> None:
    log.open(tmp_path / "log.txt", goes_on=False)
    log.close()
    size = (tmp_path / "log.txt").stat().st_size
    log.say("late")
    log.hear("later")
    assert log.is_closed
    assert (tmp_path / "log.txt").stat().st_size == size


def test_the_log_of_a_process_that_another_one_started_goes_on_in_its_file(tmp_path: Path) -> None:
    with (tmp_path / "log.txt").open("ab") as file:
        file.write(b"of the other one\n")
        file.flush()
        log = RunLog(descriptor=file.fileno())
        log.hear("of this one")
        log.close()
    assert lines(tmp_path / "log.txt") == ["of the other one", "of this one"]
