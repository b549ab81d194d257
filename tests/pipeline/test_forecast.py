"""`truetune plan`: the steps, settings and memory of the run that follows, told before it."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig

import truetune
from conftest import CHATML, arithmetic_rows, byte_tokenizer, write_jsonl
from heard import FAST
from truetune.cli import main
from truetune.config.json_schema import json_schema
from truetune.config.load import load_config
from truetune.config.schema import SECTIONS
from truetune.errors import ConfigError


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRUETUNE_CACHE", str(tmp_path_factory.getbasetemp() / "forecasts"))


def test_the_plan_is_what_the_run_then_does(tiny_base: Path, tmp_path: Path) -> None:
    """Steps, settings, evaluations and checkpoints, and what was automatic; at its end the two are compared."""
    data = write_jsonl(tmp_path / "a.jsonl", arithmetic_rows(40))
    settings = {
        **FAST,
        "r": "auto",
        "num_train_epochs": "auto",
        "per_device_train_batch_size": "auto",
        "gradient_accumulation_steps": 2,
        "test_size": 0.2,
        "save_total_limit": None,
        "save_strategy": "steps",
        "save_steps": 0.4,
    }
    told = truetune.plan(model=str(tiny_base), data=data, **settings).as_json()
    run = truetune.train(model=str(tiny_base), data=data, output_dir=tmp_path / "run", **settings)
    record = json.loads((run.directory / "run.json").read_text())
    assert told["total_steps"] == run.steps == record["total_steps"]
    training = run.config.training
    batch = training.per_device_train_batch_size * training.gradient_accumulation_steps
    assert told["effective_batch_size"] == batch == 4
    report = json.loads((run.directory / "data-report.json").read_text())["stats"]
    assert (told["tokens"], told["supervised_tokens"]) == (report["tokens"], report["supervised_tokens"])

    written = load_config(run.directory / "config.yaml").config
    decided = {setting["name"]: setting["value"] for setting in told["settings"]}
    for name in ("adapter.r", "training.num_train_epochs", "training.per_device_train_batch_size", "training.optim"):
        section, _, leaf = name.partition(".")
        assert decided[name] == getattr(getattr(written, section), leaf) != "auto"
    assert all(setting["reason"] for setting in told["settings"])

    lines = [json.loads(line) for line in (run.directory / "metrics.jsonl").read_text().splitlines()]
    assert told["evaluations"] == sum("eval_loss" in line for line in lines) > 2
    assert told["checkpoints"] == len(list((run.directory / "checkpoints").glob("checkpoint-*"))) == 3
    assert record["planned"]["memory"]["parts"] == told["memory"]["parts"]
    assert record["planned"]["seconds"] == told["seconds"]


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


# --- other machines -----------------------------------------------------------------------------------------


def test_a_batch_that_is_automatic_keeps_the_rows_a_step(tiny_base: Path, rows: Path) -> None:
    fixed, automatic = (
        truetune.plan(
            model=str(tiny_base), data=rows, gradient_accumulation_steps=4, per_device_train_batch_size=size
        )
        for size in (2, "auto")
    )
    assert automatic.plan.config.training.per_device_train_batch_size == 8
    assert automatic.plan.steps.effective_batch_size == fixed.plan.steps.effective_batch_size == 8
    assert automatic.plan.steps.total_steps == fixed.plan.steps.total_steps


def test_a_plan_for_a_device_is_held_against_its_memory_and_priced(tiny_base: Path, rows: Path) -> None:
    found = truetune.plan(model=str(tiny_base), data=rows, device="rtx4090", price_per_hour=7200.0)
    told = found.as_json()
    assert told["device"] == "RTX 4090"
    assert 22 * 2**30 < told["memory"]["free_bytes"] < 24 * 2**30
    assert told["fits"]
    assert told["changes"] == []
    assert told["cost"] == pytest.approx(2 * told["seconds"])
    assert told["time"]["source"] == "estimate"


def test_several_devices_share_what_they_hold_where_it_is_sharded(big_base: Path, long_rows: Path) -> None:
    """Each of them steps on rows of its own either way; a checkpoint on the disk is as large."""
    settings = {"adapter.method": "full", "num_train_epochs": 1, "gradient_checkpointing": True}
    alone, ddp, fsdp = (
        truetune.plan(model=str(big_base), data=long_rows, device=device, parallel=parallel, **settings)
        for device, parallel in (("h200", "ddp"), ("h200:4", "ddp"), ("h200:4", "fsdp"))
    )
    assert alone.peak == ddp.peak > 1.5 * fsdp.peak
    assert fsdp.parts["optimizer"] == pytest.approx(ddp.parts["optimizer"] / 4, rel=0.01)
    assert (alone.processes, fsdp.processes) == (1, 4)
    assert fsdp.plan.steps.effective_batch_size == ddp.plan.steps.effective_batch_size
    assert fsdp.plan.disk_bytes == ddp.plan.disk_bytes
    assert fsdp.duration == ddp.duration


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"device": "RTX 4091"}, "RTX 4090"),
        ({"device": "banana"}, "H100"),
        ({"parallel": "fsdp"}, "several devices"),
        ({"device": "h100", "parallel": "fsdp"}, "several devices"),
        ({"device": "h100:8", "num_processes": 2}, "names 8"),
        ({"price_per_hour": -1.0}, "negative"),
        ({"price_per_hour": float("nan")}, "negative"),
        ({"price_per_hour": float("inf")}, "negative"),
    ],
)
def test_what_no_machine_is_is_refused(asked: dict[str, Any], told: str, tiny_base: Path, rows: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        truetune.plan(model=str(tiny_base), data=rows, **asked)
    assert told in f"{caught.value.message} {caught.value.hint}"


# --- what does not fit --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def big_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of 7B as far as its configuration goes, without weights, and the byte tokenizer."""
    folder = tmp_path_factory.mktemp("big")
    config = LlamaConfig(vocab_size=32_000, architectures=["LlamaForCausalLM"], dtype="bfloat16")
    config.save_pretrained(folder)
    byte_tokenizer(chat_template=CHATML).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def long_rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [{**row, "output": f"{row['output']} and so on" * 150} for row in arithmetic_rows(8)]
    return write_jsonl(tmp_path_factory.mktemp("data") / "long.jsonl", rows)


def test_fit_rewrites_the_file_which_then_fits_and_keeps_its_comments(
    big_base: Path, long_rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "run.yaml"
    text = (
        f"model: {{name_or_path: {big_base}}}\ndata:\n  path: {long_rows}\n# The large card is booked.\n"
        "training:\n  micro_batch_size: 4  # four\n  grad_accum: 2\n  gradient_checkpointing: false\n"
    )
    file.write_text(text)
    words = ["plan", str(file), "--device", "rtx 4090", "--json"]
    assert main(words) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["fits"] is False
    assert told["changes"]
    assert file.read_text() == text

    assert main([*words, "--fit"]) == 0
    assert "written" in capsys.readouterr().err
    assert "# The large card is booked." in file.read_text()
    assert "# four" in file.read_text()
    assert main([*words, "--fit"]) == 0
    again = capsys.readouterr()
    fitted = json.loads(again.out)
    assert fitted["fits"]
    assert fitted["changes"] == []
    assert fitted["effective_batch_size"] == told["effective_batch_size"]
    assert "nothing to change" in again.err
    written = load_config(file).config
    for change in told["changes"]:
        for name, value in change["settings"].items():
            section, _, leaf = name.partition(".")
            assert getattr(getattr(written, section), leaf) == value


def test_a_plan_that_nothing_makes_fit_says_so_and_ends_with_1(
    big_base: Path, long_rows: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "plan",
        "--model",
        str(big_base),
        "--data",
        str(long_rows),
        "adapter.method=full",
        "--device",
        "rtx 3060 8gb",
    ]
    assert main([*words, "--fit"]) == 1
    shown = capsys.readouterr().out
    assert "does not fit" in shown
    assert "no change of settings makes it fit" in shown


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
