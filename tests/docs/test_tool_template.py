"""The chat template of the tool-calling example: it tells tools, and training, eval and generate agree about it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from truetune.data.examples import Conversation
from truetune.data.formats import parse_example
from truetune.data.read import read_records
from truetune.data.render import render, render_prompt
from truetune.data.templates import Template, load_template
from truetune.inference.tool_calls import calls_in, calls_match, calls_of_turn

FOLDER = Path(__file__).parents[2] / "examples" / "tool-calling"


def conversations(name: str) -> list[Conversation]:
    rows = [parse_example(record) for record in read_records(str(FOLDER / name))]
    assert all(isinstance(row, Conversation) and row.tools for row in rows)
    return rows


@pytest.fixture
def template(tk: Callable[..., Any]) -> Template:
    return load_template(tk(), template=str(FOLDER / "tools.jinja"))


@pytest.mark.parametrize("name", ["train.jsonl", "test.jsonl"])
def test_every_row_is_asked_with_its_tools_and_learns_its_answers_alone(name: str, template: Template) -> None:
    for row in conversations(name):
        rendered = render(row, template=template)
        asked = rendered.text.partition("<|im_start|>user\n")[0]
        assert all(f"\n{tool['function']['name']}(" in asked for tool in row.tools)
        assert rendered.notes == ()
        answers = [turn for turn in row.messages if turn.role == "assistant"]
        for text, turn in zip(rendered.learned(), answers, strict=True):
            calls = calls_of_turn(turn.extra.get("tool_calls") or ())
            assert calls_match(calls_in(text), calls, tools=row.tools)
            assert calls or text == turn.content + "<|im_end|>"


def test_a_model_is_asked_as_its_rows_were(template: Template) -> None:
    for row in conversations("test.jsonl"):
        rendered = render(row, template=template)
        start, _ = rendered.spans[-1]
        assert render_prompt(row, template=template).text == rendered.text[:start]


def test_a_tool_is_one_line_with_its_types_its_choices_and_what_may_be_left_out(template: Template) -> None:
    row = next(row for row in conversations("train.jsonl") if len({*map(tool_name, row.tools)} & WANTED) == 2)
    text = render(row, template=template).text
    assert "\nset_alarm(time: string, day?: string): an alarm clock" in text
    assert "\ntranslate(text: string, language: Spanish or French or German or Italian): " in text


WANTED = {"set_alarm", "translate"}


def tool_name(tool: Any) -> str:
    return str(tool["function"]["name"])
