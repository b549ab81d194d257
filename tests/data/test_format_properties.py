"""One talk, one question and answer, however their fields are spelled, are one example."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from properties import WHOLE_TEXTS, examples
from traced import parsed
from truetune.data import fields
from truetune.data.examples import Completion, Conversation, Instruction
from truetune.data.turns import CALLING, CONTENT_KEYS, ROLE_KEYS, ROLES

SAID = WHOLE_TEXTS.filter(str.strip)
TALK = st.lists(st.tuples(SAID, SAID), min_size=1, max_size=3)
"""Rounds of a talk: what was asked, what was answered."""

SPELLED = {role: [name for name in ROLES if ROLES[name] == role and name not in CALLING] for role in ROLES.values()}
NAMES: Mapping[str, Sequence[str]] = fields._SLOTS


def any_case(names: Sequence[str]) -> st.SearchStrategy[str]:
    """A name as people write it: in any case, with blanks around it."""
    ways = (str, str.upper, str.title, lambda name: f" {name} ")
    return st.sampled_from(names).flatmap(lambda name: st.sampled_from([way(name) for way in ways]))


def stored(value: Any) -> st.SearchStrategy[Any]:
    """The value itself, as JSON text, and as pandas writes it."""
    return st.sampled_from([value, json.dumps(value), json.dumps(value, ensure_ascii=False), repr(value)])


@st.composite
def turns(draw: st.DrawFn, messages: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    """The messages with one pair of keys for role and content, and any words for the roles."""
    role_key, content_key = draw(st.sampled_from(ROLE_KEYS)), draw(st.sampled_from(CONTENT_KEYS))
    found = []
    for role, text in messages:
        as_parts = content_key == "parts" or draw(st.booleans())
        parts = draw(
            st.sampled_from([[{"text": text}], [text], [{"type": "text", "text": text}], [{"text": ""}, text]])
        )
        word = draw(any_case(SPELLED[role]))
        found.append({role_key: word, content_key: parts if as_parts else text})
    return found


@st.composite
def talks(draw: st.DrawFn) -> tuple[list[tuple[str, str]], dict[str, Any]]:
    """What is said, and a row that says it."""
    rounds = draw(TALK)
    messages = [turn for asked, said in rounds for turn in (("user", asked), ("assistant", said))]
    if system := draw(st.none() | SAID):
        messages = [("system", system), *messages]
    name = draw(any_case(NAMES["chat"]))
    if messages[0][0] == "system" and draw(st.booleans()):
        row = {name: draw(turns(messages[1:])), draw(any_case(NAMES["system"])): messages[0][1]}
    elif messages[0][0] != "system" and draw(st.booleans()):
        asked, said = draw(st.sampled_from(fields._ASKED)), draw(st.sampled_from(fields._SAID))
        row = {name: [{asked: question, said: answer} for question, answer in rounds]}
    else:
        row = {name: draw(turns(messages))}
    return messages, {key: draw(stored(value)) if isinstance(value, list) else value for key, value in row.items()}


@given(talks())
@examples(150)
def test_a_talk_is_the_same_in_every_spelling(talk: tuple[list[tuple[str, str]], dict[str, Any]]) -> None:
    messages, row = talk
    example = parsed(row)
    assert isinstance(example, Conversation)
    assert [(message.role, message.content) for message in example.messages] == messages
    assert all(message.extra == {} for message in example.messages)


@st.composite
def asked(draw: st.DrawFn) -> tuple[dict[str, str], dict[str, Any]]:
    """What the slots of an instruction hold, and a row that holds it."""
    slots = {"question": draw(SAID), "answer": draw(SAID)}
    slots |= {slot: draw(WHOLE_TEXTS) for slot in ("input", "system") if draw(st.booleans())}
    row: dict[str, Any] = {draw(any_case(NAMES[slot])): text for slot, text in slots.items()}
    return slots, row | {"id": 7, "source": "a"}


@given(asked(), st.permutations(range(6)))
@examples(100)
def test_an_instruction_is_the_same_in_every_spelling_and_order(
    example: tuple[dict[str, str], dict[str, Any]], order: list[int]
) -> None:
    slots, row = example
    names = list(row)
    row = {names[place]: row[names[place]] for place in order if place < len(names)}
    found = parsed(row)
    assert isinstance(found, Instruction)
    assert (found.instruction, found.output) == (slots["question"], slots["answer"])
    assert (found.input, found.system) == (slots.get("input", ""), slots.get("system", ""))
    assert found.notes == ()


@given(SAID, SAID, st.sampled_from(NAMES["completion"]), st.sampled_from(["text", "prompt", "completion"]))
@examples(40)
def test_columns_rename_any_field_to_any_slot(prompt: str, answer: str, name: str, beside: str) -> None:
    whole = parsed({"Frage": prompt, "Antwort": answer, beside: ""}, columns={"Frage": "prompt", "Antwort": name})
    assert isinstance(whole, Completion)
    assert (whole.prompt, whole.completion) == (prompt, answer)
    text = parsed({"body": prompt, "other": answer}, columns={"body": "text"})
    assert isinstance(text, Completion)
    assert (text.prompt, text.completion) == ("", prompt)


@pytest.mark.parametrize("value", [7, 1.5, True, 10**30])
@given(SAID)
@examples(5)
def test_a_number_where_text_should_be_is_its_json_and_is_noted(value: Any, question: str) -> None:
    example = parsed({"instruction": question, "output": value})
    assert isinstance(example, Instruction)
    assert json.loads(example.output) == value
    assert [note.rule for note in example.notes] == ["number-as-text"]
