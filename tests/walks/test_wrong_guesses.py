"""Somebody who types what other tools take: each guess is answered with what is meant."""

import json
from pathlib import Path

import pytest
from typed import Terminal

from conftest import arithmetic_rows, write_jsonl


@pytest.fixture
def terminal(capsys: pytest.CaptureFixture[str]) -> Terminal:
    return Terminal(capsys)


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Rows in the folder where the commands are typed."""
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "faq.jsonl", arithmetic_rows(4))
    return Path("faq.jsonl")


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("finetune", "did you mean truetune train?"),
        ("trian", "did you mean truetune train?"),
        ("resume", "did you mean truetune train --resume?"),
        ("validate", "did you mean truetune check?"),
        ("evaluate", "did you mean truetune eval?"),
        ("infer", "did you mean truetune generate?"),
        ("push", "did you mean truetune export RUN --to hub?"),
        ("help", "did you mean truetune --help?"),
        (
            "faq.jsonl",
            "truetune check faq.jsonl looks at the data, truetune train --model M --data faq.jsonl trains on it",
        ),
        ("run.yaml", "to train as it says: truetune train run.yaml"),
        ("xyzzy", "truetune --help lists the commands"),
    ],
)
def test_a_word_that_is_no_command_is_answered_with_one(
    typed: str, meant: str, data: Path, terminal: Terminal
) -> None:
    told = terminal.refused(typed, status=2)
    assert told == f"error: there is no command {typed}\nhint: {meant}\n"


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (("--epochs", "3", "--lr", "1e-4"), "settings are written key=value: num_train_epochs=3 learning_rate=1e-4"),
        (("--max-steps=5",), "settings are written key=value: max_steps=5"),
        (("--load_in_4bit",), "settings are written key=value: load_in_4bit=true"),
        (("--batch-size", "4"), "settings are written key=value: per_device_train_batch_size=4"),
        (("--lora-r", "8"), "settings are written key=value: r=8"),
        (("--file", "faq.jsonl"), "did you mean --data?"),
        (("--dataset", "faq.jsonl"), "did you mean --data?"),
        (("--base-model", "demo"), "did you mean --model?"),
        (("-o", "runs/x"), "did you mean --output-dir?"),
        (("--resume-from-checkpoint", "x"), "did you mean --resume?"),
        (("--force",), "did you mean --overwrite?"),
        (("--gpus", "2"), "did you mean --num-processes?"),
        (("--config", "run.yaml"), "a config is given without an option: truetune train run.yaml"),
        (("--modle", "demo"), "did you mean --model?"),
        (("--xyzzy",), "truetune train --help shows what it takes"),
    ],
)
def test_an_option_of_another_tool_is_answered_with_ours(
    words: tuple[str, ...], meant: str, data: Path, terminal: Terminal
) -> None:
    told = terminal.refused("train", *words, status=2)
    assert told.endswith(f"\nhint: {meant}\n")
    assert words[0].partition("=")[0] in told


def test_what_the_hint_says_of_a_setting_is_taken(data: Path, tiny_base: Path, terminal: Terminal) -> None:
    words = ("--model", tiny_base, "--data", data)
    told = terminal.refused("train", *words, "--epochs", "2", "--lr", "1e-4", status=2)
    settings = told.rpartition("key=value: ")[2].split()
    plan = json.loads(terminal.done("plan", *words, *settings, "--json").out)
    chosen = {each["name"]: each["value"] for each in plan["settings"]}
    assert plan["total_steps"] == 4
    assert "training.learning_rate" not in chosen  # What is given needs no reason.


def test_data_may_stand_where_a_config_may(data: Path, tiny_base: Path, terminal: Terminal) -> None:
    """`check DATA` is what README shows first."""
    told = terminal.done("train", data, "--model", tiny_base, "--dry-run")
    assert "4 of 4 rows kept" in told.err
    Path("faq.json").write_text(json.dumps(arithmetic_rows(3)))
    assert "3 of 3 rows kept" in terminal.done("train", "faq.json", "--model", tiny_base, "--dry-run").err
    told = terminal.refused("train", data, "--model", tiny_base, "--data", "faq.json", status=2)
    assert "data is given twice: faq.jsonl, and --data faq.json" in told


def test_what_is_missing_is_told_with_how_it_is_given(data: Path, terminal: Terminal) -> None:
    told = terminal.refused("inspect", data, status=2)
    assert "model.name_or_path is missing" in told
    assert "--model" in told
    told = terminal.refused("train", "--model", "demo", status=2)
    assert "data.path is missing" in told
    assert "--data" in told


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("train", "--resume"), "hint: name the run: truetune train --resume RUN"),
        (("train", "--resume", "runs/x"), "there is no run runs/x, and no checkpoint"),
        (("demo", "faq.jsonl"), "of your own rows: truetune train --model M --data faq.jsonl"),
        (("train", "run.yaml"), "truetune init DATA --model M -o run.yaml writes one"),
        (
            ("train", "--config", "run.yaml", "--lr=1"),
            "truetune train run.yaml; settings are written key=value: learning_rate=1",
        ),
        (("check", "faq.jsonl", "format=sharegpt"), "sharegpt is a spelling of chat, which is found by itself"),
        (("check", "faq.jsonl", "template=chatml"), "leave template out, and the model's own is used"),
        (("check", "faq.jsonl", "columns.body=text"), "write data.columns='{body: …}'"),
        (("check", "faq", "copy.jsonl"), "give one file, or the folder that holds them"),
        (("check", "my", "faq.jsonl"), "quote a name that has spaces: 'my faq.jsonl'"),
        (("eval", "runs/x", "faq.jsonl"), "rows are given with --data faq.jsonl"),
        (("generate", "--run", "runs/x"), "truetune generate runs/x"),
    ],
)
def test_other_ways_to_say_it_are_answered_too(
    words: tuple[str, ...], told: str, data: Path, terminal: Terminal
) -> None:
    Path("my faq.jsonl").touch()
    answer = terminal(*words)
    assert answer.status in (1, 2)
    assert told in answer.err


def test_a_command_that_asks_a_run_says_which_there_is(data: Path, terminal: Terminal) -> None:
    told = terminal.refused("chat", status=2)
    assert told.endswith("hint: give a run's directory: truetune chat runs/NAME\n")
    for name in ("old", "new"):
        record = Path("runs") / name / "run.json"
        record.parent.mkdir(parents=True)
        record.write_text("{}")
    told = terminal.refused("generate", "--prompt", "Hi", status=2)
    assert told.endswith("hint: give a run's directory, the newest here: truetune generate runs/new\n")
    told = terminal.refused("generate", "runs/new", "How are you?", status=2)
    assert "hint: a question is given with --prompt 'How are you?'" in told
    assert "hint: did you mean runs/new?" in terminal.refused("chat", "runs/nwe", status=1)
    told = terminal.refused("runs/new", status=2)
    assert "that is a run: truetune chat runs/new asks it" in told
