"""What libraries say goes to the log and not to the terminal, however they say it, and whatever becomes of them."""

import io
import logging
import os
import subprocess
import sys
import textwrap
import warnings
from contextlib import closing
from pathlib import Path

import pytest

from truetune.runs.captured import captured
from truetune.runs.log import RunLog

BEGINS = """
    import ctypes, faulthandler, logging, os, subprocess, sys, warnings
    from contextlib import closing
    from pathlib import Path
    from truetune.environment import set_environment
    from truetune.runs.captured import captured
    from truetune.runs.log import RunLog
    set_environment()
    with closing(RunLog()) as log, captured(log):
        log.open(Path(sys.argv[1]), goes_on=False)
        BEFORE
        log.begin()
        DURING
    print("the result")
    print("a word", file=sys.stderr)
"""


def ran(folder: Path, during: str, *, before: str = "") -> subprocess.CompletedProcess[str]:
    """A process that captures what it says; its log is `log.txt` in the folder."""
    code = textwrap.dedent(BEGINS).replace("BEFORE", before or "pass").replace("DURING", during)
    command = [sys.executable, "-c", code, str(folder / "log.txt")]
    # It would have the streams of C write at once, too.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


@pytest.mark.parametrize(
    "way",
    [
        "print('noise', flush=True)",
        "print('noise', end='')",
        "sys.stderr.write('noise')",
        "sys.stdout.buffer.write(b'noise')",
        "sys.__stderr__.write('noise\\n'), sys.__stderr__.flush()",
        "sys.__stdout__.write('noise\\n')",
        "os.write(1, b'noise')",
        "os.write(2, b'noise')",
        "ctypes.CDLL(None).printf(b'noise')",
        "warnings.warn('noise', FutureWarning)",
        "warnings.warn('noise')",
        "logging.getLogger('a.library').warning('%s', 'noise')",
        "logging.getLogger('bitsandbytes').warning('noise')",
        "logging.getLogger('truetune').error('noise')",
        "subprocess.run(['echo', 'noise'])",
    ],
)
def test_however_a_library_says_it_it_is_in_the_log_alone(way: str, tmp_path: Path) -> None:
    done = ran(tmp_path, way)
    assert (done.returncode, done.stdout, done.stderr) == (0, "the result\n", "a word\n")
    assert "noise" in (tmp_path / "log.txt").read_text()


def test_a_crash_leaves_its_stack_and_the_last_words_in_the_log(tmp_path: Path) -> None:
    crash = "print('so far'), os.write(2, b'terminate called\\n'), ctypes.string_at(0)"
    done = ran(tmp_path, crash)
    assert done.returncode < 0
    assert done.stderr == ""
    text = (tmp_path / "log.txt").read_text()
    for words in ("so far", "terminate called", "Segmentation fault", 'File "<string>"'):
        assert words in text


def test_a_crash_before_a_run_has_begun_is_on_the_terminal(tmp_path: Path) -> None:
    done = ran(tmp_path, "", before="ctypes.string_at(0)")
    assert done.returncode < 0
    assert "Segmentation fault" in done.stderr


def test_a_process_that_is_killed_has_said_all_in_the_log(tmp_path: Path) -> None:
    done = ran(tmp_path, "print('noise'), log.say('a word of ours'), os.kill(os.getpid(), 9)")
    assert done.returncode == -9
    text = (tmp_path / "log.txt").read_text()
    assert "noise" in text
    assert "a word of ours" in text


@pytest.fixture
def log(tmp_path: Path) -> RunLog:
    log = RunLog()
    log.open(tmp_path / "log.txt", goes_on=False)
    return log


def words(folder: Path) -> list[str]:
    return [line[21:] for line in (folder / "log.txt").read_text().splitlines()[1:]]


def test_afterwards_everything_is_where_it_was(log: RunLog, capfd: pytest.CaptureFixture[str]) -> None:
    before = (sys.stdout, sys.stderr, logging.getLogger().handlers[:], warnings.showwarning, warnings.filters[:])
    with closing(log), captured(log):
        kept = sys.stderr
        print("noise")
    after = (sys.stdout, sys.stderr, logging.getLogger().handlers[:], warnings.showwarning, warnings.filters[:])
    assert after == before
    print("a result")
    print("of a handler that was made meanwhile", file=kept)
    assert capfd.readouterr() == ("a result\n", "of a handler that was made meanwhile\n")


def test_a_bar_leaves_its_last_state_and_no_empty_lines(log: RunLog, tmp_path: Path) -> None:
    with closing(log), captured(log):
        for done in range(0, 101, 10):
            sys.stderr.write(f"\r{done}%|####|")
        sys.stderr.write("\n\n\r\nwindows\r\n")
    assert words(tmp_path) == ["100%|####|", "windows"]


def test_a_bar_without_end_does_not_fill_memory(log: RunLog) -> None:
    with closing(log), captured(log):
        for number in range(50_000):
            sys.stderr.write(f"\r{number} of 50,000")
        assert isinstance(sys.stderr, io.TextIOBase)
        assert len(sys.stderr._rest) < 100_100  # type: ignore[attr-defined]


def test_a_trace_is_kept_whole_however_often_its_lines_come(log: RunLog, tmp_path: Path) -> None:
    import traceback

    def fail(kind: type[Exception]) -> None:
        raise kind("no")

    with closing(log), captured(log):
        for kind in (ValueError, KeyError):
            try:
                fail(kind)
            except Exception:  # noqa: BLE001
                traceback.print_exc()
    kept = words(tmp_path)
    assert kept.count("Traceback (most recent call last):") == 2
    assert sum("raise kind(" in line for line in kept) == 2
    assert [line for line in kept if "no" in line and "Error" in line and "raise" not in line] == [
        "ValueError: no",
        "KeyError: 'no'",
    ]


def test_a_record_that_cannot_be_formatted_ends_nothing(tmp_path: Path) -> None:
    done = ran(tmp_path, "logging.getLogger('a').warning('%d steps', 'three'), print('still here')")
    assert (done.returncode, done.stderr) == (0, "a word\n")
    assert words(tmp_path)[-1] == "still here"
    assert "TypeError: %d format" in (tmp_path / "log.txt").read_text()
