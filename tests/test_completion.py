"""`truetune completion`: the shells themselves complete truetune's words with it."""

import argparse
import os
import shutil
import subprocess
from pathlib import Path

import pytest

import warm
from manual.commands import commands
from truetune.commands.completion import script
from truetune.config.schema import setting_names

PARSERS = commands()
SHELLS = ("bash", "zsh", "fish")
CHECKS = {"bash": ["bash", "-n"], "zsh": ["zsh", "-n"], "fish": ["fish", "--no-execute"]}

BASH = """
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
_truetune
printf '%s\\n' "${COMPREPLY[@]}"
"""
# zsh completes on a terminal alone: it has one of its own here, and what it is given to offer is written down.
ZSH = r"""
zmodload zsh/zpty
zpty shell 'zsh -f -i'
zpty -w shell "fpath=($1 \$fpath); autoload -Uz compinit; compinit -u -D"
zpty -w shell "compadd() { local -a found; builtin compadd -O found \"\$@\"; print -rl -- \$found >> $3 }"
zpty -w shell 'echo rea""dy'
zpty -r -m shell said '*ready*'
zpty -w -n shell "$2"$'\t'
for each in {1..50}; do sleep 0.1; [[ -s $3 ]] && break; done
sleep 0.2
"""


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Each shell's script, as `completion` writes it."""
    folder = tmp_path_factory.mktemp("scripts")
    for shell in SHELLS:
        (folder / shell).write_text(script(shell), encoding="utf-8")
    return {shell: folder / shell for shell in SHELLS}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A place with a file of rows and a run."""
    (tmp_path / "rows.jsonl").touch()
    (tmp_path / "runs" / "support").mkdir(parents=True)
    (tmp_path / "runs" / "support" / "run.json").touch()
    return tmp_path


def in_bash(scripts: dict[str, Path], folder: Path, *words: str) -> set[str]:
    """What bash offers for the last of the words."""
    command = ["bash", "--norc", "-c", BASH, "bash", str(scripts["bash"]), "truetune", *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    return set(filter(None, done.stdout.splitlines()))


def in_fish(scripts: dict[str, Path], folder: Path, *words: str) -> set[str]:
    line = " ".join(["truetune", *words])
    command = [
        "fish",
        "--no-config",
        "-c",
        "source $argv[1]; complete --do-complete $argv[2]",
        str(scripts["fish"]),
        line,
    ]
    environment = {**os.environ, "HOME": str(folder)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True)
    return {offered.partition("\t")[0] for offered in done.stdout.splitlines()}


def in_zsh(scripts: dict[str, Path], folder: Path, *words: str) -> set[str]:
    place, found = folder / "functions", folder / ".found"
    place.mkdir(exist_ok=True)
    shutil.copy(scripts["zsh"], place / "_truetune")
    found.write_text("")
    line = " ".join(["truetune", *words])
    subprocess.run(["zsh", "-f", "-c", ZSH, "zsh", str(place), line, str(found)], cwd=folder, check=True, timeout=60)
    return set(filter(None, found.read_text(encoding="utf-8").splitlines()))


ASKED = {"bash": in_bash, "fish": in_fish}


@pytest.fixture(params=ASKED)
def offered(request: pytest.FixtureRequest, scripts: dict[str, Path], folder: Path):  # type: ignore[no-untyped-def]
    """A shell's offers for words, the last of which is being typed."""
    if not shutil.which(request.param):
        pytest.skip(f"{request.param} is not installed")
    return lambda *words: ASKED[request.param](scripts, folder, *words)


@pytest.mark.parametrize("shell", SHELLS)
def test_a_shell_can_read_its_script(shell: str, scripts: dict[str, Path]) -> None:
    if not shutil.which(shell):
        pytest.skip(f"{shell} is not installed")
    done = subprocess.run([*CHECKS[shell], str(scripts[shell])], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_every_command_is_offered(offered) -> None:  # type: ignore[no-untyped-def]
    assert offered("") == set(PARSERS)
    assert offered("comp") == {"compare", "completion"}


def test_every_option_of_every_command_is_offered(scripts: dict[str, Path], folder: Path) -> None:
    line = 'COMP_WORDS=(truetune "$each" -); COMP_CWORD=2; _truetune; echo "$each" "${COMPREPLY[@]}"'
    program = f'source "$1"; shift; for each in "$@"; do {line}; done'
    done = subprocess.run(
        ["bash", "--norc", "-c", program, "bash", str(scripts["bash"]), *PARSERS],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    found = {command: set(options) for command, *options in map(str.split, done.stdout.splitlines())}
    assert found == {command: told_options(parser) for command, parser in PARSERS.items()}


def told_options(parser: argparse.ArgumentParser) -> set[str]:
    told = (action for action in parser._actions if action.help != argparse.SUPPRESS)
    return {word for action in told for word in action.option_strings}


def test_the_choices_of_an_option_are_offered(offered) -> None:  # type: ignore[no-untyped-def]
    assert offered("export", "runs/support", "--to", "gguf") == {"gguf", "gguf-adapter"}
    assert offered("completion", "") >= set(SHELLS)


def test_settings_are_offered_by_both_their_names_once_a_letter_is_there(offered) -> None:  # type: ignore[no-untyped-def]
    assert offered("train", "run.yaml", "learning") == {"learning_rate="}
    assert offered("train", "training.learning") == {"training.learning_rate="}
    assert {f"{name}=" for name in setting_names() if name.startswith("d")} <= offered("check", "d")
    assert {each for each in offered("train", "") if each.endswith("=")} == set()


def test_runs_files_and_models_are_offered_where_they_stand(offered) -> None:  # type: ignore[no-untyped-def]
    assert "runs/support" in offered("report", "runs/s")
    assert "rows.jsonl" in offered("check", "ro")
    assert "rows.jsonl" in offered("train", "--data", "ro")
    assert "demo" in offered("train", "--model", "de")
    assert not offered("merge", "runs/support", "--output", "rows.jsonl.no")


@pytest.mark.skipif(not shutil.which("zsh"), reason="zsh is not installed")
def test_zsh_offers_what_stands_behind_other_words(scripts: dict[str, Path], folder: Path) -> None:
    assert in_zsh(scripts, folder, "comp") == {"compare", "completion"}
    assert in_zsh(scripts, folder, "train", "run.yaml", "learning") == {"learning_rate="}
    assert "support" in in_zsh(scripts, folder, "compare", "runs/a", "runs/s")
    assert in_zsh(scripts, folder, "train", "--model", "de") == {"demo"}


def test_a_script_is_printed_or_written_and_a_file_is_not_replaced_unasked(tmp_path: Path) -> None:
    def truetune(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(warm.truetune(*words), cwd=tmp_path, capture_output=True, text=True, check=False)

    printed = truetune("completion", "bash")
    assert printed.returncode == 0, printed.stderr
    assert "complete -F _truetune truetune" in printed.stdout
    assert truetune("completion", "bash", "-o", "there/truetune").returncode == 0
    assert (tmp_path / "there" / "truetune").read_text(encoding="utf-8") == printed.stdout
    again = truetune("completion", "bash", "-o", "there/truetune")
    assert (again.returncode, "--overwrite" in again.stderr) == (2, True)
    assert truetune("completion", "bash", "-o", "there/truetune", "--overwrite").returncode == 0
    assert truetune("completion", "tcsh").returncode == 2
