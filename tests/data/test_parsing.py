"""A row becomes one of three formats by its own fields, or is refused with the field and the reason."""

from typing import Any

import pytest

from truetune.data.examples import Completion, Conversation, Instruction, Location, Record
from truetune.data.formats import parse_example
from truetune.data.rules import RowError

WHERE = Location("a.jsonl", 1)
C1 = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]


def parse(fields: dict[str, Any], **options: Any) -> Any:
    return parse_example(Record(fields, WHERE), **options)


def test_each_row_finds_its_own_format() -> None:
    assert isinstance(parse({"instruction": "a", "output": "b"}), Instruction)
    assert isinstance(parse({"messages": C1}), Conversation)
    assert parse({"prompt": "a", "completion": "b"}) == Completion("a", "b", WHERE)
    assert parse({"text": "a"}) == Completion("", "a", WHERE)


@pytest.mark.parametrize("empty", [{"input": None}, {"input": ""}, {}])
def test_g02_a_null_an_empty_and_an_absent_input_are_the_same(empty: dict[str, Any]) -> None:
    assert parse({"instruction": "Add", "output": "3", **empty}) == Instruction("Add", "", "3", "", WHERE)


@pytest.mark.parametrize(("answer", "words"), [(None, "output is null"), ("   ", "output is empty")])
def test_g02_an_answer_of_nothing_is_refused(answer: str | None, words: str) -> None:
    with pytest.raises(RowError, match=words) as caught:
        parse({"instruction": "Add", "output": answer})
    assert (caught.value.code, caught.value.field) == ("empty-answer", "output")


@pytest.mark.parametrize(("value", "text"), [(4, "4"), (True, "true"), (False, "false"), (1.5, "1.5")])
def test_g01_numbers_and_booleans_become_their_json_text_and_are_noted(value: Any, text: str) -> None:
    example = parse({"instruction": "x", "output": value})
    assert example.output == text
    assert example.notes == ("number-as-text",)


@pytest.mark.parametrize(("value", "kind"), [({"a": 1}, "an object"), (["a"], "a list")])
def test_g01_objects_and_lists_in_a_text_field_are_refused(value: Any, kind: str) -> None:
    with pytest.raises(RowError, match=f"output must be text, found {kind}") as caught:
        parse({"instruction": "x", "output": value})
    assert caught.value.field == "output"


@pytest.mark.parametrize(
    "row",
    [
        {"messages": C1},
        {"messages": '[{"role":"user","content":"hi"},{"role":"assistant","content":"yo"}]'},
        {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yo"}]},
        {"conversations": [{"from": "user", "value": "hi"}, {"from": "assistant", "value": "yo"}]},
    ],
)
def test_g04_four_spellings_of_one_conversation_are_one(row: dict[str, Any]) -> None:
    assert parse(row) == parse({"messages": C1})


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ("hello", ["messages", "list"]),
        ('{"role": "user"}', ["list of messages", "an object"]),
        ([], ["list of messages"]),
        ([{"role": "narrator", "content": "x"}], ["narrator", "assistant", "user"]),
        (["hi"], ["a message must be an object", "text"]),
        ([{"role": "system", "content": "s"}], ["no assistant"]),
        ([{"role": "user", "content": "u"}], ["no assistant"]),
        ([*C1[:1], {"role": "assistant", "content": " "}], ["empty"]),
        ([*C1[:1], {"role": "assistant", "content": [1]}], ["content must be text", "a list"]),
    ],
)
def test_g04_g05_conversations_that_cannot_be_used_say_why(messages: Any, words: list[str]) -> None:
    with pytest.raises(RowError) as caught:
        parse({"messages": messages})
    text = f"{caught.value} {caught.value.field}"
    assert all(word in text for word in words), text


def test_g11_arguments_as_text_become_an_object_and_broken_ones_are_refused() -> None:
    def row(arguments: Any) -> dict[str, Any]:
        call = {"type": "function", "function": {"name": "w", "arguments": arguments}}
        return {"messages": [*C1[:1], {"role": "assistant", "content": None, "tool_calls": [call]}]}

    assert parse(row('{"city": "Oslo"}')) == parse(row({"city": "Oslo"}))
    assert parse(row({"zip": "01234"})).messages[1].extra["tool_calls"][0]["function"]["arguments"] == {
        "zip": "01234"
    }
    with pytest.raises(RowError, match="arguments"):
        parse(row('{"city": '))


def test_half_a_surrogate_pair_is_refused() -> None:
    with pytest.raises(RowError, match="surrogate"):
        parse({"text": "a\ud800"})


def test_columns_rename_fields_first_and_an_unknown_form_lists_what_is_there() -> None:
    assert parse({"body": "x"}, columns={"body": "text"}) == Completion("", "x", WHERE)
    with pytest.raises(RowError, match=r"fields are body; expected .*instruction \+ output") as caught:
        parse({"body": "x"})
    assert "data.columns" in str(caught.value.hint)


def test_a_wanted_format_refuses_rows_of_another() -> None:
    with pytest.raises(RowError, match="expected the chat format"):
        parse({"text": "x"}, format="chat")
    assert isinstance(parse({"text": "x", "messages": C1}, format="completion"), Completion)


@pytest.mark.parametrize("names", [("chosen", "rejected"), ("chosen_messages", "rejected_messages")])
def test_preference_rows_are_refused_by_name_and_not_trained_as_chats(names: tuple[str, str]) -> None:
    with pytest.raises(RowError, match="a preference row"):
        parse({"conversations": C1, **dict.fromkeys(names, C1[1])})


def test_a_prompt_without_completion_and_an_instruction_without_answer_are_refused() -> None:
    with pytest.raises(RowError, match="no completion"):
        parse({"prompt": "x"})
    with pytest.raises(RowError, match="none of output, response, answer"):
        parse({"instruction": "x"})


def test_g06_known_fields_that_nothing_renders_are_noted() -> None:
    assert parse({"instruction": "a", "output": "b", "history": [["x", "y"]]}).notes == ("not-rendered:history",)
    dolly = parse({"instruction": "a", "context": "c", "response": "b"})
    assert (dolly.input, dolly.output, dolly.notes) == ("c", "b", ())
