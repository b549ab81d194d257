"""The log of a run that a command trained: its words and the libraries', however the run ends."""

import fcntl
import json
import logging
import os
import pty
import select
import subprocess
import termios
import warnings
from pathlib import Path
from typing import Any

import pytest

import warm
from truetune.cli import main
from truetune.errors import BackendError
from truetune.training import trl

NOISE = ("noise of print", "noise past Python", "noise of a record", "noise of a warning")


@pytest.fixture
def noisy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Libraries that are loud at each step."""
    tell = trl.tell_step

    def loud(*args: Any, **kwargs: Any) -> None:
        print("noise of print")
        os.write(1, b"noise past Python\n")
        logging.getLogger("a.library").warning("noise of a record")
        warnings.warn("noise of a warning", FutureWarning, stacklevel=2)
        tell(*args, **kwargs)

    monkeypatch.setattr(trl, "tell_step", loud)


def trained(base: Path, data: Path, folder: Path, *words: str) -> int:
    own = ("precision=fp32", "logging_steps=1", "r=4", "num_train_epochs=2", "save_strategy=steps", "save_steps=2")
    return main(["train", "--model", str(base), "--data", str(data), "--output-dir", str(folder), *own, *words])


def record(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "run.json").read_text())
    return found


@pytest.mark.usefixtures("noisy")
def test_the_terminal_has_our_words_and_the_log_has_all(
    tiny_base: Path, rows: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    assert trained(tiny_base, rows, folder, "test_size=4", "max_steps=3") == 0
    out, err = capfd.readouterr()
    log = (folder / "log.txt").read_text()
    assert "noise" not in out + err
    assert all(words in log for words in NOISE)
    assert out.startswith("finished: 3 of 3 steps in ")
    assert f"log          {folder / 'log.txt'}\n" in out
    assert f"talk         truetune chat {folder}\n" in out
    assert max(len(line) for line in out.splitlines() if str(tmp_path) not in line) <= 80
    for line in err.splitlines():
        assert line.strip() in log
    assert f"log: {folder / 'log.txt'}, with what libraries say" in err


def test_a_command_that_is_refused_leaves_no_log_and_no_directory(
    tiny_base: Path, rows: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert trained(tiny_base, rows, tmp_path / "run", "max_length=8") == 1
    assert "log:" not in capfd.readouterr().err
    assert trained(tiny_base, rows, tmp_path / "run", "--dry-run") == 0
    assert not (tmp_path / "run").exists()


def test_a_resumed_run_adds_to_its_log_and_one_in_its_place_begins_another(
    tiny_base: Path, rows: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    assert trained(tiny_base, rows, folder, "max_steps=2") == 0
    first = (folder / "log.txt").read_text()
    assert trained(tiny_base, rows, folder, "max_steps=3") == 1
    assert (folder / "log.txt").read_text() == first
    assert trained(tiny_base, rows, folder, "max_steps=3", "--resume") == 0
    both = (folder / "log.txt").read_text()
    assert both.startswith(first)
    assert " goes on: truetune" in both[len(first) :].splitlines()[0]
    assert "step 3 of 3" in both
    assert "since it was resumed" in capfd.readouterr().out
    assert trained(tiny_base, rows, folder, "max_length=8", "--overwrite") == 1
    assert (folder / "log.txt").read_text() == both
    assert trained(tiny_base, rows, folder, "max_steps=1", "--overwrite") == 0
    third = (folder / "log.txt").read_text()
    assert third.count("=== ") == 1
    assert "step 1 of 1" in third
    assert [path.name for path in folder.iterdir() if path.name.startswith(".unfinished")] == []


def test_a_run_that_fails_says_where_its_log_is_and_the_log_where_it_failed(
    tiny_base: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def diverged(*args: Any, **kwargs: Any) -> None:
        print("the last words of a library")
        raise BackendError("the loss is no number", hint="lower the rate")

    monkeypatch.setattr(trl, "tell_step", diverged)
    folder = tmp_path / "run"
    assert trained(tiny_base, rows, folder) == 1
    out, err = capfd.readouterr()
    log = folder / "log.txt"
    assert out == ""
    assert err.splitlines()[-3:] == ["error: the loss is no number", "hint: lower the rate", f"log: {log}"]
    text = log.read_text()
    assert "the last words of a library" in text
    assert "in diverged" in text
    assert record(folder)["status"] == "failed"


def test_a_bug_is_told_with_the_logs_place(
    tiny_base: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any, **kwargs: Any) -> None:
        raise IndexError("list index out of range")

    monkeypatch.setattr(trl, "tell_step", broken)
    with pytest.raises(IndexError) as caught:
        trained(tiny_base, rows, tmp_path / "run")
    assert caught.value.__notes__ == [f"log: {tmp_path / 'run' / 'log.txt'}"]


def test_a_terminal_that_closes_ends_a_run_in_order_and_its_log_says_so(
    tiny_base: Path, rows: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    words = ("--model", str(tiny_base), "--data", str(rows), "--output-dir", str(folder), "precision=fp32")
    command = warm.truetune("train", *words, "num_train_epochs=3000", "logging_steps=1")

    def owns_terminal() -> None:
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    ours, theirs = pty.openpty()
    with subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True, preexec_fn=owns_terminal
    ) as process:
        os.close(theirs)
        metrics = folder / "metrics.jsonl"
        while process.poll() is None and not (metrics.exists() and metrics.stat().st_size):
            if select.select([ours], [], [], 0.1)[0]:
                os.read(ours, 65_536)
        os.close(ours)
        assert process.wait(timeout=60) == 129
    assert record(folder)["status"] == "stopped"
    assert (folder / "checkpoints" / f"checkpoint-{record(folder)['steps']}" / "manifest.json").is_file()
    assert "stopped by SIGHUP after step" in (folder / "log.txt").read_text()
