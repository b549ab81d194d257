"""Batches, streams, seeds and stops give the answers that each prompt has alone; prompts are those of training."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

import truetune
from conftest import CHATML, TOOLS, byte_tokenizer, tiny_model, write_jsonl
from truetune.data.examples import IGNORED, Message, Record
from truetune.data.read import read_records
from truetune.errors import ConfigError, DataError
from truetune.inference import decoding
from truetune.inference.batch import fitting_batch_size, row_bytes
from truetune.inference.chat import Chat
from truetune.inference.generate import Answer, Sampling, TrainedModel, load_trained
from truetune.inference.opened import open_trained
from truetune.inference.prompt_format import PromptFormat
from truetune.inference.tool_calls import called_tools, calls_in
from truetune.model.shape import shape_of

PROMPTS = ["hi", "a question", "b" * 40, "what is it?", "c" * 90, "no", "yes " * 7, "d", "e" * 23, "f f f", "g" * 61]


def untrained(
    *, template: str | None = CHATML, row_format: str = "chat", context: int | None = None, **sizes: Any
) -> TrainedModel:
    """A random model, whose answers end by chance; wide enough that its greedy choices are no ties."""
    tokenizer = byte_tokenizer(chat_template=template)
    stored = PromptFormat(row_format, "model" if template else "auto", "base", None)  # type: ignore[arg-type]
    model = tiny_model(hidden_size=64, seed=3, **sizes).eval()
    return TrainedModel(model, tokenizer, stored.load(tokenizer), stored, context_length=context)


def asked(model: TrainedModel, prompts: list[str] = PROMPTS) -> list[Any]:
    return [model.as_example(prompt) for prompt in prompts]


def alone(model: TrainedModel, prompts: list[str], sampling: Sampling) -> list[Answer]:
    return [model.generate(prompt, sampling=sampling) for prompt in prompts]


# --- batches ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 3, 4, 16])
def test_rows_that_come_and_go_answer_as_each_alone(batch_size: int) -> None:
    """Answers of very different lengths, so that rows end at different times and others take their places."""
    model = untrained()
    said = [answer.text for answer in alone(model, PROMPTS, Sampling(max_new_tokens=40))]
    by_stop = Sampling(max_new_tokens=40, stop=(said[0][3:5], said[2][9:11], said[5][20:22]))
    found = model.generate_batch(asked(model), sampling=by_stop, batch_size=batch_size)
    assert found == alone(model, PROMPTS, by_stop)
    assert len({len(answer.answer_ids) for answer in found}) > 2


def test_a_model_whose_layers_forget_is_answered_in_plain_batches() -> None:
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = MistralConfig(vocab_size=261, num_key_value_heads=2, sliding_window=8, **sizes)
    model = untrained()
    model.model = MistralForCausalLM(config).eval()
    assert not decoding.holds_rows(model.model)
    sampling = Sampling(max_new_tokens=12)
    assert model.generate_batch(asked(model), sampling=sampling, batch_size=3) == alone(model, PROMPTS, sampling)


def test_drawn_answers_hang_on_seed_and_number_and_not_on_the_batch() -> None:
    model = untrained()
    drawn = Sampling(max_new_tokens=12, temperature=1.5, top_k=50, top_p=0.95, min_p=0.01, seed=5)
    by_three = model.generate_batch(asked(model), sampling=drawn, batch_size=3)
    assert by_three == model.generate_batch(asked(model), sampling=drawn, batch_size=16)
    other = Sampling(max_new_tokens=12, temperature=1.5, seed=6)
    assert by_three != model.generate_batch(asked(model), sampling=other, batch_size=3)


def test_drawing_follows_the_models_probabilities_within_what_is_left() -> None:
    scores = torch.log(torch.tensor([[0.5, 0.3, 0.2, 0.0]]))
    draw = decoding._Draw([torch.Generator().manual_seed(0)])
    counts = torch.bincount(torch.cat([draw(torch.zeros(1, 1), scores).argmax(-1) for _ in range(4000)]), minlength=4)
    assert counts[3] == 0
    assert torch.allclose(counts / 4000, torch.tensor([0.5, 0.3, 0.2, 0.0]), atol=0.03)


def test_one_token_left_to_draw_from_is_the_greedy_one() -> None:
    model = untrained()
    greedy = model.generate("hi", sampling=Sampling(12))
    assert model.generate("hi", sampling=Sampling(12, temperature=3.0, top_k=1)).answer_ids == greedy.answer_ids


def test_padding_is_no_repetition() -> None:
    """A penalty sees each row's own tokens: what fills the batch to one width is none of them."""
    model = untrained()
    strict = Sampling(max_new_tokens=12, repetition_penalty=1.7)
    found = model.generate_batch(asked(model), sampling=strict)
    assert found == alone(model, PROMPTS, strict)
    assert found != alone(model, PROMPTS, Sampling(max_new_tokens=12))


@pytest.mark.parametrize(
    "wrong",
    [{"temperature": -1}, {"top_p": 0}, {"top_k": -1}, {"min_p": 1}, {"stop": ("",)}, {"top_p": 0.9}],
)
def test_what_no_sampling_can_be_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Sampling(**wrong)


def test_the_batch_is_as_large_as_half_of_the_free_memory_holds() -> None:
    shape = shape_of(untrained().model)
    a_row = row_bytes(shape, longest=1000, bytes_a_number=4)
    assert a_row == 1000 * (2 * 2 * 2 * 2 * 16 + 4 * 64 + 3 * 64) * 4 + 12 * 261
    chosen = fitting_batch_size(shape, longest=1000, bytes_a_number=4, device="cpu", free=2 * 5 * a_row + 1)
    assert chosen.size == 5
    assert "half of 28.2 MB free on cpu" in chosen.reason
    assert fitting_batch_size(shape, longest=1000, bytes_a_number=4, device="cpu", free=0).size == 1


# --- ends ---------------------------------------------------------------------------------------------------


def test_an_answer_ends_before_each_text_asked_for_and_at_a_control_token() -> None:
    model = untrained()
    free = model.generate("hi", sampling=Sampling(40))
    assert len(free.text) > 12
    stop = free.text[6:9]
    cut = model.generate("hi", sampling=Sampling(40, stop=("never said", stop)))
    assert (cut.text, cut.stop_reason) == (free.text[: free.text.index(stop)], "stop")
    assert cut.answer_ids == free.answer_ids[: len(cut.answer_ids)]


def test_a_stop_is_looked_for_in_the_answer_and_not_in_the_prompt() -> None:
    model = untrained()
    free = model.generate("hi", sampling=Sampling(20))
    across = "\n" + free.text[0]  # The prompt ends with a line break.
    assert model.generate("hi", sampling=Sampling(20, stop=(across,))) == free


def test_an_answer_that_fills_the_models_context_says_so_and_a_prompt_that_does_is_refused() -> None:
    model = untrained(context=40)
    found = model.generate("hi", sampling=Sampling(300))
    assert found.stop_reason == "context"
    assert len(found.prompt_ids) + len(found.answer_ids) == 40
    mixed = model.generate_batch(asked(model, ["hi", "hello"]), sampling=Sampling(15))
    assert mixed == alone(model, ["hi", "hello"], Sampling(15))
    with pytest.raises(DataError, match="119 tokens and the model reads 40"):
        model.generate("x" * 100)


def test_no_row_of_a_batch_is_taken_beyond_the_places_that_a_model_has_learned() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    model = untrained(context=40)
    torch.manual_seed(0)
    model.model = GPT2LMHeadModel(GPT2Config(vocab_size=261, n_positions=40, n_embd=32, n_layer=2, n_head=4)).eval()
    found = model.generate_batch(asked(model, ["hi", "hello you"]), sampling=Sampling(300))
    assert [len(answer.prompt_ids) + len(answer.answer_ids) for answer in found] == [40, 40]


# --- streams ------------------------------------------------------------------------------------------------


def test_the_pieces_of_a_stream_are_the_answer() -> None:
    model = untrained()
    for sampling in (Sampling(30), Sampling(30, stop=("e",)), Sampling(30, temperature=2.0, seed=1)):
        stream, pieces = model.stream("hi", sampling=sampling), []
        while True:
            try:
                pieces.append(next(stream))
            except StopIteration as end:
                answer = end.value
                break
        assert answer == model.generate("hi", sampling=sampling)
        assert "".join(pieces) == answer.text
    assert len(pieces) > 1


def test_a_stream_that_nobody_reads_on_ends_the_work() -> None:
    import threading

    model = untrained()
    stream = model.stream("hi", sampling=Sampling(3000))
    next(stream)
    stream.close()
    assert "truetune-stream" not in {thread.name for thread in threading.enumerate()}


def test_a_mistake_in_a_stream_is_raised_where_it_is_read() -> None:
    model = untrained()
    model.model = None
    with pytest.raises(AttributeError):
        next(model.stream("hi"))


# --- what is asked ------------------------------------------------------------------------------------------

TURNS = [{"role": "system", "content": "s"}, {"role": "user", "content": "hi"}]
ANSWER = {"role": "assistant", "content": "yo"}
CALL = {"type": "function", "function": {"name": "look", "arguments": {"at": "sky"}}}
LOOK = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}
FORMATS: dict[str, tuple[str | None, dict[str, Any], dict[str, Any]]] = {
    "chat": (CHATML, {}, {"messages": [*TURNS, ANSWER]}),
    "turns": (CHATML, {}, {"messages": [*TURNS, ANSWER, {"role": "user", "content": "and"}, ANSWER]}),
    "tools": (TOOLS, {}, {"tools": [LOOK], "messages": [*TURNS, {"role": "assistant", "tool_calls": [CALL]}]}),
    "instruction": (CHATML, {}, {"instruction": "Add", "input": "1", "output": "2", "system": "s"}),
    "alpaca": (None, {}, {"instruction": "Add", "input": "1", "output": "2"}),
    "alpaca text": (CHATML, {"template": "alpaca"}, {"instruction": "Add", "output": "2"}),
    "completion": (CHATML, {}, {"prompt": "one two", "completion": " three"}),
    "completion as chat": (CHATML, {"template": "model"}, {"prompt": "one", "completion": "two"}),
    "text": (CHATML, {}, {"text": "one two three"}),
    "marked text": (CHATML, {"response_marker": "A:"}, {"text": "Q: one A: two"}),
}


@pytest.mark.parametrize("name", FORMATS)
def test_a_row_is_asked_with_the_ids_that_training_puts_before_its_answer(name: str, tmp_path: Path) -> None:
    template, settings, row = FORMATS[name]
    tiny_model().save_pretrained(tmp_path / "base")
    byte_tokenizer(chat_template=template, adds_bos=True).save_pretrained(tmp_path / "base")
    data = write_jsonl(tmp_path / "rows.jsonl", [{**row, "id": number} for number in range(3)])
    quick = {"precision": "fp32", "max_steps": 1, "save_strategy": "no", **settings}
    run = truetune.train(model=str(tmp_path / "base"), data=data, output_dir=tmp_path / "run", **quick)
    (inspected,) = truetune.inspect(run.directory / "config.yaml", rows=1).rows
    labels = inspected.tokens.labels
    starts = [place for place, (before, label) in enumerate(pairwise(labels), 1) if before == IGNORED != label]
    prompts = open_trained(run.directory).prompts
    marker = settings.get("response_marker")
    (record, *_) = read_records(str(data))
    expected = inspected.tokens.input_ids[: starts[-1]]
    if name == "text":  # Learned whole: it is gone on from where it ends, before its stop.
        expected = inspected.tokens.input_ids[:-1]
    assert prompts.ids(prompts.of_row(record, response_marker=marker)) == expected
    if name in ("chat", "turns", "instruction", "alpaca"):
        bare = _without_answer(record)
        assert prompts.ids(prompts.of_row(bare)) == expected


def _without_answer(record: Record) -> Record:
    fields = {key: value for key, value in record.fields.items() if key != "output"}
    if "messages" in fields:
        fields["messages"] = fields["messages"][:-1]
    return Record(fields, record.where)


def test_a_prompt_alone_is_put_as_the_rows_of_the_training_were() -> None:
    prompts = untrained(row_format="instruction").prompts
    where = next(iter(read_records([{"prompt": "Add", "input": "1", "system": "s"}])))
    same = prompts.of_words("Add", input="1", system="s")
    assert prompts.ids(prompts.of_row(where)) == prompts.ids(same)
    assert prompts.ids(prompts.of_words("Add")) != prompts.ids(prompts.of_row(where))


def test_several_turns_for_a_model_of_single_prompts_are_refused() -> None:
    prompts = untrained(template=None, row_format="instruction").prompts
    question = Message("user", "hi")
    assert prompts.ids(prompts.of_turns([question])) == prompts.ids(prompts.of_words("hi"))
    with pytest.raises(DataError, match="trained on single prompts"):
        prompts.of_turns([question, Message("assistant", "yo"), question])


def test_a_call_of_a_tool_is_read_back() -> None:
    said = 'I look.\n<tool_call>\n{"name": "look", "arguments": {"at": "sky"}}\n</tool_call>'
    assert called_tools(said) == (CALL,)
    assert called_tools('{"name": "look", "parameters": {"at": "sky"}}') == (CALL,)
    assert called_tools("nothing to call") == called_tools('{"a": 1}') == ()


def test_what_is_answered_and_what_is_scored_are_the_same_calls() -> None:
    said = '[TOOL_CALLS][{"name": "look", "arguments": {"at": "sky"}}] (then I wait)'
    assert called_tools(said) == (CALL,)
    assert [call.name for call in calls_in(said)] == ["look"]


# --- base and conversation ----------------------------------------------------------------------------------


def test_without_its_adapter_a_model_answers_as_its_base(tiny_base: Path, rows: Path, tmp_path: Path) -> None:
    quick = {"precision": "fp32", "max_steps": 3, "save_strategy": "steps", "save_steps": 2}
    for method, settings in (("lora", {"learning_rate": 0.05}), ("lora", {"bias": "all"}), ("full", {})):
        out = tmp_path / f"{method}{len(settings)}{'bias' in settings}"
        run = truetune.train(
            model=str(tiny_base),
            data=rows,
            output_dir=out,
            method=method,
            **{"learning_rate": 0.01, **settings, **quick},
        )
        model, base = load_trained(run.directory), load_trained(tiny_base, dtype="float32")
        ids = torch.tensor([model.prompt_ids(model.as_example("Add 1 and 2"))])
        with torch.no_grad(), model.without_adapter() as untuned:
            assert torch.equal(untuned.model(ids).logits, base.model(ids).logits)
        with torch.no_grad():
            assert not torch.equal(model.model(ids).logits, base.model(ids).logits)
        step = load_trained(f"{out}@2")
        assert step.prompt_format == model.prompt_format
        assert step.prompt_ids(step.as_example("hi")) == model.prompt_ids(model.as_example("hi"))


def test_a_checkpoint_of_a_run_that_has_not_finished_is_asked_as_its_rows_were(tk: Any, tmp_path: Path) -> None:
    import shutil

    tiny_model().save_pretrained(tmp_path / "base")
    tk(chat_template=None).save_pretrained(tmp_path / "base")
    data = write_jsonl(tmp_path / "rows.jsonl", [{"instruction": f"Add {n}", "output": "1"} for n in range(9)])
    quick = {"precision": "fp32", "max_steps": 2, "save_strategy": "steps", "save_steps": 2}
    run = truetune.train(model=str(tmp_path / "base"), data=data, output_dir=tmp_path / "run", **quick)
    finished = load_trained(run.directory)
    shutil.rmtree(tmp_path / "run" / "adapter")
    stopped = load_trained(tmp_path / "run" / "checkpoints" / "checkpoint-2")
    assert stopped.prompt_format == finished.prompt_format
    assert stopped.generate("Add 1", sampling=Sampling(4)) == finished.generate("Add 1", sampling=Sampling(4))


def test_a_saved_conversation_is_a_row_to_train_on(tmp_path: Path) -> None:
    chat = Chat(untrained(), system="s", sampling=Sampling(4))
    first = chat.answer("one")
    chat.answer("two")
    assert chat.undo() == "two"
    assert chat.save(tmp_path / "said.jsonl") == 1
    (row,) = (json.loads(line) for line in (tmp_path / "said.jsonl").read_text().splitlines())
    assert [turn["content"] for turn in row["messages"]] == ["s", "one", first]
    assert truetune.check(tmp_path / "said.jsonl").rows_read == 1


def test_questions_to_a_model_of_single_prompts_are_saved_one_a_row(tmp_path: Path) -> None:
    chat = Chat(untrained(template=None, row_format="instruction"), sampling=Sampling(4))
    said = [chat.answer("one"), chat.answer("two")]
    assert chat.rows() == [
        {"instruction": "one", "output": said[0]},
        {"instruction": "two", "output": said[1]},
    ]


def test_a_result_of_a_tool_is_answered_behind_its_call() -> None:
    model = untrained(template=TOOLS)
    chat = Chat(model, tools=[LOOK], sampling=Sampling(3))
    text = '<tool_call>\n{"name": "look", "arguments": {"at": "sky"}}\n</tool_call>'
    called = Answer((1,), text, "stop", (), (CALL,))
    chat._keep(Message("user", "up?"), called)
    answer = chat.ask("blue", role="tool")
    assert model.tokenizer.decode(answer.prompt_ids).endswith(
        '<tool_call>{"name": "look", "arguments": {"at": "sky"}}</tool_call><|im_end|>\n'
        "<|im_start|>tool\nblue<|im_end|>\n<|im_start|>assistant\n"
    )
