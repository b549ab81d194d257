"""Whatever stands in a row, the text is the template's, and what is learned are the answers with their stops."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import CHATML, CHATML_BOS, STRICT, THINKING, byte_tokenizer
from properties import WHOLE_TEXTS, examples
from traced import Traced, chat
from truetune.data.rules import RowError

PIECES = ["hi", "\n", " ", "\n\n", "é", "😀", "<|im_end|>", "<|im_start|>", "</s>", "<think>", "</think>", "{output}"]
PIECES += ["{{ x }}", "{% if %}", "\ue0f0", "\ue0f3", "assistant", "\r", "\u2028", "<end_of_turn>"]
SAID = st.lists(st.sampled_from(PIECES) | WHOLE_TEXTS, min_size=1, max_size=4).map("".join).filter(str.strip)
CONTROL = ("<|im_end|>", "<|im_start|>", "</s>", "<s>", "<pad>")


# --- conversations ----------------------------------------------------------------------------------------

CHATS = {
    "chatml": byte_tokenizer(chat_template=CHATML),
    "bos": byte_tokenizer(chat_template=CHATML_BOS, adds_bos=True),
    "merging": byte_tokenizer(chat_template=CHATML, merges=(("\n", "h"), (">", "\n"), ("i", "<"))),
    "strict": byte_tokenizer(chat_template=STRICT),
    "thinking": byte_tokenizer(chat_template=THINKING),
}


@pytest.mark.parametrize("name", CHATS)
@given(rounds=st.lists(st.tuples(SAID, SAID), min_size=1, max_size=3), system=st.none() | SAID)
@examples(25)
def test_exactly_the_answers_with_their_stops_are_learned_or_the_row_is_refused(
    name: str, rounds: list[tuple[str, str]], system: str | None
) -> None:
    turns = [turn for asked, said in rounds for turn in (f"u:{asked}", f"a:{said}")]
    row = chat(*([f"s:{system}"] if system else []), *turns)
    try:
        traced = Traced(row, CHATS[name])
    except RowError as error:
        assert error.rule in ("control-token", "unverifiable-mask")
        return
    answers = [said for _, said in rounds]
    assert not any(token in text for token in CONTROL for text in (system or "", *map("".join, rounds)))
    assert len(traced.learned) == len(answers)
    stop = traced.template.terminator
    for learned, answer in zip(traced.learned, answers, strict=True):
        assert learned.endswith(stop)
        if answer.rstrip().endswith(stop):
            continue  # Where the stop is no control token, an answer that says it at its end is taken to be closed.
        said = learned.removesuffix(stop)
        assert said.strip() == answer.strip() or (name == "thinking" and answer.strip().endswith(said.strip()))
        assert said == answer or name in ("strict", "thinking")  # These trim.
    # Where "\n" and "h" are one token, a prompt's tokens reach over the beginnings of answers that stand in it. The
    # row, which learns those answers too, has them cut there.
    if len(rounds) == 1 or name != "merging":
        assert traced.ids[: len(traced.prompt_ids)] == traced.prompt_ids


@given(rounds=st.lists(st.tuples(SAID, SAID), min_size=1, max_size=3))
@examples(30)
def test_what_looks_like_a_control_token_may_be_read_as_text(rounds: list[tuple[str, str]]) -> None:
    tokenizer = CHATS["chatml"]
    turns = [turn for asked, said in rounds for turn in (f"u:{asked}", f"a:{said}")]
    try:
        traced = Traced(chat(*turns), tokenizer, control="as_text")
    except RowError as error:
        assert error.rule in ("unverifiable-mask", "control-token")
        assert any(mark in text for mark in "\ue0f0\ue0f3" for pair in rounds for text in pair)
        return
    assert traced.learned == [f"{said}<|im_end|>" for _, said in rounds]
    # Four turns' tokens of the template's own, and not one more.
    assert sum(token == 259 for token in traced.ids) == sum(token == 260 for token in traced.ids) == 2 * len(rounds)


# --- format texts -----------------------------------------------------------------------------------------

PLAIN = byte_tokenizer()
LITERAL = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="{}"), max_size=6)
PLACES = st.lists(st.sampled_from(["{input}", "{system}", "{instruction}", ""]), max_size=3)


@st.composite
def format_texts(draw: st.DrawFn) -> str:
    """A format text: words and places before the one of the answer, and perhaps some behind it."""
    before = [*draw(PLACES), "{instruction}"]
    behind = draw(PLACES)
    text = "".join(draw(LITERAL) + place for place in [*before, "{output}", *behind])
    return text + draw(LITERAL)


VALUES = st.fixed_dictionaries({"instruction": SAID, "input": WHOLE_TEXTS, "output": SAID, "system": WHOLE_TEXTS})


@given(format_texts(), VALUES)
@examples(120)
def test_a_format_text_is_filled_once_and_learned_from_its_answer_on(template: str, row: dict[str, str]) -> None:
    before, _, behind = template.partition("{output}")

    def filled(text: str) -> str:
        pieces = text.split("{")
        return pieces[0] + "".join(
            row[name] + rest for name, _, rest in (piece.partition("}") for piece in pieces[1:])
        )

    prompt, answer = filled(before), row["output"] + filled(behind)
    try:
        traced = Traced(row, PLAIN, template=template)
    except RowError as error:
        assert error.rule == "control-token"
        return
    assert traced.rendered.text == prompt + answer + ("" if answer.rstrip().endswith("</s>") else "</s>")
    assert traced.prompt == prompt
    # The first token is never learned.
    assert traced.learned == [traced.rendered.text[len(prompt) :]] or not prompt


@pytest.mark.parametrize("template", ["alpaca", "model", "auto"])
@given(SAID, SAID)
@examples(15)
def test_a_bare_text_is_learned_whole_whatever_the_template(template: str, text: str, other: str) -> None:
    traced: Any = Traced({"text": "x" + text + other}, CHATS["chatml"], template=template)
    whole = "x" + text + other
    assert traced.rendered.text == (whole.rstrip() if whole.rstrip().endswith("</s>") else f"{whole}</s>")
    assert traced.labels[1:] == traced.ids[1:]
