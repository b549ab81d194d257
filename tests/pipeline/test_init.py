"""`truetune init`'s file: it reads back as the config it was made of, and tells what moved each choice."""

from pathlib import Path

import pytest

from conftest import arithmetic_rows, write_jsonl
from heard import Heard
from truetune.config.load import load_config
from truetune.config.schema import Config
from truetune.pipeline.commented import WIDTH, commented_config
from truetune.pipeline.init import initial_config
from truetune.planning.hyperparameters import Choice

TRICKY = "Q: {instruction}\n  r: 5\nadapter:\n  lora_alpha: 3  # not a comment\n\n{output}\n"
"""A text that looks like settings."""


def config_of(**settings: object) -> Config:
    return load_config({"model": "demo", "data.path": "rows #1.jsonl", **settings}).config


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"template": TRICKY},
        {"target_modules": ["q_proj", "down_proj"], "columns": {"body": "text"}, "warmup_steps": 5},
        {"data.path": [{"path": "a.jsonl", "weight": 2}, {"path": "b: c.jsonl"}], "severity": {"TT210": "error"}},
        {"output_dir": "x" * 5000, "run_name": "é # \U0001f600", "response_marker": "'\"\t:"},
    ],
)
def test_a_commented_config_reads_back_to_an_equal_one(settings: dict[str, object], tmp_path: Path) -> None:
    config = config_of(**settings)
    (tmp_path / "run.yaml").write_text(commented_config(config, ()), encoding="utf-8")
    assert load_config(tmp_path / "run.yaml").config == config


def test_long_comments_stand_above_their_setting_and_none_runs_far_to_the_right() -> None:
    reason = "270 rows: " + "measured, but not on your rows; " * 6
    text = commented_config(config_of(), [Choice("adapter.r", 16, reason)])
    lines = text.splitlines()
    at = lines.index("  r: 16")
    assert lines[at - 2].startswith("  # 270 rows: measured")
    assert lines[at - 1].startswith("  # ")
    assert max(map(len, lines)) <= WIDTH
    assert "  lora_alpha: 16.0                            # LoRA scale: updates are multiplied by" in text


def test_a_reason_is_only_given_for_the_value_that_stands_there() -> None:
    text = commented_config(config_of(lora_alpha=32), [Choice("adapter.lora_alpha", 16.0, "the rules say 16")])
    assert "the rules say" not in text
    assert "lora_alpha: 32.0" in text


def test_sections_are_set_apart() -> None:
    text = commented_config(config_of(), ())
    assert text.startswith("model:\n")
    assert "\n\nlogging:\n  logging_steps: 10 " in text
    assert "\n\n\n" not in text


@pytest.fixture
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRUETUNE_CACHE", str(tmp_path / "cache"))


def written_by(text: str, folder: Path) -> Config:
    (folder / "run.yaml").write_text(text, encoding="utf-8")
    return load_config(folder / "run.yaml").config


@pytest.mark.usefixtures("_own_cache")
def test_init_writes_a_whole_config_that_tells_rows_tokens_steps_memory_and_time(
    tiny_base: Path, rows: Path, tmp_path: Path
) -> None:
    config = load_config({"model": str(tiny_base), "data.path": str(rows)}).config
    text = initial_config(config, listener=Heard())
    head = text.partition("\n\n")[0]
    assert "24 of 24 rows usable: " in head
    assert "24 rows to train, 0 to validate: 48 steps of 2 rows." in head
    assert " MB at the peak on cpu of " in head
    assert "# Time: under a minute, a rough estimate" in head
    assert "# Warning: data: 24" in head
    assert "truetune train FILE" in head
    assert "truetune schema > truetune.schema.json" in head
    written = written_by(text, tmp_path)
    assert written.training.learning_rate == 5e-4
    assert written.training.gradient_accumulation_steps == 1
    assert written.training.num_train_epochs == 4.0
    assert written.adapter.r == 16
    assert written.data == config.data.model_copy(update={"packing": False})
    assert "auto" not in {value for _, value in written.training}


@pytest.mark.usefixtures("_own_cache")
def test_init_takes_the_rules_advice_with_the_figures_of_what_it_writes(tiny_base: Path, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "few.jsonl", arithmetic_rows(20))
    config = load_config({"model": str(tiny_base), "data.path": str(data), "test_size": 0.4}).config
    text = initial_config(config, listener=Heard())
    written = written_by(text, tmp_path)
    assert written.training.num_train_epochs > 5
    assert written.evaluation.load_best_model_at_end
    assert written.evaluation.early_stopping_patience == 3
    assert f"{written.training.num_train_epochs:g} passes, " in " ".join(text.split())
    assert "the default; " not in text


@pytest.mark.usefixtures("_own_cache")
def test_what_the_user_gave_stays_and_advice_that_it_contradicts_is_not_taken(
    tiny_base: Path, tmp_path: Path
) -> None:
    data = write_jsonl(tmp_path / "few.jsonl", arithmetic_rows(20))
    given = {"test_size": 0.4, "save_strategy": "no", "num_train_epochs": 9, "r": 5}
    config = load_config({"model": str(tiny_base), "data.path": str(data), **given}).config
    written = written_by(initial_config(config, listener=Heard()), tmp_path)
    assert (written.adapter.r, written.training.num_train_epochs) == (5, 9.0)
    assert written.checkpoints.save_strategy == "no"
    assert not written.evaluation.load_best_model_at_end
    assert written.evaluation.early_stopping_patience is None


@pytest.mark.usefixtures("_own_cache")
def test_a_full_training_is_given_no_rank(tiny_base: Path, rows: Path, tmp_path: Path) -> None:
    config = load_config({"model": str(tiny_base), "data.path": str(rows), "method": "full"}).config
    assert written_by(initial_config(config, listener=Heard()), tmp_path).adapter.r == 16
