"""Somebody who wants a GGUF for Ollama, by the first guess at each command."""

import json
import shlex
import shutil
from pathlib import Path

import pytest
from typed import Terminal

import truetune
from truetune.inference.ollama import parse_modelfile


@pytest.fixture
def terminal(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """A shell in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return Terminal(capsys)


def test_the_first_guess_makes_a_folder_that_ollama_is_given_with_the_printed_commands(
    terminal: Terminal, tiny_run: truetune.Run
) -> None:
    told = terminal.done("export", tiny_run.directory, "--to", "ollama")
    folder = Path("run-ollama")
    assert f"exported: {folder} (f32" in told.out
    command = next(line for line in told.out.splitlines() if line.startswith("run it: ")).removeprefix("run it: ")
    enter, create, run = (shlex.split(each) for each in command.split(" && "))
    assert enter == ["cd", str(folder)]
    assert create == ["ollama", "create", "run-ollama", "-f", "Modelfile"]
    assert run == ["ollama", "run", "run-ollama"]
    modelfile = parse_modelfile((folder / "Modelfile").read_text())
    assert (folder / modelfile.model).is_file()
    assert ("stop", "<|im_end|>") in modelfile.parameters

    again = terminal.refused("export", tiny_run.directory, "--to", "ollama", status=2)
    assert "run-ollama is there already" in again
    assert "--overwrite" in again


def test_a_gguf_alone_says_how_it_is_run_and_what_ollama_would_lack(
    terminal: Terminal, tiny_run: truetune.Run
) -> None:
    told = terminal.done("export", tiny_run.directory, "--to", "gguf", "--quantize", "Q8_0")
    assert "exported: run.gguf" in told.out
    assert "llama-server -m run.gguf" in told.out
    assert "--to ollama" in told.out
    assert Path("run.gguf").is_file()


def test_a_checkpoint_is_exported_under_a_name_of_its_own(terminal: Terminal, tiny_run: truetune.Run) -> None:
    step = json.loads(terminal.done("verify", tiny_run.directory, "--json").out)["checkpoints"][0]["step"]
    told = terminal.done("export", f"{tiny_run.directory}@{step}", "--to", "gguf")
    assert f"exported: run-{step}.gguf" in told.out


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        (("--to", "gguf", "--quantize", "q4"), "q4_k_m"),
        (("--to", "gguf", "--quantization", "q8_0"), "did you mean --quantize?"),
        (("--to", "gguf", "--type", "q8_0"), "did you mean --quantize?"),
        (("--to", "gguf", "--outtype", "q8_0"), "did you mean --quantize?"),
        (("--to", "gguf", "--output-dir", "x"), "did you mean --output?"),
        (("--format", "gguf"), "required: --to"),
        (("--to", "q8_0"), "--to gguf --quantize q8_0"),
        (("--to", "olama"), "ollama"),
        ((), "--to"),
    ],
)
def test_a_wrong_guess_is_answered_with_the_right_word(
    words: tuple[str, ...], remedy: str, terminal: Terminal, tiny_run: truetune.Run
) -> None:
    assert remedy in terminal.refused("export", tiny_run.directory, *words, status=2)


def test_what_cannot_be_exported_says_why(terminal: Terminal, tiny_run: truetune.Run) -> None:
    copy = Path("cut")
    shutil.copytree(tiny_run.directory, copy)
    shutil.rmtree(copy / "adapter")
    told = terminal.refused("export", copy, "--to", "ollama", status=1)
    assert "holds no trained model" in told
    assert "write cut@" in told
    assert "run not found" in terminal.refused("export", "runs/none", "--to", "gguf", status=1)
    assert "no complete checkpoint of step 99" in terminal.refused("export", "cut@99", "--to", "gguf", status=1)
