"""A trained model is prompted as it was trained, and stops where it learned to."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import truetune
from conftest import CHATML, STRICT, tiny_model
from truetune.data.examples import Message
from truetune.inference.chat import Chat
from truetune.inference.generate import Answer, Sampling

ROWS = [
    {"instruction": "hi", "output": "yo"},
    {"instruction": "bye", "output": "so long"},
    {"instruction": "more", "output": "ok!"},
]


def trained(base: Path, folder: Path, rows: list[dict[str, Any]] = ROWS, **settings: Any) -> truetune.Run:
    """A tiny model that knows its rows by heart."""
    options = {"method": "full", "precision": "fp32", "num_train_epochs": 60, "learning_rate": 1e-2}
    return truetune.train(
        model=str(base),
        data=rows,
        output_dir=folder,
        per_device_train_batch_size=3,
        packing=False,
        save_strategy="no",
        **{**options, **settings},
    )


def base_with(folder: Path, tk: Any, template: str | None) -> Path:
    tiny_model(hidden_size=64, intermediate_size=128).save_pretrained(folder)
    tk(chat_template=template).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def chatml(tk: Any, tmp_path_factory: pytest.TempPathFactory) -> truetune.Run:
    folder = tmp_path_factory.mktemp("chatml")
    return trained(base_with(folder / "base", tk, CHATML), folder / "run")


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["output"])
def test_greedy_answers_are_those_learned_and_end_at_the_templates_terminator(
    chatml: truetune.Run, row: dict[str, str]
) -> None:
    answer = truetune.load(chatml).generate(row["instruction"])
    assert (answer.text, answer.stop_reason) == (row["output"], "stop")


def test_an_answer_cut_by_the_limit_says_so(chatml: truetune.Run) -> None:
    answer = truetune.load(chatml).generate("bye", sampling=Sampling(max_new_tokens=2))
    assert (answer.text, answer.stop_reason) == ("so", "length")


def test_a_terminator_of_many_tokens_ends_the_answer_and_is_no_part_of_it(tk: Any, tmp_path: Path) -> None:
    run = trained(base_with(tmp_path / "base", tk, STRICT), tmp_path / "run")
    answer = truetune.load(run).generate("bye")
    assert (answer.text, answer.stop_reason) == ("so long", "stop")


def test_alpaca_prompts_are_stored_with_the_model(tk: Any, tmp_path: Path) -> None:
    run = trained(base_with(tmp_path / "base", tk, None), tmp_path / "run")
    model = truetune.load(run)
    answer = model.generate("hi")
    assert (answer.text, answer.stop_reason) == ("yo", "stop")
    prompt = bytes(answer.prompt_ids).decode()
    assert prompt.endswith("### Instruction:\nhi\n\n### Response:\n")
    with_input = bytes(model.generate("hi", input="there").prompt_ids).decode()
    assert "### Input:\nthere" in with_input


def test_completion_rows_are_gone_on_from_as_plain_text(tk: Any, tmp_path: Path) -> None:
    rows = [{"prompt": "one two", "completion": " three"}, {"prompt": "a b", "completion": " c"}]
    run = trained(
        base_with(tmp_path / "base", tk, CHATML), tmp_path / "run", rows, num_train_epochs=200, learning_rate=2e-3
    )
    answer = truetune.load(run).generate("one two")
    assert (answer.text, answer.stop_reason) == (" three", "stop")
    assert bytes(answer.prompt_ids).decode() == "one two"


def test_g26_the_saved_tokenizer_renders_training_s_prompt_without_truetune(tk: Any, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    base = base_with(tmp_path / "base", tk, None)
    (tmp_path / "own.jinja").write_text(CHATML)
    run = trained(base, tmp_path / "run", template=str(tmp_path / "own.jinja"), num_train_epochs=1)
    assert run.adapter
    (tmp_path / "own.jinja").unlink()
    tokenizer = AutoTokenizer.from_pretrained(run.adapter)
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}], add_generation_prompt=True, return_dict=True
    )["input_ids"]
    assert len(ids) == 21
    assert tuple(ids) == truetune.load(run).generate("hi", sampling=Sampling(1)).prompt_ids


@pytest.mark.parametrize("template", ["alpaca", 'He said: "{instruction}"\n{input}\\ {{ x }} é\n{output} !'])
@pytest.mark.parametrize("adds_bos", [True, False])
def test_g26_a_server_that_knows_only_the_tokenizer_prompts_as_training_did(
    tk: Any, tmp_path: Path, template: str, adds_bos: bool
) -> None:
    from transformers import AutoTokenizer

    tiny_model().save_pretrained(tmp_path / "base")
    tk(chat_template=CHATML, adds_bos=adds_bos).save_pretrained(tmp_path / "base")
    run = trained(tmp_path / "base", tmp_path / "run", template=template, num_train_epochs=1)
    assert run.adapter
    tokenizer = AutoTokenizer.from_pretrained(run.adapter)
    asked = [{"role": "user", "content": 'hi "there"\n'}]
    served = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert tuple(served) == truetune.load(run).generate('hi "there"\n', sampling=Sampling(1)).prompt_ids
    (row,) = truetune.inspect(run.directory / "config.yaml", rows=1).rows
    whole = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}], return_dict=True
    )["input_ids"]
    assert whole == row.tokens.input_ids


def test_a_batch_answers_as_one_by_one(chatml: truetune.Run) -> None:
    model = truetune.load(chatml)
    asked = [model.as_example(row["instruction"]) for row in ROWS]
    assert model.generate_batch(asked) == [model.generate(row["instruction"]) for row in ROWS]


def test_sampling_with_a_temperature_draws(chatml: truetune.Run) -> None:
    import torch

    torch.manual_seed(0)
    model = truetune.load(chatml)
    drawn = {model.generate("hi", sampling=Sampling(8, temperature=5.0)).text for _ in range(5)}
    assert len(drawn) > 1


def test_chat_keeps_the_turns_until_it_starts_over(chatml: truetune.Run) -> None:
    model = truetune.load(chatml)
    chat = Chat(model, system="s", sampling=Sampling(4))
    seen: list[list[Message]] = []
    model.chat = lambda messages, **_: (seen.append(list(messages)), Answer((1,), "x", "stop"))[1]  # type: ignore[method-assign]
    chat.answer("one")
    chat.answer("two")
    chat.start_over()
    chat.answer("three")
    assert [[message.content for message in turns] for turns in seen] == [
        ["s", "one"],
        ["s", "one", "x", "two"],
        ["s", "three"],
    ]


def test_g26_a_run_can_be_moved_and_a_base_that_is_gone_can_be_named(tk: Any, tmp_path: Path) -> None:
    base = base_with(tmp_path / "base", tk, CHATML)
    run = trained(base, tmp_path / "run", method="lora", num_train_epochs=2)
    expected = truetune.load(run).generate("hi", sampling=Sampling(4))
    shutil.move(run.directory, tmp_path / "moved")
    assert truetune.load(tmp_path / "moved").generate("hi", sampling=Sampling(4)) == expected
    shutil.move(base, tmp_path / "elsewhere")
    with pytest.raises(truetune.BackendError) as caught:
        truetune.load(tmp_path / "moved" / "adapter")
    assert str(base) in str(caught.value)
    assert "--base" in str(caught.value)
    again = truetune.load(tmp_path / "moved", base_model=str(tmp_path / "elsewhere"))
    assert again.generate("hi", sampling=Sampling(4)) == expected


def test_what_is_no_trained_model_is_refused(tmp_path: Path, tiny_base: Path) -> None:
    with pytest.raises(truetune.CheckpointError, match="run not found"):
        truetune.load(tmp_path / "none")
    with pytest.raises(truetune.CheckpointError, match="holds no trained model"):
        truetune.load(tmp_path)
    shutil.copytree(tiny_base, tmp_path / "damaged")
    (tmp_path / "damaged" / "truetune.json").write_text("{")
    with pytest.raises(truetune.CheckpointError, match=r"truetune\.json is missing or damaged"):
        truetune.load(tmp_path / "damaged")


def test_an_adapter_for_another_base_is_refused(tk: Any, tmp_path: Path) -> None:
    run = trained(base_with(tmp_path / "base", tk, CHATML), tmp_path / "run", method="lora", num_train_epochs=2)
    tiny_model(hidden_size=32).save_pretrained(tmp_path / "other")
    tk(chat_template=CHATML).save_pretrained(tmp_path / "other")
    with pytest.raises(truetune.BackendError, match="does not fit this base model"):
        truetune.load(run, base_model=str(tmp_path / "other"))


def test_the_stored_format_names_base_and_template(chatml: truetune.Run) -> None:
    assert chatml.adapter
    stored = json.loads((chatml.adapter / "truetune.json").read_text())
    assert stored["row_format"] == "instruction"
    assert stored["template"] == "model"
