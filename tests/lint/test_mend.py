"""What is mended in a row, and that all else stays."""

import json
from collections.abc import Mapping
from typing import Any

import pytest

from truetune.data.examples import Location, Record
from truetune.data.formats import parse_example
from truetune.lint.mend import MENDED, Mended, mend_record, placeholders_left
from truetune.lint.parts import parts_of
from truetune.lint.texts import edge_blanks, encoding_damage

WHERE = Location("rows.jsonl", 1)


def mend(fields: Mapping[str, Any], *rules: str, values: Mapping[str, str] | None = None, **options: Any) -> Mended:
    return mend_record(Record(fields, WHERE), rules=frozenset(rules or MENDED), values=values or {}, **options)


def asked(answer: Any, **others: Any) -> dict[str, Any]:
    return {"instruction": "Who wrote it?", "output": answer, **others}


def said(*turns: tuple[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def test_text_of_the_wrong_table_is_decoded_and_its_quotes_stay() -> None:
    assert mend(asked('“CafÃ©” it’s "ﬁne"')).fields["output"] == '“Café” it’s "ﬁne"'


def test_a_byte_order_mark_in_front_of_a_text_is_taken_off() -> None:
    assert mend(asked("Ada", input="\ufeffA letter")).fields["input"] == "A letter"


@pytest.mark.parametrize("name", ["output", "response", "answer"])
def test_answers_are_stripped_and_questions_are_not(name: str) -> None:
    mended = mend({"instruction": " Who? \n", name: "\n Ada \n"})
    assert mended.fields == {"instruction": " Who? \n", name: "Ada"}
    assert [(change.rule, change.field) for change in mended.changes] == [("edge-blanks", name)]


@pytest.mark.parametrize(
    ("completion", "kept"), [(" Ada\n", " Ada"), ("  Ada", " Ada"), ("\nAda", "Ada"), (" Ada", " Ada"), (" \n", " ")]
)
def test_a_completion_keeps_its_one_leading_space(completion: str, kept: str) -> None:
    assert mend({"prompt": "Who?", "completion": completion}).fields["completion"] == kept


def test_windows_line_ends_become_line_feeds_in_every_text() -> None:
    mended = mend(said(("system", "a\r\nb"), ("user", "c\r\n"), ("assistant", "d\r\ne\r\n")))
    assert [turn["content"] for turn in mended.fields["messages"]] == ["a\nb", "c\n", "d\ne"]


def test_spelled_roles_become_those_of_the_format() -> None:
    mended = mend(said((" User", "a"), ("gpt", "b"), ("human", "c"), ("Assistant", "d"), ("function_call", "{}")))
    roles = [turn["role"] for turn in mended.fields["messages"]]
    assert roles == ["user", "assistant", "user", "assistant", "function_call"]


def test_sharegpt_keeps_its_own_spellings() -> None:
    turns = [{"from": " Human", "value": "a"}, {"from": "gpt", "value": " b"}]
    mended = mend({"id": "x-1", "conversations": turns})
    assert mended.fields == {
        "id": "x-1",
        "conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}],
    }


def test_gemini_keeps_its_own_spellings() -> None:
    row = {"contents": [{"role": "user", "parts": [{"text": "a"}]}, {"role": "model", "parts": [{"text": "b"}]}]}
    assert mend(row).fields is row


def test_an_unknown_role_stays() -> None:
    assert mend(said(("narrator", "a"), ("assistant", "b"))).changes == ()


def test_placeholders_are_filled_everywhere_and_others_stay() -> None:
    row = said(("system", "You are {{name}}."), ("user", "Who?"), ("assistant", "{{ name }} of {{firm}}"))
    mended = mend(row, values={"name": "Ada"})
    assert [turn["content"] for turn in mended.fields["messages"]] == ["You are Ada.", "Who?", "Ada of {{firm}}"]
    assert mended.filled == {"name"}
    assert placeholders_left(parts_of(parse_example(Record(mended.fields, WHERE)))) == {"firm": 1}


def test_a_value_does_not_break_the_json_of_a_call() -> None:
    row = said(
        ("user", "Go"), ("function_call", '{"name": "f", "arguments": {"who": "{{name}}"}}'), ("assistant", "a")
    )
    assert mend(row, values={"name": 'A"da'}).fields is row


def test_rows_about_templates_have_no_placeholders_left() -> None:
    row = asked("In Jinja, write {{ user }}.")
    assert placeholders_left(parts_of(parse_example(Record(row, WHERE)))) == {}


def test_only_the_rules_that_are_held_are_mended() -> None:
    mended = mend(asked(" CafÃ©\r\n{{x}}"), "encoding-damage", values={"x": "y"})
    assert mended.fields["output"] == " Café\r\n{{x}}"


def test_typed_parts_are_one_text_and_their_other_keys_stay() -> None:
    parts = [
        {"type": "text", "text": "\n", "id": 1},
        {"type": "text", "text": " Caf\u00c3\u00a9 ", "cache": None},
        {"type": "tool_use", "id": "t", "name": "f", "input": {"q": " CafÃ© "}},
        {"type": "text", "text": " end \n"},
    ]
    mended = mend(said(("user", "Go"), ("assistant", parts)))
    assert mended.fields["messages"][1]["content"] == [
        {"type": "text", "text": "", "id": 1},
        {"type": "text", "text": "Café ", "cache": None},
        parts[2],
        {"type": "text", "text": " end"},
    ]


def test_the_results_of_tools_are_mended_where_they_stand() -> None:
    result = {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "text", "text": "CafÃ©"}]}
    mended = mend(said(("user", [result]), ("assistant", "a")))
    assert mended.fields["messages"][0]["content"][0]["content"] == [{"type": "text", "text": "Café"}]


def test_a_conversation_stored_as_text_stays_one() -> None:
    turns = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": ' "Ada" ', "weight": 1}]
    mended = mend({"messages": json.dumps(turns)}).fields["messages"]
    assert json.loads(mended)[1] == {"role": "assistant", "content": '"Ada"', "weight": 1}


def test_the_rounds_of_a_history_are_mended() -> None:
    mended = mend(asked("a", history=[["q ", " r"], {"prompt": "q", "response": "r\n"}]))
    assert mended.fields["history"] == [["q ", "r"], {"prompt": "q", "response": "r"}]


def test_fields_that_are_not_read_keep_their_damage_and_all_keep_order_and_type() -> None:
    row = {"note": " CafÃ© ", "output": " a", "n": 7, "instruction": "q", "tags": [" x "], "none": None}
    mended = mend(row).fields
    assert mended == {**row, "output": "a"}
    assert list(mended) == list(row)


def test_renamed_fields_are_mended_under_their_own_names() -> None:
    mended = mend({"q": "Who?", "a": " Ada"}, columns={"q": "instruction", "a": "output"})
    assert mended.fields == {"q": "Who?", "a": "Ada"}
    assert mended.changes[0].field == "a"


def test_a_row_without_faults_is_the_same_object() -> None:
    row = said(("user", "a"), ("assistant", "b"))
    assert mend(row, values={"x": "y"}).fields is row


HARD = [
    asked(" voilÃ\u00a0"),
    asked("\ufeff \ufeffx\r\n "),
    asked("{{x}} Ã©"),
    asked("â€œquotedâ€\x9d \u00a0"),
    {"prompt": "a\r\n", "completion": "  \r\n b\u00a0"},
    said(("Human", "{{x}}"), ("Bot", [{"type": "text", "text": " "}, {"type": "text", "text": "Ã© "}])),
]


@pytest.mark.parametrize("row", HARD)
def test_what_is_mended_has_nothing_to_mend(row: Mapping[str, Any]) -> None:
    mended = mend(row, values={"x": " CafÃ©\r\n"})
    assert mended.changes
    assert mend(mended.fields, values={"x": " CafÃ©\r\n"}).changes == ()
    parts = parts_of(parse_example(Record(mended.fields, WHERE)))
    assert [*edge_blanks(parts), *encoding_damage(parts)] == []
