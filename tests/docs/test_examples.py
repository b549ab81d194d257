"""The guide's full training script as a config, for each engine; tests/unsloth trains the one for Unsloth."""

import json
from pathlib import Path
from typing import Any

import pytest

import truetune
from truetune.config.load import load_config
from truetune.config.schema import Config

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
GUIDE_CONFIGS = {backend: EXAMPLES / f"guide-{backend}.yaml" for backend in ("trl", "unsloth")}

SCRIPT = {
    "model.name_or_path": "unsloth/llama-3-8b-bnb-4bit",
    "model.dtype": "auto",
    "model.load_in_4bit": True,
    "adapter.method": "lora",
    "adapter.r": 16,
    "adapter.lora_alpha": 16,
    "adapter.lora_dropout": 0,
    "adapter.target_modules": ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    "adapter.bias": "none",
    "data.max_length": 2048,
    "data.packing": True,
    "data.test_size": 0.1,
    "training.num_train_epochs": 3,
    "training.per_device_train_batch_size": 2,
    "training.gradient_accumulation_steps": 4,
    "training.learning_rate": 2e-4,
    "training.lr_scheduler_type": "linear",
    "training.warmup_ratio": 0.03,
    "training.weight_decay": 0.01,
    "training.optim": "adamw_8bit",
    "training.gradient_checkpointing": True,
    "training.precision": "auto",
    "evaluation.eval_strategy": "epoch",
    "checkpoints.save_strategy": "epoch",
    "logging.logging_steps": 10,
    "output_dir": "output",
}
"""What the script sets, in our names."""


def settings(config: Config) -> dict[str, Any]:
    document = config.model_dump()
    sections = {name: section for name, section in document.items() if isinstance(section, dict)}
    leaves = {f"{name}.{leaf}": value for name, section in sections.items() for leaf, value in section.items()}
    return {**leaves, "output_dir": config.output_dir}


def load(backend: str) -> dict[str, Any]:
    return settings(load_config(GUIDE_CONFIGS[backend]).config)


@pytest.mark.parametrize("config", sorted(EXAMPLES.glob("*.yaml")), ids=lambda config: config.name)
def test_every_example_config_is_valid_and_names_rows_that_exist(config: Path) -> None:
    path = load_config(config).config.data.path
    assert isinstance(path, str)
    assert (ROOT / path).is_file()


@pytest.mark.parametrize("backend", GUIDE_CONFIGS)
def test_a_guide_config_sets_all_that_the_guides_script_sets(backend: str) -> None:
    found = load(backend)
    assert {name: found[name] for name in SCRIPT} == SCRIPT
    assert found["training.backend"] == backend


def test_the_two_guide_configs_differ_in_the_engine_alone() -> None:
    trl, unsloth = load("trl"), load("unsloth")
    assert {name for name in trl if trl[name] != unsloth[name]} == {"training.backend"}


def test_every_guide_row_reaches_the_model_with_its_input(tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    rows = json.loads((EXAMPLES / "instructions.json").read_text(encoding="utf-8"))
    seen = truetune.inspect(GUIDE_CONFIGS["trl"], model=str(tiny_base), rows=len(rows)).rows
    for row, shown in zip(rows, seen, strict=True):
        assert f"### Instruction:\n{row['instruction']}\n" in shown.text
        assert (f"### Input:\n{row['input']}\n" if row["input"] else "### Response:\n") in shown.text
        assert [text for text, is_learned in shown.pieces if is_learned] == [f"{row['output']}</s>"]


def test_the_guide_config_trains_on_trl_in_4_bits(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    run = truetune.train(
        GUIDE_CONFIGS["trl"],
        model=str(tiny_base),
        output_dir=tmp_path / "output",
        max_length=1024,
        max_steps=1,
    )
    assert run.status == "finished"
    assert run.adapter is not None
    assert len(run.losses) == 1
    record = json.loads((tmp_path / "output" / "run.json").read_text(encoding="utf-8"))
    assert record["backend"] == "trl"
