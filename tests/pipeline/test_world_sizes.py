"""G28: the batch is counted over all processes, its formula told once, and all three factors are recorded."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch

import truetune
from conftest import arithmetic_rows, write_jsonl
from heard import Heard
from truetune.cli import main
from truetune.config.load import load_config
from truetune.pipeline import machine as machine_module
from truetune.pipeline.machine import ask_machine
from truetune.pipeline.plan import plan_run
from truetune.pipeline.prepare import prepare_rows
from truetune.pipeline.resume import identity

BATCH = {
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 3,
    "num_train_epochs": 1,
    "packing": "false",
    "test_size": 0,
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRUETUNE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def words(tiny_base: Path, tmp_path: Path) -> list[str]:
    data = write_jsonl(tmp_path / "hundred.jsonl", arithmetic_rows(100))
    settings = [f"{name}={value}" for name, value in BATCH.items()]
    return ["train", "--model", str(tiny_base), "--data", str(data), "--dry-run", *settings]


def launched(monkeypatch: pytest.MonkeyPatch, *, world: int, rank: int = 0) -> None:
    """As torchrun sets it."""
    for name, value in (("WORLD_SIZE", world), ("RANK", rank), ("LOCAL_RANK", rank)):
        monkeypatch.setenv(name, str(value))


@pytest.mark.parametrize(
    ("world", "steps", "formula"),
    [
        (1, "17 steps, 17 an epoch of 50 batches a process", "6 sequences a step = 2 per device x 3 accumulated x 1"),
        (4, "5 steps, 5 an epoch of 13 batches a process", "24 sequences a step = 2 per device x 3 accumulated x 4"),
    ],
)
def test_g28_the_plan_tells_the_formula_with_its_three_factors(
    words: list[str],
    world: int,
    steps: str,
    formula: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    launched(monkeypatch, world=world)
    assert main(words) == 0
    said = capsys.readouterr().err
    assert f"{steps}; {formula} processes" in said
    assert said.count("sequences a step") == 1
    # The rate is not changed behind the user's back: one process and four learn at the same one.
    assert "training.learning_rate: 0.0005 " in said


def test_g28_of_four_processes_one_tells_the_plan_and_all_tell_errors(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    launched(monkeypatch, world=4, rank=3)
    assert main(words) == 0
    assert capsys.readouterr() == ("", "")
    assert main([*words, "learnig_rate=1"]) == 2
    assert "learning_rate" in capsys.readouterr().err


def test_g28_a_checkpoint_records_the_batch_a_device_the_accumulation_and_the_processes(
    tiny_base: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    launched(monkeypatch, world=4)
    data = write_jsonl(tmp_path / "hundred.jsonl", arithmetic_rows(100))
    settings: dict[str, Any] = {**BATCH, "packing": False, "name_or_path": str(tiny_base), "data.path": str(data)}
    config = load_config(settings=settings).config
    machine = ask_machine(config, Heard())
    prepared = prepare_rows(config, tokenizer=machine.tokenizer, context_length=None, listener=Heard())
    recorded = identity(plan_run(config, machine=machine, prepared=prepared), machine, prepared)
    factors = [
        recorded[name]
        for name in ("training.per_device_train_batch_size", "training.gradient_accumulation_steps", "processes")
    ]
    assert factors == [2, 3, 4]
    assert 24 in recorded.values()


@pytest.mark.parametrize("said", ["four", "0", "-1"])
def test_a_world_size_that_is_no_number_of_processes_is_refused(
    said: str, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", said)
    with pytest.raises(truetune.ConfigError, match="WORLD_SIZE is"):
        ask_machine(load_config(settings={"name_or_path": str(tiny_base)}).config, Heard())


def test_g28_processes_that_nobody_started_are_refused(tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    launched(monkeypatch, world=2)
    config = load_config(settings={"name_or_path": str(tiny_base), "num_gpus": 4}).config
    with pytest.raises(truetune.ConfigError, match="num_processes is 4, and 2"):
        ask_machine(config, Heard())


def test_g28_the_plan_of_a_run_tells_the_formula_once_too(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    launched(monkeypatch, world=4)
    main(["plan", *[word for word in words[1:] if word != "--dry-run"]])
    said = "".join(capsys.readouterr())
    assert said.count("24 sequences a step = 2 per device x 3 accumulated x 4 processes") == 1


def test_g28_several_gpus_without_a_launcher_are_one_process_on_one_and_that_is_said(
    tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    monkeypatch.setattr(machine_module, "resolve_device", lambda _: "cuda")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    config = load_config(settings={"name_or_path": str(tiny_base), "training.precision": "fp32"}).config
    heard = Heard()
    assert machine_module._device(config, heard)[0] == "cuda"
    assert "4 GPUs are visible and one is used; truetune train --num-processes 4 uses all" in heard.text()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "4"
    assert machine_module.processes_of(config) == 1
