"""What a row's fields make of it: its format, its texts, what is noted of it and why it is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from traced import call, parsed
from truetune.data.examples import Completion, Conversation, Instruction, Location, Message
from truetune.data.formats import ROLES, parse_example
from truetune.data.read import read_records
from truetune.data.rules import RowError

WHERE = Location("a.jsonl", 1)
HI, YO = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}
C1 = Conversation((Message("user", "hi"), Message("assistant", "yo")), WHERE)


def refused(fields: dict[str, Any], **options: Any) -> RowError:
    with pytest.raises(RowError) as caught:
        parsed(fields, **options)
    return caught.value


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"instruction": "Add", "output": "3"}, Instruction("Add", "", "3", "", WHERE)),
        ({"instruction": "Add", "input": "1 2", "output": "3"}, Instruction("Add", "1 2", "3", "", WHERE)),
        ({"instruction": "Add", "output": "3", "system": "Hm."}, Instruction("Add", "", "3", "Hm.", WHERE)),
        ({"instruction": "Add", "context": "1 2", "response": "3"}, Instruction("Add", "1 2", "3", "", WHERE)),
        ({"question": "1+2?", "answer": "3"}, Instruction("1+2?", "", "3", "", WHERE)),
        ({"query": "1+2?", "response": "3"}, Instruction("1+2?", "", "3", "", WHERE)),
        ({"text": "a"}, Completion("", "a", WHERE)),
        ({"prompt": "a", "completion": "b"}, Completion("a", "b", WHERE)),
        ({"messages": [HI, YO]}, C1),
        ({"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yo"}]}, C1),
        ({"messages": json.dumps([HI, YO]), "id": 7}, C1),
    ],
)
def test_a_row_s_own_fields_make_its_format(fields: dict[str, Any], expected: Any) -> None:
    assert parsed(fields) == expected


def test_formats_may_be_mixed_in_a_file_and_stay_tied_to_their_lines(tmp_path: Path) -> None:
    rows = [{"text": "a"}, {"messages": [HI, YO]}, {"instruction": "Add", "output": 3}]
    path = tmp_path / "a.jsonl"
    path.write_text("\n\n".join(map(json.dumps, rows)))
    examples = [parse_example(record) for record in read_records(path)]
    assert [type(example) for example in examples] == [Completion, Conversation, Instruction]
    assert [example.where.line for example in examples] == [1, 3, 5]


def test_columns_of_a_table_that_are_null_in_a_row_do_not_count() -> None:
    from datasets import Dataset

    table = Dataset.from_dict(
        {
            "messages": [[HI, YO], None, None, None],
            "instruction": [None, "Add", None, None],
            "output": [None, None, None, None],
            "response": [None, "3", None, None],
            "text": [None, None, "a", None],
        }
    )
    first, second, third, last = read_records(table)
    examples = [parse_example(record) for record in (first, second, third)]
    assert [type(example) for example in examples] == [Conversation, Instruction, Completion]
    assert examples[1] == Instruction("Add", "", "3", "", second.where)
    with pytest.raises(RowError, match="found null"):
        parse_example(last)


def test_a_wanted_format_is_looked_for_alone() -> None:
    both = {"text": "a", "instruction": "Add", "output": "3"}
    assert parsed(both) == Instruction("Add", "", "3", "", WHERE)
    assert parsed(both, format="completion") == Completion("", "a", WHERE)
    assert "expected the chat format" in refused(both, format="chat").message


@pytest.mark.parametrize("order", [("body", "text"), ("text", "body")])
def test_a_renamed_column_stands_above_one_that_had_the_name_before(order: tuple[str, str]) -> None:
    values = {"body": "meant", "text": "other"}
    assert parsed({name: values[name] for name in order}, columns={"body": "text"}) == Completion("", "meant", WHERE)


def test_columns_rename_in_every_format() -> None:
    names = {"q": "instruction", "a": "output", "ctx": "input"}
    assert parsed({"q": "Add", "ctx": "1 2", "a": "3"}, columns=names) == Instruction("Add", "1 2", "3", "", WHERE)
    assert parsed({"dialog": [HI, YO]}, columns={"dialog": "messages"}) == C1
    assert "fields are q, a;" in refused({"q": "Add", "a": "3"}).message


@pytest.mark.parametrize(("value", "text"), [(4, "4"), (0, "0"), (-1.5, "-1.5"), (True, "true"), (False, "false")])
def test_numbers_and_booleans_are_their_json_text_in_every_format_and_noted(value: Any, text: str) -> None:
    instruction = parsed({"instruction": value, "output": value})
    assert isinstance(instruction, Instruction)
    assert (instruction.instruction, instruction.output) == (text, text)
    completion = parsed({"text": value})
    assert completion == Completion("", text, WHERE, ("number-as-text",))
    conversation = parsed({"messages": [HI, {"role": "assistant", "content": value}]})
    assert isinstance(conversation, Conversation)
    assert conversation.messages[1].content == text
    assert instruction.notes == conversation.notes == ("number-as-text",)


@pytest.mark.parametrize(
    ("fields", "code", "field", "words"),
    [
        ({"instruction": "Add", "output": None}, "empty-answer", "output", "output is null"),
        ({"instruction": "Add", "output": " \n"}, "empty-answer", "output", "output is empty"),
        ({"instruction": "", "output": "3"}, "empty-prompt", "instruction", "instruction is empty"),
        ({"instruction": "Add"}, "no-answer", "output", "none of output, response, answer"),
        ({"instruction": "Add", "output": {"a": 1}}, "wrong-type", "output", "output must be text, found an object"),
        ({"instruction": "Add", "output": ["a"]}, "wrong-type", "output", "output must be text, found a list"),
        ({"instruction": "Add", "input": [1], "output": "3"}, "wrong-type", "input", "found a list"),
        ({"text": None}, "empty-answer", "text", "text is null"),
        ({"prompt": "a"}, "no-answer", "completion", "a prompt but no completion"),
        ({"prompt": "a", "completion": ""}, "empty-answer", "completion", "completion is empty"),
        ({"prompt": " ", "completion": "b"}, "empty-prompt", "prompt", "prompt is empty"),
        ({"text": "a\ud800"}, "broken-text", "text", "half of a surrogate pair"),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "preference-row", None, "a preference row"),
        ({}, "unknown-format", None, "fields are none"),
        ({"messages": "hello"}, "broken-json", "messages", "a list is expected"),
        ({"messages": '{"role":"user"}'}, "wrong-type", "messages", "a list of messages, found an object"),
        ({"messages": "[" * 100_000}, "broken-json", "messages", "not valid JSON"),
        ({"messages": []}, "wrong-type", "messages", "a list of messages"),
        ({"messages": [HI]}, "no-answer", "messages", "no assistant turn"),
        ({"messages": [HI, "yo"]}, "wrong-type", "messages[1]", "must be an object, found text"),
        ({"messages": [HI, {"role": "narrator", "content": "x"}]}, "unknown-role", "messages[1]", "'narrator'"),
        ({"messages": [HI, {"content": "x"}]}, "unknown-role", "messages[1]", "accepted: system"),
        ({"messages": [HI, {"role": "assistant", "content": " "}]}, "empty-answer", "messages[1].content", "empty"),
        ({"messages": [HI, {"role": "assistant"}]}, "empty-answer", "messages[1].content", "empty"),
        ({"messages": [{"role": "user", "content": {}}, YO]}, "wrong-type", "messages[0].content", "an object"),
        ({"messages": [HI, YO], "tools": 5}, "wrong-type", "tools", "tools must be a list, found a number"),
        ({"messages": [HI, YO], "tools": "{"}, "broken-json", "tools", "a list is expected"),
        ({"messages": [HI, YO], "tools": [{"name": "\udc00"}]}, "broken-text", "tools", "surrogate"),
        ({"messages": [HI, call("w", '{"city": ')]}, "broken-json", "messages[1].tool_calls.arguments", "an object"),
        ({"messages": [HI, call("w", {"city": "\ud800"})]}, "broken-text", "messages[1]", "surrogate"),
        ({"messages": [HI, call(None, {})]}, "wrong-type", "messages[1].tool_calls", "a function and its name"),  # type: ignore[arg-type]
        (
            {"messages": [HI, {"role": "assistant", "tool_calls": "[]"}]},
            "wrong-type",
            "messages[1].tool_calls",
            "a function and its name",
        ),
    ],
)
def test_a_row_that_cannot_be_used_says_which_field_and_why(
    fields: dict[str, Any], code: str, field: str | None, words: str
) -> None:
    error = refused(fields)
    assert (error.code, error.field) == (code, field)
    assert words in error.message


@pytest.mark.parametrize(("spelling", "role"), ROLES.items())
def test_every_spelling_of_a_role_is_understood_in_both_wrappings(spelling: str, role: str) -> None:
    for row in ({"role": spelling, "content": "x"}, {"from": spelling, "value": "x"}):
        example = parsed({"messages": [row, YO]})
        assert isinstance(example, Conversation)
        assert example.messages[0] == Message(role, "x")  # type: ignore[arg-type]


def test_a_function_call_turn_is_an_answer() -> None:
    turns = [{"from": "human", "value": "w?"}, {"from": "function_call", "value": '{"name": "w", "arguments": {}}'}]
    example = parsed({"conversations": turns})
    assert isinstance(example, Conversation)
    assert example.messages[1] == Message("assistant", '{"name": "w", "arguments": {}}')


def test_tool_calls_keep_their_arguments_and_their_order_and_gain_nothing() -> None:
    written = parsed({"messages": [HI, call("w", '{"zip": "01234", "b": 5, "a": null}')]})
    assert written == parsed({"messages": [HI, call("w", {"zip": "01234", "b": 5, "a": None})]})
    assert isinstance(written, Conversation)
    function = written.messages[1].extra["tool_calls"][0]["function"]
    assert json.dumps(function) == '{"name": "w", "arguments": {"zip": "01234", "b": 5, "a": null}}'
    assert written.messages[1].content == ""


@pytest.mark.parametrize("tools", [[{"name": "w"}], '[{"name": "w"}]'])
def test_tools_may_stand_as_json_text(tools: Any) -> None:
    example = parsed({"messages": [HI, YO], "tools": tools})
    assert isinstance(example, Conversation)
    assert example.tools == ({"name": "w"},)


@pytest.mark.parametrize("tools", [None, "", [], "[]"])
def test_no_tools_are_no_tools(tools: Any) -> None:
    assert parsed({"messages": [HI, YO], "tools": tools}) == C1


@pytest.mark.parametrize(
    ("fields", "notes"),
    [
        ({"instruction": "Add", "output": "3", "history": [["a", "b"]]}, ("not-rendered:history",)),
        ({"instruction": "Add", "input": "", "context": "1", "output": "3"}, ("not-rendered:context",)),
        ({"instruction": "Add", "output": "3", "history": []}, ()),
        ({"prompt": "a", "completion": "b", "system": "s"}, ("not-rendered:system",)),
        ({"messages": [HI, YO], "system": "s"}, ("not-rendered:system",)),
        ({"messages": [HI, {**YO, "weight": 0}, HI, YO]}, ("not-rendered:weight",)),
        ({"messages": [HI, {**YO, "train": False}]}, ("not-rendered:train",)),
        ({"messages": [{**HI, "weight": 0}, {**YO, "weight": 1}]}, ()),
    ],
)
def test_what_a_row_asks_for_and_does_not_get_is_noted(fields: dict[str, Any], notes: tuple[str, ...]) -> None:
    assert parsed(fields).notes == notes
