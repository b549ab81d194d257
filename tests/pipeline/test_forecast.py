"""`truetune plan`: the steps, settings and memory of the run that follows, told before it."""

import json
from pathlib import Path

import pytest

import truetune
from conftest import arithmetic_rows, write_jsonl
from heard import FAST
from truetune.cli import main
from truetune.config.schema import SECTIONS, json_schema


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRUETUNE_CACHE", str(tmp_path / "cache"))


def test_the_plan_is_what_the_run_then_does(tiny_base: Path, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "a.jsonl", arithmetic_rows(30))
    settings = {**FAST, "num_train_epochs": 2, "gradient_accumulation_steps": 2}
    told = truetune.plan(model=str(tiny_base), data=data, **settings).as_json()
    run = truetune.train(model=str(tiny_base), data=data, output_dir=tmp_path / "run", **settings)
    record = json.loads((run.directory / "run.json").read_text())
    assert told["total_steps"] == run.steps == record["total_steps"]
    assert told["sequences"] == 30
    assert told["effective_batch_size"] == 2 * run.config.training.per_device_train_batch_size
    decided = {setting["name"]: setting["value"] for setting in told["settings"]}
    assert decided["training.optim"] == run.config.training.optim
    assert all(setting["reason"] for setting in told["settings"])
    report = json.loads((run.directory / "data-report.json").read_text())
    assert (told["tokens"], told["supervised_tokens"]) == (
        report["stats"]["tokens"],
        report["stats"]["supervised_tokens"],
    )


def test_the_parts_of_memory_make_the_peak_and_checkpointing_takes_less(tiny_base: Path, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "a.jsonl", arithmetic_rows(30))
    with_it, without = (
        truetune.plan(model=str(tiny_base), data=data, gradient_checkpointing=wanted) for wanted in (True, False)
    )
    for forecast in (with_it, without):
        memory = forecast.as_json()["memory"]
        assert sum(memory["parts"].values()) == memory["peak_bytes"]
    assert with_it.plan.memory.activations < without.plan.memory.activations
    assert with_it.fits


def test_the_command_prints_one_document_or_words_and_writes_no_run(
    tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_jsonl(tmp_path / "a.jsonl", arithmetic_rows(30))
    words = ("plan", "--model", str(tiny_base), "--data", str(data), f"output_dir={tmp_path / 'run'}")
    assert main([*words, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert {"total_steps", "memory", "seconds", "disk_bytes", "settings"} <= told.keys()
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert f"{told['total_steps']} steps" in shown
    assert "training.learning_rate: " in shown
    assert not (tmp_path / "run").exists()
    assert main(["plan", "--model", str(tiny_base), "--data", str(tmp_path / "none.jsonl")]) == 1


def test_the_schema_has_every_setting_with_its_words_and_no_other(capsys: pytest.CaptureFixture[str]) -> None:
    schema = json_schema()
    assert main(["schema"]) == 0
    assert json.loads(capsys.readouterr().out) == schema
    for name, section in SECTIONS.items():
        found = schema["$defs"][section.__name__]
        assert schema["properties"][name]["$ref" if "$ref" in schema["properties"][name] else "default"]
        assert found["properties"].keys() == section.model_fields.keys()
        assert found["additionalProperties"] is False
        assert all("description" in each or "$ref" in each for each in found["properties"].values())
