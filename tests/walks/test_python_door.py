"""Somebody at the Python door: whatever they hold rows in, whatever they call a setting, and what they get back."""

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import truetune
from conftest import arithmetic_rows, write_jsonl

ROWS = arithmetic_rows(12)


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def frame() -> Any:
    import pandas

    return pandas.DataFrame(ROWS)


def dataset() -> Any:
    import datasets

    return datasets.Dataset.from_list(ROWS)


def splits() -> Any:
    import datasets

    return datasets.DatasetDict({"train": dataset()})


def generator() -> Iterator[dict[str, Any]]:
    yield from ROWS


def file() -> Path:
    return write_jsonl(Path("rows.jsonl"), ROWS)


HOLDERS: dict[str, Callable[[], Any]] = {
    "a list": lambda: ROWS,
    "a tuple": lambda: tuple(ROWS),
    "a DataFrame": frame,
    "a Dataset": dataset,
    "a DatasetDict": splits,
    "a generator": generator,
    "a path": file,
    "a path as text": lambda: str(file()),
    "a list of paths": lambda: [file()],
}


@pytest.mark.parametrize("holder", HOLDERS)
def test_rows_are_taken_from_whatever_holds_them(holder: str, tiny_base: Path) -> None:
    shown = truetune.inspect(model=str(tiny_base), data=HOLDERS[holder](), rows=20)
    assert [row["spans"] for row in shown.as_json()["rows"]] == [[f"{row['output']}<|im_end|>"] for row in ROWS]


@pytest.mark.parametrize(
    ("held", "remedy"),
    [
        ({"instruction": ["a", "b"], "output": ["c", "d"]}, "zip(*data.values())"),
        (["The sky is blue.", "Grass is green."], '{"text": …}'),
        ([["a", "b"]], "a row must be a mapping"),
        (iter(["a text"]), "a row must be a mapping"),
        ([], "no rows"),
        (7, "rows are expected"),
        ("rows.jsnl", "did you mean rows.jsonl?"),
    ],
    ids=["columns", "texts", "pairs", "a generator of texts", "nothing", "a number", "a typo"],
)
def test_what_holds_no_rows_says_how_they_are_given(held: Any, remedy: str, tiny_base: Path) -> None:
    file()
    with pytest.raises(truetune.TruetuneError) as raised:
        truetune.train(model=str(tiny_base), data=held, max_steps=1)
    assert remedy in str(raised.value)
    assert not Path("runs").exists() or not any(Path("runs").rglob("run.json"))


def test_names_of_other_tools_are_understood_and_told(tiny_base: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="truetune")
    settings = {"epochs": 1, "lr": 1e-3, "lora_r": 4, "max_seq_length": 128, "max_steps": 1}
    run = truetune.train(model_name=str(tiny_base), dataset=ROWS, **settings)  # type: ignore[arg-type]
    assert (run.config.training.learning_rate, run.config.adapter.r) == (1e-3, 4)
    for told in ("lr is now training.learning_rate: 0.001", "dataset is now data"):
        assert told in caplog.text


@pytest.mark.parametrize("name", ["dataset", "train_dataset"])
def test_rows_under_another_name_are_rows_all_the_same(name: str, tiny_base: Path) -> None:
    shown = truetune.inspect(model=str(tiny_base), **{name: ROWS})
    assert shown.as_json()["rows"][0]["spans"] == [f"{ROWS[0]['output']}<|im_end|>"]


@pytest.mark.parametrize(
    ("settings", "remedy"),
    [
        ({"learnig_rate": 1e-3}, "did you mean training.learning_rate?"),
        ({"batch_size": 4}, "per_device_train_batch_size"),
        ({"eval_dataset": ROWS}, "validation_path"),
        ({"learning_rate": [*range(500)]}, "training.learning_rate must be"),
        ({"tokenizer": object()}, "the tokenizer comes with the model"),
    ],
)
def test_a_wrong_keyword_is_answered_before_anything_loads_and_in_a_line(
    settings: dict[str, Any], remedy: str, tiny_base: Path
) -> None:
    with pytest.raises(truetune.ConfigError) as raised:
        truetune.train(model=str(tiny_base), data=ROWS, **settings)
    assert remedy in raised.value.message
    assert all(len(line) < 300 for line in raised.value.message.splitlines())


def test_without_a_model_the_keyword_is_named() -> None:
    with pytest.raises(truetune.ConfigError, match="no model: name one with model="):
        truetune.train(data=ROWS)


def test_a_config_of_another_tool_is_said_to_be_one() -> None:
    Path("lora.yml").write_text("base_model: m\nsequence_len: 64\nmicro_batch_size: 1\nflash_attention: true\n")
    with pytest.raises(truetune.ConfigError) as raised:
        truetune.train("lora.yml")
    assert "truetune.import_config" in str(raised.value.hint)


def test_the_run_that_comes_back_can_be_looked_at_asked_and_passed_on(tiny_base: Path) -> None:
    run = truetune.train(model=str(tiny_base), data=ROWS, max_steps=2, logging_steps=1, output_dir="run")
    assert (run.status, run.steps, len(run.losses)) == ("finished", 2, 2)
    assert run.adapter == Path("run/adapter")
    assert run.final_loss == pytest.approx(sum(run.losses) / 2, rel=0.5)
    assert str(run) == f"Run('run', finished, 2 steps, final_loss={run.final_loss:.4g})"
    model = truetune.load(run)
    assert len(model.generate("Add 1 and 2", max_new_tokens=2).answer_ids) <= 2
    assert len(model.chat([{"role": "user", "content": "Add 1 and 2"}], max_new_tokens=3).answer_ids) <= 3
    with pytest.raises(truetune.ConfigError, match="max_tokens") as raised:
        model.generate("Add 1 and 2", max_tokens=2)
    assert raised.value.hint == "did you mean max_new_tokens?"
    assert truetune.open_run("run") == run
    assert json.loads((run.directory / "run.json").read_text())["status"] == "finished"
