"""On a real terminal a training is one view that no library writes into; its words are in the log as well."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import textwrap
from pathlib import Path

import pytest

from truetune.console.logged import logged
from truetune.errors import BackendError

TRAINING = """
    import os, sys, warnings
    from dataclasses import replace
    from pathlib import Path
    from truetune.console.logged import logged
    from truetune.listener import StepEvent
    EVENT = StepEvent(1, 9, 0.1, 2.5, 1234.0, 60.0, 4e-4, 3_100_000_000, 1.5, 0, 5)
    with logged() as (listener, log):
        log.open(Path(sys.argv[1]), goes_on=False)
        log.begin()
        listener.say("words " * 30)
        listener.warn("something differs")
        for step in range(1, 10):
            print("noise of print")
            os.write(2, b"noise of C\\n")
            warnings.warn(f"noise of a warning")
            listener.progress("evaluating", step, 9)
            listener.step(replace(EVENT, step=step, loss=3.0 - step / 5, seconds_left=60.0 - 6 * step))
    print("the result")
"""


def on_a_terminal(log: Path, *, columns: int = 80, rows: int = 24, stdin: int | None = None, **changes: str) -> str:
    """All that the training writes on a terminal of that size; `stdin` if it is not that terminal."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    kept = {name: value for name, value in os.environ.items() if name not in ("CI", "COLUMNS", "LINES", "NO_COLOR")}
    command = [sys.executable, "-c", textwrap.dedent(TRAINING), str(log)]
    environment = {**kept, "TERM": "xterm-256color", **changes}
    stdin = theirs if stdin is None else stdin
    with subprocess.Popen(command, stdin=stdin, stdout=theirs, stderr=theirs, env=environment) as process:
        os.close(theirs)
        written = b""
        try:
            while piece := os.read(ours, 65_536):
                written += piece
        except OSError:  # The terminal's other end is closed.
            pass
    os.close(ours)
    assert process.returncode == 0, written.decode()
    return written.decode().replace("\r\n", "\n")


def plain(written: str) -> list[str]:
    """The lines without colours and movements, each as it was drawn last."""
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written)
    return [line.rpartition("\r")[2].rstrip() for line in text.split("\n")]


def test_a_terminal_shows_words_and_view_and_no_librarys_noise(tmp_path: Path) -> None:
    seen = on_a_terminal(tmp_path / "log.txt")
    assert "noise" not in seen
    assert "\x1b[?25l" in seen
    assert seen.count("\x1b[?25h") == seen.count("\x1b[?25l")
    shown = plain(seen)
    assert "warning: something differs" in shown
    assert shown[-2:] == ["the result", ""]
    assert [line for line in shown if "9 of 9" in line]
    assert max(map(len, shown)) <= 80
    log = (tmp_path / "log.txt").read_text()
    for words in ("words words", "warning: something differs", "noise of print", "noise of C", "noise of a warning"):
        assert words in log
    assert "(9 times) noise of print" in log
    assert "step 0: validation loss 1.5000" in log
    assert "step 9 of 9: loss 1.2000" in log
    assert "\x1b" not in log


def test_the_view_is_as_wide_as_its_terminal_wherever_stdin_comes_from(tmp_path: Path) -> None:
    with open(os.devnull) as nothing:
        wide = on_a_terminal(tmp_path / "log.txt", columns=120, stdin=nothing.fileno())
    assert "words " * 19 + "words" in plain(wide)


@pytest.mark.parametrize("columns", [40, 60])
def test_a_narrow_terminal_has_no_line_that_is_wider(columns: int, tmp_path: Path) -> None:
    shown = plain(on_a_terminal(tmp_path / "log.txt", columns=columns))
    assert max(map(len, shown)) <= columns
    text = " ".join(" ".join(shown).split())
    for fact in ("9 of 9", "1.2000", "1,234 tokens/s", "3.10 GB", "validation 1.5000 at step 0"):
        assert fact in text


@pytest.mark.parametrize("changes", [{"CI": "1"}, {"TERM": "dumb"}], ids=str)
def test_where_nothing_can_be_drawn_over_there_are_plain_lines(changes: dict[str, str], tmp_path: Path) -> None:
    seen = on_a_terminal(tmp_path / "log.txt", **changes)
    shown = plain(seen)
    assert "\x1b[?25l" not in seen
    assert "step 9 of 9: loss 1.2000  1,234 tokens/s  6.0 s left" in shown
    assert ("words " * 30).strip() in shown


def test_no_color_has_a_view_without_colours(tmp_path: Path) -> None:
    seen = on_a_terminal(tmp_path / "log.txt", NO_COLOR="1")
    assert "\x1b[?25l" in seen
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]", seen)


def fail(path: Path, *, begins: bool) -> None:
    with logged() as (listener, log):
        log.open(path, goes_on=False)
        listener.say("words before")
        if begins:
            log.begin()
        log.leave()
        raise BackendError("the loss is no number", hint="lower the rate")


def test_an_error_has_the_logs_place_and_the_log_where_it_came_from(tmp_path: Path) -> None:
    with pytest.raises(BackendError) as caught:
        fail(tmp_path / "log.txt", begins=True)
    assert caught.value.__notes__ == [f"log: {tmp_path / 'log.txt'}"]
    text = (tmp_path / "log.txt").read_text()
    assert "words before" in text
    assert "BackendError: the loss is no number" in text
    assert "test_logged.py" in text


def test_an_error_before_a_run_names_no_log(tmp_path: Path) -> None:
    with pytest.raises(BackendError) as caught:
        fail(tmp_path / "log.txt", begins=False)
    assert not hasattr(caught.value, "__notes__")
