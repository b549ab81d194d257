"""Prompts are training's token for token, in every format; batches, stops and turns change no answer."""

from dataclasses import asdict
from functools import cache
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch

from conftest import CHATML, CHATML_BOS, STRICT, byte_tokenizer, tiny_model
from tiny_runs import Trained
from truetune.data.examples import (
    IGNORED,
    Completion,
    Conversation,
    Example,
    Instruction,
    Location,
    Message,
    Tokenized,
)
from truetune.data.render import render
from truetune.data.templates import load_template
from truetune.data.tokenize import tokenize
from truetune.errors import CheckpointError
from truetune.files import write_json
from truetune.inference.chat import Chat
from truetune.inference.generate import Answer, Sampling, TrainedModel
from truetune.inference.prompt_format import FILE, PromptFormat, prompt_format, read_prompt_format

HERE = Location("test", 1)
MERGES = ((":", " "), ("\n", "#"), ("\n", "\n"))
ANSWERS = {"hi": "yo", "bye": "so long", "more": "ok!"}


def chat(*turns: str) -> Conversation:
    """User and assistant in turn."""
    roles = ("user", "assistant")
    return Conversation(tuple(Message(roles[place % 2], text) for place, text in enumerate(turns)), HERE)  # type: ignore[arg-type]


def tokenized(example: Example, template: Any) -> Tokenized:
    (row,) = tokenize([render(example, template=template)], template=template)
    assert isinstance(row, Tokenized)
    return row


def format_of(name: str, row_format: str) -> PromptFormat:
    return PromptFormat(row_format, name, "base", None)  # type: ignore[arg-type]


# --- prompts ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("merges", [(), MERGES], ids=["bytes", "merges"])
@pytest.mark.parametrize("adds_bos", [False, True], ids=["plain", "bos"])
@pytest.mark.parametrize(
    ("chat_template", "name", "row_format", "example"),
    [
        (CHATML, "model", "chat", chat("hi", "yo")),
        (CHATML_BOS, "model", "chat", chat("hi", "yo", "more", "ok!")),
        (STRICT, "model", "chat", chat("hi", "yo", "more", "ok!")),
        (CHATML, "model", "instruction", Instruction("Add", "1 and 2", "3", "", HERE)),
        (CHATML, "model", "instruction", Instruction("Add", "", "3", "Be brief", HERE)),
        (None, "alpaca", "instruction", Instruction("Add", "1 and 2", "3", "", HERE)),
        (None, "alpaca", "instruction", Instruction("Add", "", "#3", "", HERE)),
        (None, "Q: {instruction}\nA: {output}", "instruction", Instruction("Add", "", " 3", "", HERE)),
        (None, "auto", "completion", Completion("one two:", " three", HERE)),
        (CHATML, "auto", "completion", Completion("one two\n", "# three", HERE)),
    ],
    ids=lambda value: None if not isinstance(value, str) else value[:12],
)
def test_g26_a_prompt_has_the_ids_that_training_put_before_the_answer(
    chat_template: str | None, name: str, row_format: str, example: Example, adds_bos: bool, merges: Any
) -> None:
    tokenizer = byte_tokenizer(chat_template=chat_template, adds_bos=adds_bos, merges=merges)
    stored = format_of(name, row_format)
    model = TrainedModel(None, tokenizer, stored.load(tokenizer), stored)
    row = tokenized(example, model.template)
    starts = [place for place, (before, label) in enumerate(pairwise(row.labels), 1) if before == IGNORED != label]
    assert model.prompt_ids(example) == row.input_ids[: starts[-1]]


def test_g26_a_question_is_put_as_the_rows_of_the_training_were() -> None:
    tokenizer = byte_tokenizer(chat_template=CHATML)

    def asked(name: str, row_format: str, **parts: str) -> str:
        stored = format_of(name, row_format)
        model = TrainedModel(None, tokenizer, stored.load(tokenizer), stored)
        return str(tokenizer.decode(model.prompt_ids(model.as_example("hi", **parts))))

    user = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert asked("model", "chat") == user
    assert asked("model", "chat", system="s") == "<|im_start|>system\ns<|im_end|>\n" + user
    assert asked("model", "chat", input="there") == user.replace("hi", "hi\n\nthere")
    assert asked("model", "instruction", input="there") == user.replace("hi", "hi\n\nthere")
    assert asked("alpaca", "instruction").endswith("### Instruction:\nhi\n\n### Response:\n")
    assert asked("alpaca", "instruction", input="there").endswith("### Input:\nthere\n\n### Response:\n")
    assert asked("auto", "completion") == asked("auto", "text") == "hi"


def test_g26_the_prompt_format_is_read_back_as_written(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer(chat_template=CHATML)
    for name, formats, expected in [
        ("auto", {"chat": 5, "text": 1}, ("chat", "model")),
        ("alpaca", {"instruction": 3}, ("instruction", "alpaca")),
        ("auto", {"text": 3}, ("text", "model")),
        ("model", {"completion": 3}, ("instruction", "model")),
        ("auto", {"completion": 3}, ("completion", "model")),
        ("{instruction}={output}", {"instruction": 1}, ("instruction", "{instruction}={output}")),
    ]:
        template = load_template(tokenizer, template=name)
        stored = prompt_format(template, formats, base_model="org/base", revision="abc")
        write_json(tmp_path / FILE, asdict(stored))
        assert read_prompt_format(tmp_path) == stored
        assert (stored.row_format, stored.template) == expected
        assert (stored.base_model, stored.revision) == ("org/base", "abc")


@pytest.mark.parametrize("content", [None, "", "{", "[]", '{"row_format": "chat"}', '{"unknown": 1}'])
def test_a_folder_without_a_readable_prompt_format_is_refused(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "truetune.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"truetune\.json is missing or damaged") as caught:
        read_prompt_format(tmp_path)
    assert "finished run" in str(caught.value)


# --- answers ------------------------------------------------------------------------------------------------


@cache
def taught(chat_template: str | None, name: str) -> TrainedModel:
    """A tiny model that knows the three answers by heart, asked in that template."""
    tokenizer = byte_tokenizer(chat_template=chat_template)
    stored = format_of(name, "instruction" if name == "alpaca" else "chat")
    template = stored.load(tokenizer)
    rows = [tokenized(Instruction(asked, "", answer, "", HERE), template) for asked, answer in ANSWERS.items()]
    with TemporaryDirectory() as folder:
        trained = Trained(
            Path(folder),
            rows,
            model=tiny_model(hidden_size=64, intermediate_size=128),
            num_train_epochs=150,
            per_device_train_batch_size=3,
        )
    return TrainedModel(trained.model.eval(), tokenizer, template, stored)


TAUGHT = pytest.mark.parametrize(
    ("chat_template", "name"),
    [(CHATML, "model"), (STRICT, "model"), (None, "alpaca")],
    ids=["one token", "several tokens", "eos"],
)


@TAUGHT
def test_a_greedy_answer_ends_where_training_taught_it_to(chat_template: str | None, name: str) -> None:
    model = taught(chat_template, name)
    for asked, answer in ANSWERS.items():
        found = model.generate(asked, sampling=Sampling(max_new_tokens=64))
        assert (found.text, found.stop_reason) == (answer, "stop")


@TAUGHT
def test_answers_of_a_batch_are_those_of_each_prompt_alone(chat_template: str | None, name: str) -> None:
    """Prompts and answers of different lengths: padding on the left, early ends on the right."""
    model = taught(chat_template, name)
    asked = [model.as_example(prompt) for prompt in (*ANSWERS, "a much longer question that nobody taught")]
    sampling = Sampling(max_new_tokens=24)
    together = model.generate_batch(asked, sampling=sampling)
    alone = [model.generate_batch([example], sampling=sampling)[0] for example in asked]
    assert together == alone
    assert [answer.text for answer in together[:3]] == list(ANSWERS.values())


@TAUGHT
def test_an_answer_that_is_cut_off_says_so(chat_template: str | None, name: str) -> None:
    found = taught(chat_template, name).generate("bye", sampling=Sampling(max_new_tokens=3))
    assert (found.text, found.stop_reason) == ("so ", "length")


class Scripted:
    """A model that says given tokens, to see what is made of them."""

    device = "cpu"

    def __init__(self, *said: list[int]) -> None:
        self._said = said
        self.asked: dict[str, Any] = {}

    def generate(self, input_ids: torch.Tensor, **settings: Any) -> torch.Tensor:
        self.asked = {"input_ids": input_ids, **settings}
        return torch.cat([input_ids, torch.tensor(self._said)], dim=1)


def scripted(*said: list[int], chat_template: str | None = CHATML, **special: Any) -> TrainedModel:
    tokenizer = byte_tokenizer(chat_template=chat_template, **special)
    stored = format_of("model" if chat_template else "alpaca", "chat" if chat_template else "instruction")
    return TrainedModel(Scripted(*said), tokenizer, stored.load(tokenizer), stored)


@pytest.mark.parametrize(
    ("said", "text", "reason"),
    [
        ([*b"yo", 260, 258, 258], "yo", "stop"),
        ([*b"yo", 257, *b"xx"], "yo", "stop"),  # EOS, which the template does not use
        ([260, 258, 258, 258, 258], "", "stop"),
        ([*b"yo yo"], "yo yo", "length"),
        ([*b"a b", 259, 260], "a b", "stop"),
    ],
)
def test_an_answer_ends_before_the_first_stop_token(said: list[int], text: str, reason: str) -> None:
    found = scripted(said).generate("hi", sampling=Sampling(5))
    assert (found.text, found.stop_reason) == (text, reason)


def test_the_model_is_told_every_stop_and_where_the_prompt_is_padded() -> None:
    model = scripted([260], [260])
    model.generate_batch([model.as_example("a"), model.as_example("bcd")], sampling=Sampling(1))
    asked = model.model.asked
    assert asked["eos_token_id"] == [260, 257]
    assert asked["pad_token_id"] == 258
    first = model.prompt_ids(model.as_example("a"))
    assert asked["input_ids"][0].tolist() == [first[0], first[0], *first]
    assert asked["attention_mask"][0].tolist() == [0, 0, *[1] * (asked["input_ids"].shape[1] - 2)]
    assert asked["stopping_criteria"] == asked["logits_processor"] == []
    assert asked["do_sample"] is False


def test_a_terminator_of_several_tokens_is_looked_for_in_the_text() -> None:
    model = scripted([*b"yo<end_of_turn>", *b"\nmore"], chat_template=STRICT)
    found = model.generate("hi", sampling=Sampling(30))
    assert (found.text, found.stop_reason) == ("yo", "stop")
    (criterion,) = model.model.asked["stopping_criteria"]
    prompt = torch.tensor([found.prompt_ids])
    for said, ended in ((b"yo<end_of_turn", False), (b"yo<end_of_turn>", True)):
        assert criterion(torch.cat([prompt, torch.tensor([[*said]])], dim=1), None).tolist() == [ended]


def test_a_tokenizer_without_a_pad_token_is_no_hindrance() -> None:
    model = scripted([*b"yo", 257], [257, 257, 257], chat_template=None, pad_token=None)
    first, second = model.generate_batch([model.as_example("a"), model.as_example("bcd")], sampling=Sampling(3))
    assert (first.text, second.text) == ("yo", "")


def test_sampling_is_the_same_for_the_same_seed() -> None:
    model = taught(CHATML, "model")
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(model.generate("hi", sampling=Sampling(16, temperature=3.0)).text)
    assert drawn[0] == drawn[1] != drawn[2]


# --- conversations ------------------------------------------------------------------------------------------


class Remembering(TrainedModel):
    """Keeps what it was asked."""

    def generate_batch(self, examples: Any, *, sampling: Any = None) -> list[Answer]:
        answers = super().generate_batch(examples, sampling=sampling)
        self.asked = [*getattr(self, "asked", []), self.tokenizer.decode(answers[0].prompt_ids)]
        return answers


def remembering(chat_template: str | None) -> Remembering:
    model = scripted([*b"yo", 260 if chat_template else 257], chat_template=chat_template)
    return Remembering(model.model, model.tokenizer, model.template, model.prompt_format)


def test_a_chat_keeps_its_turns_until_it_starts_over() -> None:
    model = remembering(CHATML)
    chat = Chat(model, system="s", sampling=Sampling(3))
    assert [chat.answer("one"), chat.answer("two")] == ["yo", "yo"]
    chat.start_over()
    chat.answer("three")
    system, answer = "<|im_start|>system\ns<|im_end|>\n", "<|im_start|>assistant\n"
    one = f"<|im_start|>user\none<|im_end|>\n{answer}"
    assert model.asked == [
        system + one,
        f"{system}{one}yo<|im_end|>\n<|im_start|>user\ntwo<|im_end|>\n{answer}",
        f"{system}<|im_start|>user\nthree<|im_end|>\n{answer}",
    ]


def test_a_model_of_single_prompts_is_asked_each_question_by_itself() -> None:
    model = remembering(None)
    chat = Chat(model, sampling=Sampling(3))
    assert [chat.answer("one"), chat.answer("two")] == ["yo", "yo"]
    assert "one" not in model.asked[1]
    assert model.asked[0].replace("one", "two") == model.asked[1]


def test_a_question_that_the_template_refuses_does_not_become_a_turn() -> None:
    model = remembering(STRICT)
    chat = Chat(model, sampling=Sampling(3))
    chat._turns = [Message("assistant", "I speak first.")]
    with pytest.raises(Exception, match="Roles must alternate"):
        chat.answer("one")
    assert chat._turns == [Message("assistant", "I speak first.")]
