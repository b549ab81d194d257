"""Whatever JSON stands wherever in a row, the row becomes an example or is refused: nothing else is raised."""

import json
from contextlib import suppress
from dataclasses import asdict
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from properties import changed, examples, places
from traced import HERMES, HI, W_CALL, W_TOOL, YO, call
from truetune.data.examples import Location, Record
from truetune.data.formats import expand_record, parse_example
from truetune.data.rules import RowError

WHERE = Location("a.jsonl", 1)

WHOLE: list[dict[str, Any]] = [
    {
        "messages": [
            {"role": "system", "content": [{"type": "text", "text": "s"}]},
            {"role": "user", "content": "hi", "name": "Ann"},
            {"role": "assistant", "content": None, "tool_calls": [{"id": "c", **W_CALL}], "reasoning": "hm"},
            {"role": "tool", "content": "7", "tool_call_id": "c"},
            {"role": "assistant", "content": "yo", "weight": 1, "train": True, "function_call": W_CALL["function"]},
        ],
        "tools": [W_TOOL, W_TOOL["function"], {"functionDeclarations": [W_TOOL["function"]]}],
        "weight": 0.5,
        "system": "s",
        "parallel_tool_calls": False,
        "images": [],
        "label": "a",
    },
    {"messages": HERMES, "tools": [W_TOOL]},
    {"conversation": [{"system": "s", "input": "a", "output": "b", "train": True}]},
    {"conversations": [{"from": "human", "value": "w?"}, {"from": "function_call", "value": '{"name": "w"}'}]},
    {
        "systemInstruction": {"parts": [{"text": "s"}]},
        "contents": [
            {"parts": [{"text": "w?", "thought": True}]},
            {"role": "model", "parts": [{"functionCall": {"name": "w", "args": {}}}]},
            {"parts": [{"functionResponse": {"name": "w", "response": {}}}]},
        ],
    },
    {
        "messages": [
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c", "content": [{"text": "a"}]}]},
            {"role": "assistant", "content": [{"type": "thinking", "thinking": "b"}, {"type": "text", "text": "c"}]},
            {"role": "assistant", "content": [{"type": "tool_call", "value": {"name": "w", "arguments": {}}}]},
        ]
    },
    {"prompt": [HI, YO], "completion": [YO], "label": None},
    {"prompt": "a", "completion": "b", "system": "s", "weight": 1},
    {"instruction": "Add", "input": "1", "output": "2", "system": "s", "history": [["a", "b"]]},
    {"question": "Add", "answer": "2", "history": [{"prompt": "c", "response": "d"}]},
    {"instruction": "Add", "instances": [{"input": "1", "output": "2"}]},
    {"text": "a", "weight": 1},
]
WORDS = ["", "hi", "\ud800", "[", "{'a': 1}", '{"name": "w", "arguments": "{"}', "assistant", "tool_result", "image"]
KEYS = ["role", "from", "content", "value", "parts", "type", "text", "name", "function", "arguments", "functionCall"]
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(WORDS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS) | st.text(), inner, max_size=3),
    max_leaves=6,
)


PLACES = [(row, path) for row in WHOLE for path in places(row) if path]
ODD = [*WORDS, None, True, 0, -1, 0.5, float("nan"), float("inf"), 10**400, [], [[]], [7], {}, {"a": 1}, {"type": []}]


def require_example_or_row_error(row: dict[str, Any]) -> None:
    """Whatever is taken can be written: no half of a surrogate pair came in."""
    for record in expand_record(Record(row, WHERE)):
        with suppress(RowError):
            json.dumps(asdict(parse_example(record)), ensure_ascii=False).encode()


@pytest.mark.parametrize("row", WHOLE)
def test_the_rows_that_are_changed_here_are_whole(row: dict[str, Any]) -> None:
    assert [parse_example(record).where for record in expand_record(Record(row, WHERE))] == [WHERE]


@pytest.mark.parametrize("value", ODD, ids=lambda value: str(value)[:20])
def test_an_odd_value_anywhere_gives_a_whole_example_or_a_row_error(value: Any) -> None:
    for row, path in PLACES:
        require_example_or_row_error(changed(row, path, value))


@examples(500)
@given(st.sampled_from(PLACES), VALUES, st.booleans())
def test_any_json_anywhere_gives_a_whole_example_or_a_row_error(
    place: tuple[dict[str, Any], tuple[Any, ...]], value: Any, as_text: bool
) -> None:
    row = changed(*place, value)
    if as_text:
        row = {key: json.dumps(each) if isinstance(each, list | dict) else each for key, each in row.items()}
    require_example_or_row_error(row)


def test_a_text_that_is_nested_without_end_is_a_row_error() -> None:
    for text in ("[" * 100_000, "['" * 100_000, '{"a":' * 100_000, "[" + "-" * 100_000 + "1, '']"):
        for beside in ({"messages": text}, {"tools": text}, {"messages": [HI, call("w", text)]}):
            with pytest.raises(RowError, match="not valid JSON"):
                parse_example(Record({"messages": [HI, YO], **beside}, WHERE))
