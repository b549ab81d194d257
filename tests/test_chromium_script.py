"""tests/chromium.sh installs a browser for tests of pages where it can, leaves one that is there, never fails."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("chromium.sh")
pytestmark = pytest.mark.skipif(shutil.which("timeout") is None, reason="needs coreutils' timeout")


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """All the programs there are: the shell's, and an apt-get that writes down what it is told."""
    for name in ("sh", "timeout"):
        (tmp_path / name).symlink_to(str(shutil.which(name)))
    program(tmp_path, "id", "echo 0")
    program(tmp_path, "apt-get", 'echo "$@" >> "${0%/*}/asked"')
    return tmp_path


def program(folder: Path, name: str, does: str) -> None:
    (folder / name).write_text(f"#!{shutil.which('sh')}\n{does}\n")
    (folder / name).chmod(0o755)


def said(programs: Path) -> str:
    environment = {**os.environ, "PATH": str(programs)}
    done = subprocess.run([str(SCRIPT)], env=environment, capture_output=True, text=True, check=True)
    (line,) = done.stdout.splitlines()
    assert done.stderr == ""
    return line


def asked(programs: Path) -> list[str]:
    file = programs / "asked"
    return file.read_text().splitlines() if file.exists() else []


@pytest.mark.parametrize("name", ["chromium", "chromium-browser", "google-chrome"])
def test_a_browser_that_is_there_is_left_alone(programs: Path, name: str) -> None:
    program(programs, name, "exit 1")
    assert said(programs) == f"chromium: {programs / name}"
    assert asked(programs) == []


def test_root_installs_it_without_a_question(programs: Path) -> None:
    assert said(programs) == "chromium: installed with apt-get"
    assert asked(programs) == ["install -y --no-install-recommends chromium"]


def test_lists_that_are_missing_are_fetched_first(programs: Path) -> None:
    lists = '"${0%/*}/lists"'
    program(programs, "apt-get", f'echo "$@" >> "${{0%/*}}/asked"; [ "$1" != update ] || : > {lists}; [ -e {lists} ]')
    assert said(programs) == "chromium: installed with apt-get"
    assert [line.split()[0] for line in asked(programs)] == ["install", "update", "install"]


def test_an_apt_get_that_fails_fails_nothing_else(programs: Path) -> None:
    program(programs, "apt-get", "echo no such package >&2; exit 100")
    assert "apt-get could not install it" in said(programs)


def test_nobody_but_root_tries(programs: Path) -> None:
    program(programs, "id", "echo 1000")
    assert "are skipped" in said(programs)
    assert asked(programs) == []


def test_without_apt_get_nothing_is_tried(programs: Path) -> None:
    (programs / "apt-get").unlink()
    assert "are skipped" in said(programs)
