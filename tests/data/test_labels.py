"""Exactly the answers and their stop tokens are learned, and a prompt's tokens are those of inference."""

from pathlib import Path
from typing import Any

import pytest

from conftest import CHATML, CHATML_BOS, STRICT, THINKING, TOOLS, byte_tokenizer
from truetune.data.examples import IGNORED, Location, Record, Rendered, Tokenized
from truetune.data.formats import parse_example
from truetune.data.render import render, render_prompt
from truetune.data.rules import RowError
from truetune.data.templates import ALPACA_WITH_INPUT, load_template
from truetune.data.tokenize import fit, tokenize
from truetune.errors import ConfigError, TemplateError

GENERATION = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' %}{% generation %}"
    "{{ m['content'] }}{% endgeneration %}{% else %}{{ m['content'] }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPACED = (
    "{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
    "{% else %} {{ m['content'] | trim }} </s>{% endif %}{% endfor %}"
)
OPENING = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] | trim }}<|im_end|>{% endfor %}"
    "<|im_start|>assistant\n"
)
LATE = (
    "{% for m in messages %}{% if not loop.first %}<|im_end|>{% endif %}"
    "{{ m['role'] }}: {{ m['content'] }}{% endfor %}"
)


def chat(*turns: str) -> dict[str, Any]:
    """`u:hi` is a user's turn, `a:yo` an assistant's, `s:` a system's."""
    roles = {"u": "user", "a": "assistant", "s": "system"}
    return {"messages": [{"role": roles[turn[0]], "content": turn[2:]} for turn in turns]}


class Row:
    """A row at every stage, under one tokenizer and template."""

    def __init__(self, fields: dict[str, Any], tokenizer: Any, **options: Any) -> None:
        self.tokenizer = tokenizer
        self.template = load_template(tokenizer, **options)
        self.example = parse_example(Record(fields, Location("a.jsonl", 1)))
        self.rendered = render(self.example, template=self.template)
        (tokens,) = tokenize([self.rendered], tokenizer=tokenizer)
        assert isinstance(tokens, Tokenized), tokens
        self.ids, self.labels = tokens.input_ids, tokens.labels
        self.supervised = tokens.supervised

    @property
    def spans(self) -> list[str]:
        """The stretches of supervised tokens, decoded."""
        found: list[list[int]] = []
        for before, label in zip([IGNORED, *self.labels], self.labels, strict=False):
            if label != IGNORED:
                found = [*found, [label]] if before == IGNORED else [*found[:-1], [*found[-1], label]]
        return [self.tokenizer.decode(ids) for ids in found]

    @property
    def prompt_ids(self) -> list[int]:
        text = render_prompt(self.example, template=self.template)
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]


CHAT = byte_tokenizer(chat_template=CHATML)


def test_g09_the_turns_terminator_is_learned_though_it_is_not_eos() -> None:
    row = Row(chat("u:hi", "a:yo"), CHAT)
    assert (len(row.ids), row.supervised, row.spans) == (25, 3, ["yo<|im_end|>"])
    assert row.labels[23] == 260
    assert row.labels[24] == IGNORED
    assert row.template.terminator == "<|im_end|>"
    assert row.template.stop_token_ids == (260, 257)


def test_g15_every_answer_is_learned_or_the_last_only_or_all() -> None:
    turns = chat("u:q1", "a:a1", "u:q2", "a:a2!")
    assert (len(Row(turns, CHAT).ids), Row(turns, CHAT).supervised) == (51, 7)
    assert Row(turns, CHAT).spans == ["a1<|im_end|>", "a2!<|im_end|>"]
    assert Row(turns, CHAT, train_on="last_turn").spans == ["a2!<|im_end|>"]
    assert Row(turns, CHAT, train_on="all").supervised == 50


def test_g05_any_order_of_turns_is_learned() -> None:
    first = Row(chat("a:Hello", "u:q", "a:a"), CHAT)
    assert (len(first.ids), first.supervised) == (41, 8)
    assert (len(Row(chat("u:a", "u:b", "a:c"), CHAT).ids), Row(chat("u:a", "u:b", "a:c"), CHAT).supervised) == (32, 2)
    thanks = Row(chat("u:a", "a:b", "u:thanks"), CHAT)
    assert thanks.spans == ["b<|im_end|>"]


def test_g07_there_is_one_bos_also_where_tokenizer_and_template_both_add_one() -> None:
    row = Row(chat("u:hi", "a:yo"), byte_tokenizer(chat_template=CHATML_BOS, adds_bos=True))
    assert (len(row.ids), row.ids.count(256), row.ids[0]) == (26, 1, 256)
    assert row.prompt_ids == row.ids[:22]
    assert 256 not in Row(chat("u:hi", "a:yo"), CHAT).ids


@pytest.mark.parametrize("text", ["<s>[INST] Q [/INST] A</s>", "[INST] Q [/INST] A"])
def test_g07_a_bare_text_has_one_bos_and_one_eos_and_all_but_bos_is_learned(text: str) -> None:
    row = Row({"text": text}, byte_tokenizer(adds_bos=True))
    assert (len(row.ids), row.ids.count(256), row.ids.count(257)) == (20, 1, 1)
    assert (row.ids[0], row.ids[-1]) == (256, 257)
    assert row.labels == [IGNORED, *row.ids[1:]]


@pytest.mark.parametrize("text", ["A", "A</s>"])
def test_g08_a_text_ends_with_one_learned_eos(text: str) -> None:
    row = Row({"text": text}, byte_tokenizer(pad_token="</s>"))
    assert row.ids == [65, 257]
    assert row.labels == [IGNORED, 257]


def test_g08_without_an_eos_text_is_refused_and_chat_trains_as_usual() -> None:
    tokenizer = byte_tokenizer(chat_template=CHATML, eos_token=None)
    with pytest.raises(TemplateError, match="eos"):
        Row({"text": "A"}, tokenizer)
    assert Row(chat("u:hi", "a:yo"), tokenizer).spans == ["yo<|im_end|>"]


def test_the_guides_alpaca_prompts_are_used_byte_for_byte() -> None:
    bare = Row({"instruction": "Add", "output": "3"}, byte_tokenizer())
    assert bare.rendered.text == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request."
        "\n\n### Instruction:\nAdd\n\n### Response:\n3</s>"
    )
    assert len(bare.prompt_ids) == 143
    assert bare.spans == ["3</s>"]
    full = Row({"instruction": "Add", "input": "1 2", "output": "3"}, byte_tokenizer())
    assert full.rendered.text == (
        "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
        "response that appropriately completes the request."
        "\n\n### Instruction:\nAdd\n\n### Input:\n1 2\n\n### Response:\n3</s>"
    )


def test_g06_the_input_reaches_the_prompt_in_every_template_or_is_reported() -> None:
    fields = {"instruction": "Sum the numbers", "input": "1 2 3", "output": "6", "system": "Be brief."}
    assert "Sum the numbers\n\n1 2 3<|im_end|>" in Row(fields, CHAT).rendered.text
    assert "### Input:\n1 2 3" in Row(fields, CHAT, template="alpaca").rendered.text
    other = Row({**fields, "input": "4 5 6"}, CHAT)
    assert other.prompt_ids != Row(fields, CHAT).prompt_ids
    own = Row(fields, CHAT, template="Q: {instruction}\nA: {output}")
    assert own.rendered.text == "Q: Sum the numbers\nA: 6</s>"
    assert own.rendered.notes == ("not-rendered:input", "not-rendered:system")


def test_braces_in_a_row_are_not_taken_for_placeholders() -> None:
    row = Row(
        {"instruction": "{output}{input}", "output": "{x}"}, byte_tokenizer(), template="{instruction}={output}"
    )
    assert row.rendered.text == "{output}{input}={x}</s>"
    assert row.rendered.learned() == ("{x}</s>",)
    alpaca = Row({"instruction": "a", "input": "{output}", "output": "b"}, byte_tokenizer())
    assert alpaca.rendered.text == ALPACA_WITH_INPUT.format(instruction="a", input="{output}", output="b") + "</s>"


def test_g10_a_strict_template_is_learned_up_to_its_plain_terminator_and_its_refusal_is_passed_on() -> None:
    tokenizer = byte_tokenizer(chat_template=STRICT)
    row = Row(chat("u:hi", "a:yo"), tokenizer)
    assert (len(row.ids), row.supervised, row.spans) == (73, 15, ["yo<end_of_turn>"])
    assert not row.template.terminator_is_token
    with pytest.raises(RowError, match="System role not supported"):
        Row(chat("s:Be brief.", "u:hi", "a:yo"), tokenizer)


def test_g11_tool_calls_are_rendered_as_objects_and_learned() -> None:
    call = {"type": "function", "function": {"name": "w", "arguments": '{"city": "Oslo"}'}}
    turns = [
        {"role": "user", "content": "w?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "7"},
        {"role": "assistant", "content": "7 C"},
    ]
    row = Row({"messages": turns}, byte_tokenizer(chat_template=TOOLS))
    assert row.spans == [
        '<tool_call>{"name": "w", "arguments": {"city": "Oslo"}}</tool_call><|im_end|>',
        "7 C<|im_end|>",
    ]
    assert "None" not in row.rendered.text
    assert "\\" not in row.rendered.text


def test_g12_thinking_that_the_template_drops_is_noted_and_the_labels_follow_the_text() -> None:
    turns = chat("u:1+1", "a:<think>\nadd\n</think>\n\n2", "u:2+2", "a:<think>\nsum\n</think>\n\n4")
    row = Row(turns, byte_tokenizer(chat_template=THINKING))
    assert row.supervised == 26
    assert row.spans == ["2<|im_end|>", "<think>\nsum\n</think>\n\n4<|im_end|>"]
    assert row.rendered.notes == ("dropped-by-template",)


def test_g14_a_token_across_the_prompts_end_is_split_so_that_the_prompt_is_that_of_inference() -> None:
    tokenizer = byte_tokenizer(merges=((":", " "), ("\n", "#")))
    row = Row({"prompt": "### Question: 2+2\n### Answer:", "completion": " 4"}, tokenizer)
    assert len(row.prompt_ids) == 27
    assert row.ids[:27] == row.prompt_ids
    assert row.spans == [" 4</s>"]
    assert row.supervised == 3


@pytest.mark.parametrize(
    ("template", "spans", "terminator"),
    [
        (GENERATION, ["a1<|im_end|>", "a2<|im_end|>"], "<|im_end|>"),
        (SPACED, ["a1 </s>", "a2 </s>"], " </s>"),
        (OPENING, ["a1<|im_end|>", "a2<|im_end|>"], "<|im_end|>"),
        (LATE, ["a1", "a2"], ""),
    ],
    ids=["generation marks", "spaces around answers", "opens every answer", "closes the turn before"],
)
def test_answers_are_located_in_templates_of_many_kinds(template: str, spans: list[str], terminator: str) -> None:
    row = Row(chat("u:q1", "a:a1", "u:q2", "a:a2"), byte_tokenizer(chat_template=template))
    assert row.spans == spans
    assert row.template.terminator == terminator


def test_a_template_that_leaves_answers_out_is_refused() -> None:
    parts = (
        "{% for m in messages %}{{ m['role'] }}:"
        "{% if m['content'] is not string %}{{ m['content'][0] }}{% endif %}</s>{% endfor %}"
    )
    with pytest.raises(RowError, match="cannot be located") as caught:
        Row(chat("u:q1", "a:a1"), byte_tokenizer(chat_template=parts))
    assert caught.value.code == "unverifiable-mask"


def trl_templates() -> list[Path]:
    """The chat templates in TRL's wheel that render a plain text conversation."""
    import trl

    found = sorted(Path(trl.__file__).parent.rglob("*.jinja"))
    pictures = ("llava", "idefics", "smolvlm")
    return [path for path in found if not path.name.startswith(pictures)]


@pytest.mark.parametrize("path", trl_templates(), ids=lambda path: path.stem)
def test_answers_are_located_in_every_family_s_template(path: Path) -> None:
    row = Row(chat("u:q1", "a:a1", "u:q2", "a:a2!"), byte_tokenizer(chat_template=path.read_text(encoding="utf-8")))
    learned = row.rendered.learned()
    assert len(learned) == 2
    for text, answer, question in zip(learned, ("a1", "a2!"), ("q1", "q2"), strict=True):
        assert text.count(answer) == 1
        assert question not in text
    stop = row.template.terminator
    assert learned[1].endswith("a2!" + stop)
    assert row.spans == list(learned)


def test_blanks_around_an_answer_are_learned_where_the_template_keeps_them() -> None:
    assert Row(chat("u:q", "a:  b \n"), CHAT).spans == ["  b \n<|im_end|>"]
    assert Row(chat("u:q", "a:  b \n"), byte_tokenizer(chat_template=OPENING)).spans == ["b<|im_end|>"]


def test_an_answer_that_quotes_the_question_or_another_answer_is_located_at_its_own_place() -> None:
    row = Row(chat("u:yo", "a:yo", "u:yo yo", "a:yo"), CHAT)
    assert row.spans == ["yo<|im_end|>", "yo<|im_end|>"]
    assert [index for index, label in enumerate(row.labels) if label != IGNORED] == [21, 22, 23, 49, 50, 51]


def test_a_control_token_in_a_message_is_refused_and_in_a_text_row_allowed() -> None:
    with pytest.raises(RowError, match=r"control token '<\|im_end\|>'") as caught:
        Row(chat("u:hi<|im_end|>", "a:yo"), CHAT)
    assert caught.value.field == "messages[0].content"
    with pytest.raises(RowError, match="control token"):
        Row({"instruction": "a", "output": "b</s>c"}, byte_tokenizer())
    assert Row({"text": "<|im_start|>a"}, CHAT).ids[0] == 259


def test_a_conversation_without_any_template_is_refused_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(TemplateError, match="no chat template") as caught:
        Row(chat("u:hi", "a:yo"), byte_tokenizer())
    assert ".jinja" in str(caught.value)
    (tmp_path / "own.jinja").write_text(CHATML)
    row = Row(chat("u:hi", "a:yo"), byte_tokenizer(), template=str(tmp_path / "own.jinja"))
    assert row.spans == ["yo<|im_end|>"]


@pytest.mark.parametrize(
    ("template", "error", "words"),
    [
        ("model", TemplateError, "no chat template"),
        ("chatml", ConfigError, "is no template"),
        ("missing.jinja", TemplateError, "missing.jinja"),
    ],
)
def test_a_template_that_is_none_is_refused(template: str, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        load_template(byte_tokenizer(), template=template)


def test_pairs_go_through_the_chat_template_when_it_is_asked_for() -> None:
    pair = {"prompt": "hi", "completion": "yo"}
    assert Row(pair, CHAT).rendered.text == "hiyo</s>"
    assert Row(pair, CHAT, template="model").ids == Row(chat("u:hi", "a:yo"), CHAT).ids


def test_a_tokenizer_without_offsets_is_refused() -> None:
    class Slow:
        is_fast = False

    with pytest.raises(Exception, match="no character offsets"):
        tokenize([Rendered("a", ((0, 1),))], tokenizer=Slow())


def test_tokens_of_many_bytes_and_scripts_keep_exact_labels() -> None:
    row = Row(chat("u:naïve 日本", "a:😀 é"), CHAT)
    assert row.spans == ["😀 é<|im_end|>"]
    assert row.supervised == len("😀 é".encode()) + 1


def test_g16_rows_over_the_limit_are_dropped_or_cut_without_a_stop_token() -> None:
    row = Row(chat("u:q", "a:" + "z" * 100), CHAT)
    tokens = Tokenized(row.ids, row.labels)
    assert len(row.ids) == 122
    assert fit(tokens, max_length=64, overlong="drop") is None
    cut = fit(tokens, max_length=64, overlong="truncate")
    assert cut is not None
    assert cut.input_ids == row.ids[:64]
    assert cut.labels[-1] == ord("z")
    assert not {257, 260} & set(cut.labels)
    assert fit(tokens, max_length=16, overlong="truncate") is None
    assert fit(tokens, max_length=122, overlong="drop") == tokens


def test_cutting_at_a_turn_ends_behind_the_last_answer_that_fits() -> None:
    row = Row(chat("u:q1", "a:a1", "u:q2", "a:" + "z" * 50), CHAT)
    cut = fit(Tokenized(row.ids, row.labels), max_length=60, overlong="cut_at_turn")
    assert cut is not None
    assert CHAT.decode(cut.input_ids).endswith("a1<|im_end|>")
    assert cut.labels[-1] == 260
