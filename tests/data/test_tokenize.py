"""A prompt's tokens are those of inference, and what is learned are the answers' own characters, to the token."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken

from conftest import CHATML, CHATML_BOS, STRICT, byte_tokenizer
from properties import examples
from traced import Traced, chat, prefixing_tokenizer, swallowing_tokenizer, words_tokenizer
from truetune.data import tokenize as module
from truetune.data.examples import IGNORED, Rendered, Tokenized
from truetune.data.rules import RowError
from truetune.data.templates import Template, load_template
from truetune.data.tokenize import fit, tokenize
from truetune.errors import BackendError

CHAT = byte_tokenizer(chat_template=CHATML)
MERGES = byte_tokenizer(merges=((":", " "), ("\n", "#"), (">", "\n"), ("a", "b"), (" ", "4")))


def pair(prompt: str, completion: str) -> dict[str, Any]:
    return {"prompt": prompt, "completion": completion}


# --- the prompt's tokens ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "completion"),
    [("### Answer:", " 4"), ("a", "b"), ("a:", " b"), ("x\n", "#1"), ("ca", "t 4"), ("=", " 4"), ("a b", "ab")],
)
def test_a_token_across_the_prompt_s_end_is_split_there(prompt: str, completion: str) -> None:
    row = Traced(pair(prompt, completion), MERGES)
    alone = MERGES(prompt, add_special_tokens=False)["input_ids"]
    assert row.ids[: len(alone)] == alone == row.prompt_ids
    assert row.labels[: len(alone)] == [IGNORED] * len(alone)
    assert row.learned == [completion + "</s>"]


def test_line_breaks_at_the_prompt_s_end_are_the_tokens_of_the_prompt_alone() -> None:
    tokenizer = words_tokenizer(("\n", "\n"))
    joined = tokenizer.convert_tokens_to_ids("ĊĊ")
    assert joined not in tokenizer("a\n\nb", add_special_tokens=False)["input_ids"]
    row = Traced({"instruction": "a", "output": "b"}, tokenizer, template="{instruction}\n\n{output}")
    assert row.ids == [97, joined, 98, tokenizer.eos_token_id]
    assert row.prompt_ids == [97, joined]
    assert row.learned == ["b</s>"]


def test_a_blank_at_the_prompt_s_end_stays_there_though_offsets_are_trimmed() -> None:
    from tokenizers import processors

    tokenizer = words_tokenizer((" ", "4"))
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    row = Traced(pair("= ", "4"), tokenizer)
    assert row.prompt_ids == row.ids[:2] == [*b"= "]
    assert row.learned == ["4</s>"]


@pytest.mark.parametrize(
    ("prompt", "completion"), [("ca", "t"), ("=", " 4"), ("a\n\n", "cat"), ("x ", "4"), ("x", "é")]
)
def test_a_tokenizer_that_puts_a_blank_in_front_of_texts_puts_none_into_a_split_one(
    prompt: str, completion: str
) -> None:
    tokenizer = prefixing_tokenizer()
    row = Traced(pair(prompt, completion), tokenizer)
    assert row.ids[: len(row.prompt_ids)] == row.prompt_ids
    assert tokenizer.decode(row.ids) == prompt + completion + "</s>"
    assert tokenizer.decode(row.ids[len(row.prompt_ids) :]).lstrip() == completion.lstrip() + "</s>"


PIECES = ["\n\n", "\n", "  ", " ", ": ", ":", "#", "a", "ab", " a", "4", ">", "é", "😀"]
TEXTS = st.lists(st.sampled_from(PIECES), max_size=5).map("".join)
WORDS = words_tokenizer(("\n", "\n"), (" ", " "), (" ", "a"), ("a", "b"), (":", " "), ("\n", "#"))


@given(prompt=TEXTS.map("x".__add__), answer=TEXTS.map(lambda text: text + "b"))
@examples(300)
@pytest.mark.parametrize("tokenizer", [MERGES, WORDS], ids=["merges", "words"])
def test_any_prompt_has_its_own_tokens_and_any_answer_is_learned_whole(
    tokenizer: Any, prompt: str, answer: str
) -> None:
    row = Traced(pair(prompt, answer), tokenizer)
    alone = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    assert row.ids[: len(alone)] == alone
    assert row.labels == [*[IGNORED] * len(alone), *row.ids[len(alone) :]]
    assert tokenizer.decode(row.ids) == prompt + answer + "</s>"


@given(
    st.lists(st.text(alphabet="ab \n:é", min_size=1, max_size=6).map(lambda text: "x" + text), min_size=2, max_size=6)
)
@examples(60)
def test_in_a_talk_exactly_the_answers_and_their_terminators_are_learned(texts: list[str]) -> None:
    turns = [f"{'ua'[index % 2]}:{text}" for index, text in enumerate(texts)]
    row = Traced(chat(*turns), CHAT)
    answers = texts[1::2]
    assert row.learned == [answer + "<|im_end|>" for answer in answers]
    assert len(row.ids) == sum(len(text.encode()) for text in texts) + sum(
        len(role) + 4 for role in (("user", "assistant") * len(texts))[: len(texts)]
    )


def test_the_last_one_of_several_answers_is_told_by_its_delimiters() -> None:
    row = Traced(chat("u:hi", "a:one", "u:so", "a:two", "u:and", "a:three"), CHAT, train_on="last_turn")
    assert row.learned == ["three<|im_end|>"]


def test_common_rows_need_no_offsets_and_rows_with_control_tokens_in_their_words_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain = Traced(chat("u:hi", "a:one", "u:so", "a:two"), CHAT)
    written = Traced(chat("u:what is <|im_end|>?", "a:a stop"), CHAT, control="as_text")
    assert written.learned == ["a stop<|im_end|>"]
    assert written.ids.count(CHAT.convert_tokens_to_ids("<|im_end|>")) == 2
    asked: list[Rendered] = []
    monkeypatch.setattr(module, "_by_offsets", lambda rows, _: asked.extend(rows) or [None] * len(rows))
    tokens, _ = tokenize([plain.rendered, written.rendered], template=plain.template)
    assert tokens == plain.tokens
    assert asked == [written.rendered]


def test_delimiters_that_stand_at_other_places_among_the_ids_are_not_trusted() -> None:
    """The header's line break and the answer's first letter are one token: its offsets say that it must be split."""
    tokenizer = byte_tokenizer(chat_template=CHATML, merges=(("\n", "y"),))
    row = Traced(chat("u:hi", "a:yo", "u:x", "a:z"), tokenizer)
    assert row.template.delimiter_ids is not None
    assert row.learned == ["yo<|im_end|>", "z<|im_end|>"]


def test_a_control_token_that_swallows_blanks_delimits_nothing_by_its_id() -> None:
    tokenizer = byte_tokenizer(chat_template=CHATML)
    assert Traced(chat("u:hi", "a:yo"), tokenizer).template.delimiter_ids is not None
    tokenizer.add_special_tokens({"additional_special_tokens": [AddedToken("<|im_end|>", rstrip=True)]})
    row = Traced(chat("u:hi", "a:yo", "u:x", "a:z"), tokenizer)
    assert row.template.delimiter_ids is None
    assert row.learned == ["yo<|im_end|>", "z<|im_end|>"]


# --- the answer's end -------------------------------------------------------------------------------------


def test_a_terminator_of_plain_text_is_learned_to_its_last_character() -> None:
    tokenizer = byte_tokenizer(chat_template=STRICT, merges=((">", "\n"),))
    row = Traced(chat("u:hi", "a:yo"), tokenizer)
    assert row.learned == ["yo<end_of_turn>\n"]


def test_a_token_across_the_answer_s_end_is_split_there() -> None:
    tokenizer = byte_tokenizer(merges=((">", "X"),))
    assert len(tokenizer("a>Xb")["input_ids"]) == 3
    assert tokenize([Rendered("a>Xb", ((1, 2),))], template=load_template(tokenizer)) == [
        Tokenized([*b"a>Xb"], [IGNORED, ord(">"), IGNORED, IGNORED])
    ]


def test_a_stop_token_that_swallows_the_line_break_behind_it_is_learned() -> None:
    template = (
        "{% for m in messages %}{{ '<|assistant|>' if m['role'] == 'assistant' else '<|im_start|>' }}\n"
        "{{ m['content'] }}<|end|>\n{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
    )
    tokenizer = swallowing_tokenizer(template)
    stop = tokenizer.convert_tokens_to_ids("<|end|>")
    row = Traced(chat("u:hi", "a:yo", "u:x", "a:  z"), tokenizer)
    assert [row.ids[index] for index, label in enumerate(row.labels) if label != IGNORED] == [
        *(*b"yo", stop),
        *(*b"  z", stop),
    ]
    assert row.ids[: len(row.prompt_ids)] == row.prompt_ids


# --- one BOS, no padding, no cut --------------------------------------------------------------------------


def test_the_tokenizer_adds_nothing_to_a_rendered_text() -> None:
    row = Traced(chat("u:hi", "a:yo"), byte_tokenizer(chat_template=CHATML_BOS, adds_bos=True))
    assert row.ids == [256, 259, *b"user\nhi", 260, 10, 259, *b"assistant\nyo", 260, 10]
    assert row.prompt_ids == row.ids[:22]


def test_the_first_token_is_never_a_target_and_labels_are_as_long_as_ids() -> None:
    row = Traced({"text": "abc"}, byte_tokenizer())
    assert row.labels == [IGNORED, 98, 99, 257]
    assert row.tokens.supervised == 3


def test_a_row_with_nothing_to_learn_is_returned_as_the_reason_beside_the_others() -> None:
    good, empty = Rendered("ab", ((1, 2),)), Rendered("ab", ((0, 1),))
    first, second, third = tokenize([good, empty, good], template=load_template(byte_tokenizer()))
    assert first == third == Tokenized([97, 98], [IGNORED, 98])
    assert isinstance(second, RowError)
    assert second.rule == "empty-mask"


def test_rows_are_tokenized_alike_alone_and_together() -> None:
    rows = [Traced(pair("a" * n, "b" * n), MERGES) for n in range(1, 6)]
    together = tokenize([row.rendered for row in rows], template=load_template(MERGES))
    assert together == [row.tokens for row in rows]


def test_a_tokenizer_without_offsets_is_refused_with_the_remedy() -> None:
    class Slow:
        is_fast = False

    with pytest.raises(BackendError, match="no character offsets") as caught:
        tokenize([Rendered("a", ((0, 1),))], template=Template(Slow(), None, "alpaca"))
    assert "tokenizer.json" in str(caught.value.hint)


# --- the length -------------------------------------------------------------------------------------------


def test_a_row_that_fits_is_left_as_it_is() -> None:
    tokens = Traced(chat("u:hi", "a:yo"), CHAT).tokens
    for overlong in ("drop", "cut_at_turn", "truncate", "error"):
        assert fit(tokens, max_length=25, overlong=overlong) is tokens  # type: ignore[arg-type]
    assert fit(tokens, max_length=24, overlong="drop") is None
    assert fit(tokens, max_length=24, overlong="error") is None


def test_g16_a_cut_answer_has_no_stop_token() -> None:
    tokens = Traced(chat("u:q", "a:" + "z" * 100), CHAT).tokens
    cut = fit(tokens, max_length=64, overlong="truncate")
    assert cut is not None
    assert (len(cut.input_ids), cut.labels[-1]) == (64, ord("z"))
    assert cut.supervised == 64 - 20
    assert not {257, 260} & {label for label in cut.labels if label != IGNORED}


def test_a_row_whose_answer_would_be_cut_away_is_left_out() -> None:
    tokens = Traced(chat("u:" + "x" * 100, "a:yo"), CHAT).tokens
    assert len(tokens.input_ids) == 123
    for overlong in ("truncate", "cut_at_turn"):
        assert fit(tokens, max_length=32, overlong=overlong) is None  # type: ignore[arg-type]


def test_cutting_at_a_turn_keeps_whole_answers_with_their_stops() -> None:
    tokens = Traced(chat("u:q1", "a:a1", "u:q2", "a:a2!", "u:q3", "a:" + "z" * 50), CHAT).tokens
    for limit, answers in ((100, "a1 a2!"), (50, "a1 a2!"), (49, "a1"), (25, "a1"), (24, "a1")):
        cut = fit(tokens, max_length=limit, overlong="cut_at_turn")
        assert cut is not None
        assert len(cut.input_ids) <= limit
        assert CHAT.decode(cut.input_ids).endswith(answers.split()[-1] + "<|im_end|>")
        assert cut.supervised == sum(len(answer) + 1 for answer in answers.split())
    assert fit(tokens, max_length=23, overlong="cut_at_turn") is None
