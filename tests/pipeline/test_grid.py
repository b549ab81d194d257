"""A sweep's words: commas make choices, brackets and quotes keep them, and all that is wrong is told first."""

from collections.abc import Sequence
from typing import Any

import pytest

from truetune.config.load import dump_given, load_config
from truetune.config.schema import Config
from truetune.errors import ConfigError
from truetune.pipeline.review.grid import Grid, read_grid


def load(words: Sequence[str], **settings: Any) -> Config:
    given = {"model.name_or_path": "org/model", "data.path": "rows.jsonl", **settings}
    return load_config(None, settings=given, overrides=words).config


def grid(*words: str) -> Grid:
    return read_grid(words, load)


def test_each_way_to_choose_is_a_run_with_its_settings_and_its_name() -> None:
    found = grid("learning_rate=1e-4,2e-4", "lora_rank=8,16", "num_train_epochs=1")
    assert [point.name for point in found.points] == [
        "learning_rate=0.0001,r=8",
        "learning_rate=0.0001,r=16",
        "learning_rate=0.0002,r=8",
        "learning_rate=0.0002,r=16",
    ]
    assert found.points[1].settings == {"training.learning_rate": 1e-4, "adapter.r": 16}
    config = found.points[1].config
    assert (config.training.learning_rate, config.adapter.r, config.training.num_train_epochs) == (1e-4, 16, 1)
    assert found.values == {"training.learning_rate": [1e-4, 2e-4], "adapter.r": [8, 16]}
    assert found.base == {
        "model.name_or_path": "org/model",
        "data.path": "rows.jsonl",
        "training.num_train_epochs": 1.0,
    }


def test_commas_in_brackets_braces_and_quotes_part_nothing() -> None:
    found = grid("target_modules=[q_proj, v_proj],all-linear", "columns={a: b, c: d}", "template='a, {output}'")
    assert [point.config.adapter.target_modules for point in found.points] == [("q_proj", "v_proj"), "all-linear"]
    assert found.points[0].config.data.columns == {"a": "b", "c": "d"}
    assert found.points[0].config.data.template == "a, {output}"


def test_a_run_s_folder_tells_values_apart_that_read_alike() -> None:
    names = [point.name for point in grid("data.path=a/b.jsonl,a-b.jsonl,a b.jsonl").points]
    assert len(set(names)) == 3
    assert names[1] == "path=a-b.jsonl"
    assert all(set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-.=") for name in names)


def test_what_is_wrong_with_any_of_the_runs_is_told_before_the_first() -> None:
    with pytest.raises(ConfigError) as caught:
        grid("r=8,x", "learning_rate=1e-4,-1", "learnig_rate=2")
    told = str(caught.value)
    assert "adapter.r must be" in told
    assert "training.learning_rate must be" in told
    assert told.count("learnig_rate: unknown setting (did you mean training.learning_rate?)") == 1


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("learning_rate=1e-4",), "nothing is swept"),
        ((), "nothing is swept"),
        (("target_modules=[q_proj,v_proj]",), "nothing is swept"),
        (("r=8,,16",), "a value is missing beside a comma"),
        (("r=8,8",), "the same run twice"),
        (("lr=1e-4,1.0e-4",), "the same run twice"),
        (("bf16=true,false",), "not all of these set something"),
        (("lr=1e-4,2e-4", "learning_rate=3e-4"), "contradicts"),
    ],
)
def test_words_that_make_no_grid_are_refused(words: Sequence[str], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        grid(*words)


def test_a_written_point_reads_back_with_its_defaults_still_free() -> None:
    import tempfile
    from pathlib import Path

    config = grid("warmup_steps=5,10", "eval_steps=20").points[1].config
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "point.yaml"
        path.write_text(dump_given(config), encoding="utf-8")
        again = load_config(path).config
    assert again == config
    assert again.training.model_fields_set == config.training.model_fields_set
    assert "optim" not in again.training.model_fields_set
