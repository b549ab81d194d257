"""What a row's fields make of it: its format, its texts, what is noted of it and why it is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from traced import HI, YO, call, parsed
from truetune.data.examples import Completion, Conversation, Instruction, Location, Message, Note, Record
from truetune.data.formats import ROLES, expand_record, parse_example
from truetune.data.read import read_records
from truetune.data.rules import RowError

WHERE = Location("a.jsonl", 1)
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
        ({"question": "1+2?", "target": "3"}, Instruction("1+2?", "", "3", "", WHERE)),
        ({"input": "1+2?", "output": "3"}, Instruction("1+2?", "", "3", "", WHERE)),
        ({"Context": "1+2?", "Response": "3"}, Instruction("1+2?", "", "3", "", WHERE)),
        ({"inputs": "1+2?", "targets": "3"}, Instruction("1+2?", "", "3", "", WHERE)),
        ({"input_text": "1+2?", "output_text": "3"}, Instruction("1+2?", "", "3", "", WHERE)),
        ({"Instruction": "Add", "INPUT": "1 2", " output": "3"}, Instruction("Add", "1 2", "3", "", WHERE)),
        ({"question": "Add", "system_prompt": "s", "answer": "3"}, Instruction("Add", "", "3", "s", WHERE)),
        (
            {"instruction": "Add", "input": "", "context": "1 2", "output": "3"},
            Instruction("Add", "1 2", "3", "", WHERE),
        ),
        ({"instruction": "Add", "output": "", "response": "3"}, Instruction("Add", "", "3", "", WHERE)),
        ({"instruction": "Add", "input": float("nan"), "output": "3"}, Instruction("Add", "", "3", "", WHERE)),
        ({"text": "a"}, Completion("", "a", WHERE)),
        ({"prompt": "a", "completion": "b"}, Completion("a", "b", WHERE)),
        ({"prompt": "a", "response": "b"}, Completion("a", "b", WHERE)),
        ({"prompt": "a", "output": "b"}, Completion("a", "b", WHERE)),
        ({"prompt": "a", "answer": "b"}, Completion("a", "b", WHERE)),
        ({"system": "s", "prompt": "a", "completion": "b"}, Completion("a", "b", WHERE, "s")),
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
    instruction, completion = parsed(both), parsed(both, format="completion")
    assert instruction == Instruction("Add", "", "3", "", WHERE, notes=(Note("not-rendered", "text"),))
    assert isinstance(completion, Completion)
    assert (completion.completion, [note.field for note in completion.notes]) == ("a", ["instruction", "output"])
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
    assert completion == Completion("", text, WHERE, notes=(Note("number-as-text"),))
    conversation = parsed({"messages": [HI, {"role": "assistant", "content": value}]})
    assert isinstance(conversation, Conversation)
    assert conversation.messages[1].content == text
    assert instruction.notes == conversation.notes == (Note("number-as-text"),)


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
            "empty-answer",
            "messages[1].content",
            "empty",
        ),
        ({"instruction": "Add", "output": "3", "history": "x"}, "broken-json", "history", "a list of rounds"),
        ({"instruction": "Add", "output": "3", "history": {"a": 1}}, "wrong-type", "history", "found an object"),
        ({"instruction": "Add", "output": "3", "history": [["a"]]}, "wrong-type", "history[0]", "[question, answer]"),
        ({"instruction": "Add", "output": "3", "history": [["a", {}]]}, "wrong-type", "history[0][1]", "an object"),
        ({"question": "a", "answers": {"text": ["b"]}}, "wrong-type", "answers", "found an object"),
        ({"instruction": "Add", "instances": []}, "no-answer", "output", "none of output"),
        ({"instruction": "Add", "output": float("inf")}, "wrong-type", "output", "JSON cannot write"),
        ({"instruction": "Add", "output": "3", "image": "a.png"}, "image-row", "image", "image data"),
    ],
)
def test_a_row_that_cannot_be_used_says_which_field_and_why(
    fields: dict[str, Any], code: str, field: str | None, words: str
) -> None:
    error = refused(fields)
    assert (error.rule, error.field) == (code, field)
    assert words in error.message


@pytest.mark.parametrize(("spelling", "role"), ROLES.items())
def test_every_spelling_of_a_role_is_understood_in_both_wrappings(spelling: str, role: str) -> None:
    for row in ({"role": spelling, "content": "x"}, {"from": spelling, "value": "x"}):
        example = parsed({"messages": [row, YO]})
        assert isinstance(example, Conversation)
        assert example.messages[0] == Message(role, "x")  # type: ignore[arg-type]


def test_tool_calls_keep_their_arguments_and_their_order_and_gain_nothing() -> None:
    written = parsed({"messages": [HI, call("w", '{"zip": "01234", "b": 5, "a": null}')]})
    assert written == parsed({"messages": [HI, call("w", {"zip": "01234", "b": 5, "a": None})]})
    assert isinstance(written, Conversation)
    function = written.messages[1].extra["tool_calls"][0]["function"]
    assert json.dumps(function) == '{"name": "w", "arguments": {"zip": "01234", "b": 5, "a": null}}'
    assert written.messages[1].content == ""


@pytest.mark.parametrize("tools", [None, "", [], "[]"])
def test_no_tools_are_no_tools(tools: Any) -> None:
    assert parsed({"messages": [HI, YO], "tools": tools}) == C1


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({"instruction": "Add", "input": "2", "context": "1", "output": "3"}, ["context"]),
        ({"instruction": "Add", "output": "3", "history": [], "input": "", "context": None}, []),
        ({"question": "a", "choices": ["b", "c"], "answer": 1}, ["choices"]),
        ({"question": "a", "answer": "b", "reasoning": "c", "id": 7, "source": "web"}, ["reasoning"]),
        ({"prompt": "a", "completion": "b", "input": "c", "tools": [{"name": "w"}]}, ["input", "tools"]),
        ({"question": "q", "prompt": "a", "completion": "b"}, ["question"]),
        ({"text": "a", "system": "s"}, ["system"]),
    ],
)
def test_known_fields_that_a_row_s_form_has_no_use_for_are_named(fields: dict[str, Any], names: list[str]) -> None:
    assert [note.field for note in parsed(fields).notes if note.rule == "not-rendered"] == names


@pytest.mark.parametrize(
    ("fields", "form"),
    [
        ({"Instruction": "Add", "input": "", "output": "3"}, "instruction from Instruction, input, output"),
        ({"question": "a", "answer": "b", "id": 7}, "instruction from question, answer"),
        ({"input": "a", "context": "c", "output": "b"}, "instruction from input, context, output"),
        ({"prompt": "a", "response": "b"}, "completion from prompt, response"),
        ({"text": "a"}, "text from text"),
        ({"conversations": [{"from": "human", "value": "hi"}, YO]}, "chat from conversations (from/value)"),
    ],
)
def test_an_example_says_from_which_fields_it_was_read(fields: dict[str, Any], form: str) -> None:
    assert parsed(fields).form == form


@pytest.mark.parametrize(
    "history",
    [
        [["a", "b"], ["c", "d"]],
        '[["a", "b"], ["c", "d"]]',
        "[('a', 'b'), ('c', 'd')]",
        [{"prompt": "a", "response": "b"}, {"question": "c", "answer": "d"}],
    ],
)
def test_history_is_earlier_rounds(history: Any) -> None:
    example = parsed({"instruction": "Add", "history": history, "output": "3"})
    assert example == Instruction("Add", "", "3", "", WHERE, history=(("a", "b"), ("c", "d")))


def test_a_record_of_instances_is_a_row_each_with_what_they_share() -> None:
    instances = [{"input": "1", "output": "2"}, {"input": "2", "output": "3"}]
    row = {"id": "t", "instruction": "Add one", "instances": instances, "system": "s"}
    for spelled in (row, {**row, "instances": json.dumps(instances)}):
        records = list(expand_record(Record(spelled, WHERE)))
        assert [parse_example(record) for record in records] == [
            Instruction("Add one", "1", "2", "s", WHERE),
            Instruction("Add one", "2", "3", "s", WHERE),
        ]
        assert [(record.fields["id"], record.where) for record in records] == [("t", WHERE)] * 2


def test_a_record_that_holds_one_row_is_left_as_it_is() -> None:
    for fields in ({"text": "a"}, {"text": "a", "instances": 3}, {"instruction": "Add", "instances": ["x"]}):
        record = Record(fields, WHERE)
        assert [each is record for each in expand_record(record)] == [True]


def test_an_instance_that_is_no_object_costs_only_itself() -> None:
    record = Record({"instruction": "Add", "instances": [{"input": "1", "output": "2"}, "x"]}, WHERE)
    good, bad = expand_record(record)
    assert parse_example(good) == Instruction("Add", "1", "2", "", WHERE)
    with pytest.raises(RowError, match="none of output"):
        parse_example(bad)


def test_data_columns_choose_the_form_above_the_row_s_own_names() -> None:
    row = {"messages": [HI, YO], "body": "a"}
    example = parsed(row, columns={"body": "text"})
    assert isinstance(example, Completion)
    assert (example.completion, example.form) == ("a", "text from body")
    chosen = parsed({"prompt": "a", "chosen": "b", "rejected": "c"}, columns={"chosen": "completion"})
    assert chosen == Completion("a", "b", WHERE)
    other = parsed({"question": "q", "title": "t", "answer": "a"}, columns={"title": "query"})
    assert isinstance(other, Instruction)
    assert other.instruction == "t"


@pytest.mark.parametrize(
    ("fields", "columns"),
    [
        ({"body": "a"}, {"bodyy": "text"}),
        ({"prompt": "a", "completion": "b"}, {"bodyy": "text"}),
        ({"question": "a", "reply": "b"}, {"bodyy": "output"}),
        ({"reply": "b"}, {"bodyy": "input"}),
    ],
)
def test_a_column_that_the_row_lacks_is_named_beside_those_it_has(
    fields: dict[str, Any], columns: dict[str, str]
) -> None:
    error = refused(fields, columns=columns)
    assert (error.rule, error.field) == ("unknown-column", "bodyy")
    assert f"its fields are {', '.join(fields)}" in error.message


def test_a_column_that_only_some_rows_have_is_told() -> None:
    columns = {"q": "instruction", "a": "output", "ctx": "input"}
    example = parsed({"q": "Add", "a": "3"}, columns=columns)
    assert example == Instruction("Add", "", "3", "", WHERE, notes=(Note("unknown-column", "ctx"),))


def test_rows_with_the_same_fields_are_told_apart_once() -> None:
    from truetune.data.fields import _reading

    _reading.cache_clear()
    for number in range(1_000):
        parsed({"question": f"{number}?", "answer": str(number)})
    assert _reading.cache_info().misses == 1
