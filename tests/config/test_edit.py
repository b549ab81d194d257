"""Settings written into a person's config file, of which everything else stays."""

import json
from pathlib import Path
from typing import Any

import pytest

from truetune.config.edit import with_settings
from truetune.config.load import load_config

SECTIONED = """\
# Of Tuesday.
model:
  name_or_path: base   # the small one

data:
  path: a.jsonl
  max_seq_length: 2048  # as in the other tool

training:
  # found with find-lr
  lr: 2e-4
  micro_batch_size: 8   # eight
  num_train_epochs: 2

# How it is looked at.
evaluation:
  eval_steps: 20
"""
FLAT = """\
base_model: "base"     # the small one
dataset: a.jsonl
cutoff_len: 2048 # as in the other tool
per_device_train_batch_size: 8   # eight
training.gradient_checkpointing: false  # dotted
"""
CHANGES: dict[str, Any] = {
    "training.per_device_train_batch_size": 2,
    "training.gradient_accumulation_steps": 8,
    "training.gradient_checkpointing": True,
    "model.load_in_4bit": True,
    "data.max_length": 512,
}


def edited(tmp_path: Path, text: str, changes: dict[str, Any] = CHANGES, *, name: str = "run.yaml") -> str:
    """The file's text with the changes, which loads to them and to what it had otherwise."""
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    before = load_config(path).config.model_dump()
    told = with_settings(path, changes)
    path.write_text(told, encoding="utf-8")
    for dotted, value in changes.items():
        section, _, leaf = dotted.partition(".")
        before[section][leaf] = value
    assert load_config(path).config.model_dump() == before
    return told


def comments(text: str) -> list[str]:
    return [line.partition("#")[2].strip() for line in text.splitlines() if "#" in line]


@pytest.mark.parametrize("text", [SECTIONED, FLAT], ids=["in sections", "flat"])
def test_a_file_has_the_new_values_and_keeps_its_comments_in_their_order(text: str, tmp_path: Path) -> None:
    assert comments(edited(tmp_path, text)) == comments(text)


def test_values_stand_where_they_stood_and_other_tools_names_become_ours(tmp_path: Path) -> None:
    lines = [" ".join(line.split()) for line in edited(tmp_path, SECTIONED).splitlines()]
    assert "max_length: 512 # as in the other tool" in lines
    at = lines.index("training:")
    assert lines[at : at + 6] == [
        "training:",
        "# found with find-lr",
        "lr: 2e-4",
        "per_device_train_batch_size: 2 # eight",
        "num_train_epochs: 2",
        "gradient_accumulation_steps: 8",
    ]
    assert lines.index("gradient_checkpointing: true") < lines.index("# How it is looked at.")
    assert not any("max_seq_length" in line or "micro_batch_size" in line for line in lines)


def test_a_dotted_name_stays_dotted_and_a_new_setting_without_its_section_is(tmp_path: Path) -> None:
    told = edited(tmp_path, FLAT)
    assert "training.gradient_checkpointing: true" in told
    assert "model.load_in_4bit: true" in told
    assert "\nper_device_train_batch_size: 2" in told


def test_a_section_is_never_taken_for_another_tools_name_of_a_setting(tmp_path: Path) -> None:
    told = edited(tmp_path, SECTIONED, {"model.name_or_path": "other", "model.dtype": "float32"})
    assert told.startswith("# Of Tuesday.\nmodel:\n  name_or_path: other")


def test_a_name_in_another_section_gives_way(tmp_path: Path) -> None:
    text = "model: {name_or_path: base}\ndata: {path: a.jsonl}\ntraining: {max_seq_length: 9}\n"
    assert "training: {}" in edited(tmp_path, text, {"data.max_length": 512})


def test_a_file_of_json_stays_json(tmp_path: Path) -> None:
    text = json.dumps({"model": {"name_or_path": "base"}, "training": {"micro_batch_size": 8}})
    told = json.loads(edited(tmp_path, text, name="run.json"))
    assert next(iter(told["training"])) == "per_device_train_batch_size"
    assert told["model"] == {"name_or_path": "base", "load_in_4bit": True}
