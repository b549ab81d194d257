"""Problem reports from other trainers, each from its file to its labels: what went wrong there is right here."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from conftest import CHATML, CHATML_BOS, STRICT, THINKING, TOOLS, byte_tokenizer
from traced import call, chat, noted, parsed
from truetune.data.examples import IGNORED, Tokenized
from truetune.data.formats import parse_example
from truetune.data.read import read_records
from truetune.data.render import examples_per_turn, render, render_prompt
from truetune.data.rules import RowError
from truetune.data.templates import load_template
from truetune.data.tokenize import fit, tokenize
from truetune.errors import DataError, TemplateError

TK = byte_tokenizer()
CHAT = byte_tokenizer(chat_template=CHATML)
C1 = chat("u:hi", "a:yo")
LONG = chat("u:" + "x" * 100, "a:yo")


@dataclass
class Prepared:
    """What a file becomes: tokens, prompts and notes of the usable rows; line, code and message of the others."""

    tokenizer: Any
    tokens: list[Tokenized]
    prompts: list[str]
    texts: list[str]
    notes: list[tuple[str, ...]]
    rejected: list[tuple[int, str, str]]

    @property
    def counts(self) -> list[tuple[int, int]]:
        return [(len(row.input_ids), row.supervised) for row in self.tokens]

    @property
    def learned(self) -> list[str]:
        """All that each row learns, decoded."""
        return [self.tokenizer.decode([t for t in row.labels if t != IGNORED]) for row in self.tokens]

    @property
    def prompt_ids(self) -> list[list[int]]:
        return [self.tokenizer(prompt, add_special_tokens=False)["input_ids"] for prompt in self.prompts]


def prepared(path: Path, tokenizer: Any, **options: Any) -> Prepared:
    template = load_template(tokenizer, **options)
    result = Prepared(tokenizer, [], [], [], [], [])
    for record in read_records(path):
        try:
            example = parse_example(record)
            rendered = render(example, template=template)
            (tokens,) = tokenize([rendered], template=template)
            if isinstance(tokens, RowError):
                raise tokens
        except RowError as error:
            result.rejected.append((record.where.line, error.rule, f"{error.field}: {error.message}"))
            continue
        result.tokens.append(tokens)
        result.prompts.append(render_prompt(example, template=template).text)
        result.texts.append(rendered.text)
        result.notes.append(noted(rendered))
    return result


class Files:
    """Writes a file of rows, or of any text, and prepares it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(
        self, rows: list[Any] | str | bytes, tokenizer: Any, name: str = "a.jsonl", **options: Any
    ) -> Prepared:
        lines = "\n".join(map(json.dumps, rows)) if isinstance(rows, list) else rows
        path = self.folder / name
        path.write_bytes(lines if isinstance(lines, bytes) else lines.encode())
        return prepared(path, tokenizer, **options)


@pytest.fixture
def of(tmp_path: Path) -> Files:
    return Files(tmp_path)


# --- data -------------------------------------------------------------------------------------------------


def test_g01_answers_are_what_the_file_says(of: Files) -> None:
    a = of('{"instruction":"code","output":"007"}\n{"instruction":"next","output":7}', TK)
    assert a.learned == ["007</s>", "7</s>"]
    assert a.notes == [(), ("number-as-text",)]
    b = of('{"instruction":"w","output":"2024-01-01"}\n{"instruction":"v","output":"2024-01-02T00:00:00"}', TK)
    assert b.learned == ["2024-01-01</s>", "2024-01-02T00:00:00</s>"]
    e = of("prompt,response\nzip,01234\nflag,True\n".replace("prompt", "instruction"), TK, "a.csv")
    assert e.learned == ["01234</s>", "True</s>"]


@pytest.mark.parametrize("nulls", [False, True])
def test_g01_arguments_of_one_row_do_not_change_those_of_another(of: Files, nulls: bool) -> None:
    user = {"role": "user", "content": "z?", **({"tool_calls": None} if nulls else {})}
    rows = [{"messages": [user, call("w", {"zip": code})]} for code in ("01234", 5)]
    texts = of(rows, byte_tokenizer(chat_template=TOOLS)).texts
    assert '"zip": "01234"}' in texts[0]
    assert '"zip": 5}' in texts[1]


def test_g01_metadata_reaches_no_prompt_and_an_object_is_refused_by_its_line(of: Files) -> None:
    row = '{"instruction":"x","output":"y","id":%s}'
    d = of("\n".join(row % number for number in ("12345678901234567890123", "9007199254740993")), TK)
    assert len(d.tokens) == 2
    assert "9007199254740993" not in d.texts[1]
    f = of(
        '{"instruction":"x","output":"y"}\n{"instruction":"x","output":{"a":1}}\n{"instruction":"x","output":["a"]}',
        TK,
    )
    assert f.learned == ["y</s>"]
    assert [(line, message) for line, _, message in f.rejected] == [
        (2, "output: output must be text, found an object"),
        (3, "output: output must be text, found a list"),
    ]


def test_g02_null_blank_and_absent_inputs_give_one_prompt_and_blank_answers_are_rejected(of: Files) -> None:
    add = {"instruction": "Add", "output": "3"}
    lines = [{**add, "input": None}, {**add, "input": ""}, add, {**add, "input": "1 2", "output": None}]
    result = of([*lines, {**add, "output": "   "}], TK)
    assert len(set(result.prompts)) == 1
    assert [len(prompt.encode()) for prompt in result.prompts] == [143] * 3
    assert not any(word in result.prompts[0] for word in ("None", "nan", "null"))
    assert [(line, message) for line, _, message in result.rejected] == [
        (4, "output: output is null"),
        (5, "output: output is empty"),
    ]


def test_g02_words_for_nothing_are_answers(of: Files) -> None:
    table = of("instruction,input,output\nSpell zero in C,,null\nNot available?,,NA\nAdd,,3\n", TK, "a.csv")
    assert table.learned == ["null</s>", "NA</s>", "3</s>"]
    assert len(table.prompts[2].encode()) == 143


def test_g03_a_windows_editor_changes_nothing_and_a_broken_line_stops_by_its_number(of: Files) -> None:
    rows = '{"instruction":"é","output":"1"}\r\n\r\n{"instruction":"b","output":"2"}\r\n\r\n  '
    plain = of(rows.replace("\r", ""), TK)
    for content in (b"\xef\xbb\xbf" + rows.encode(), rows.encode("utf-16")):
        assert of(content, TK) == plain
    assert "é" in plain.texts[0]
    good = '{"instruction":"a","output":"1"}'
    with pytest.raises(DataError, match=r"a\.jsonl, line 3"):
        of(f'{good}\n\n{{"instruction":"c","output":"3"\n{good}', TK)


def test_g04_four_spellings_of_a_talk_are_one_and_bad_ones_say_what_is_wrong(of: Files) -> None:
    spelled = [
        C1,
        {"messages": json.dumps(C1["messages"])},
        {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yo"}]},
        {"conversations": [{"from": "user", "value": "hi"}, {"from": "assistant", "value": "yo"}]},
    ]
    bad = [
        {"messages": "hello"},
        {"messages": '{"role": "user"}'},
        {"messages": [{"role": "narrator", "content": "x"}]},
    ]
    result = of([*spelled, *bad], CHAT)
    assert result.counts == [(25, 3)] * 4
    assert all(row == result.tokens[0] for row in result.tokens)
    assert [line for line, _, _ in result.rejected] == [5, 6, 7]
    assert all("messages" in message for _, _, message in result.rejected)
    for (_, _, message), words in zip(result.rejected, (["list"], ["list"], ["narrator", "assistant"]), strict=True):
        assert all(word in message for word in words)


def test_g04_a_function_call_turn_is_supervised_and_its_result_is_not(of: Files) -> None:
    turns = [("human", "w?"), ("function_call", "w()"), ("observation", "7"), ("gpt", "7 C")]
    result = of([{"conversations": [{"from": role, "value": text} for role, text in turns]}], CHAT)
    assert result.learned == ["w()<|im_end|>7 C<|im_end|>"]


def test_g05_any_order_is_learned_and_rows_without_an_answer_are_rejected(of: Files) -> None:
    rows = [
        chat("a:Hello", "u:q", "a:a"),
        chat("u:a", "u:b", "a:c"),
        chat("u:a", "a:b", "u:thanks"),
        chat("s:s"),
        chat("u:u"),
    ]
    result = of(rows, CHAT)
    assert result.counts[:2] == [(41, 8), (32, 2)]
    assert result.learned == ["Hello<|im_end|>a<|im_end|>", "c<|im_end|>", "b<|im_end|>"]
    assert [(line, code) for line, code, _ in result.rejected] == [(4, "no-answer"), (5, "no-answer")]
    assert all("no assistant" in message for _, _, message in result.rejected)


def test_g06_the_input_reaches_the_prompt_or_is_named(of: Files) -> None:
    rows = [{"instruction": "Sum the numbers", "input": text, "output": "6"} for text in ("1 2 3", "3 2 1")]
    for options in ({}, {"template": "alpaca"}):
        result = of(rows, CHAT, **options)
        assert "1 2 3" in result.prompts[0]
        assert result.prompt_ids[0] != result.prompt_ids[1]
    own = of([{**rows[0], "system": "s", "history": [["a", "b"]]}], CHAT, template="{instruction}: {output}")
    assert set(own.notes[0]) == {"not-rendered:input", "not-rendered:system", "not-rendered:history"}


# --- format -----------------------------------------------------------------------------------------------


def test_g07_one_bos_and_the_prompt_of_inference(of: Files) -> None:
    talk = of([C1], byte_tokenizer(chat_template=CHATML_BOS, adds_bos=True))
    assert talk.counts == [(26, 3)]
    assert (talk.tokens[0].input_ids.count(256), talk.tokens[0].input_ids[0]) == (1, 256)
    assert talk.prompt_ids[0] == talk.tokens[0].input_ids[:22]
    texts = of([{"text": "<s>[INST] Q [/INST] A</s>"}, {"text": "[INST] Q [/INST] A"}], byte_tokenizer(adds_bos=True))
    assert texts.tokens[0] == texts.tokens[1]
    assert texts.tokens[0].input_ids == [256, *b"[INST] Q [/INST] A", 257]
    assert 256 not in of([C1], CHAT).tokens[0].input_ids


def test_g08_each_row_learns_one_eos_and_a_tokenizer_without_one_is_refused(of: Files) -> None:
    rows = [
        {"instruction": "n", "output": "3"},
        {"instruction": "n", "output": "twelve"},
        {"text": "A"},
        {"text": "A</s>"},
    ]
    result = of(rows, byte_tokenizer(pad_token="</s>"))
    assert [row.labels.count(257) for row in result.tokens] == [1, 1, 1, 1]
    assert [row.labels[-1] for row in result.tokens] == [257] * 4
    lacking = byte_tokenizer(chat_template=CHATML, eos_token=None)
    for row in ({"text": "A"}, {"prompt": "a", "completion": "b"}):
        with pytest.raises(TemplateError, match="eos"):
            of([row], lacking)
    assert of([C1], lacking).counts == [(25, 3)]


def test_g09_the_terminator_is_the_template_s_and_is_learned(of: Files) -> None:
    result = of([C1, chat("u:q1", "a:a1", "u:q2", "a:a2!")], CHAT)
    assert result.counts == [(25, 3), (51, 7)]
    first, second = result.tokens
    assert [index for index, label in enumerate(first.labels) if label == 260] == [23]
    assert [index for index, token in enumerate(first.input_ids) if token == 260] == [8, 23]
    assert second.labels.count(260) == 2
    assert load_template(CHAT).terminator == "<|im_end|>"


def test_g10_what_a_template_refuses_is_folded_or_merged_in_training_as_at_inference(of: Files) -> None:
    tokenizer = byte_tokenizer(chat_template=STRICT)
    rows = [C1, chat("s:Be brief.", "u:hi", "a:yo"), chat("u:hi", "u:hi", "a:yo"), chat("a:yo", "u:hi", "a:yo")]
    result = of(rows, tokenizer)
    assert result.counts[0] == (73, 15)
    asked, said = "<start_of_turn>user\n", "<end_of_turn>\n<start_of_turn>model\nyo<end_of_turn>\n"
    assert result.texts[1:] == [f"{asked}Be brief.\n\nhi{said}", f"{asked}hi\n\nhi{said}"]
    assert result.notes == [(), ("system-folded",), ("turns-merged",)]
    for text, prompt in zip(result.texts, result.prompts, strict=True):
        assert text.startswith(prompt)
        assert prompt.endswith("<start_of_turn>model\n")
    ((line, _, words),) = result.rejected
    assert line == 4
    assert "Roles must alternate user/assistant" in words
    kept = of(rows[1:3], CHAT)
    assert [text.count("<|im_start|>") for text in kept.texts] == [3, 3]
    assert kept.notes == [(), ()]
    off = of(rows[1:3], tokenizer, adapts_roles=False)
    assert [line for line, _, _ in off.rejected] == [1, 2]
    assert "System role not supported" in off.rejected[0][2]


def test_g11_calls_are_objects_learned_and_broken_arguments_are_rejected(of: Files) -> None:
    def row(arguments: Any) -> dict[str, Any]:
        turns = [{"role": "user", "content": "w?"}, call("w", arguments)]
        return {"messages": [*turns, {"role": "tool", "content": "7"}, {"role": "assistant", "content": "7 C"}]}

    rows = [row('{"city": "Oslo"}'), row({"city": "Oslo"}), row({"unit": "C"}), row('{"city": ')]
    result = of(rows, byte_tokenizer(chat_template=TOOLS))
    assert result.tokens[0] == result.tokens[1]
    assert '"arguments": {"city": "Oslo"}' in result.texts[0]
    assert not any(word in text for text in result.texts for word in ("\\", "None", "null"))
    written = '<tool_call>{"name": "w", "arguments": {"unit": "C"}}</tool_call>'
    assert result.learned[2] == f"{written}<|im_end|>7 C<|im_end|>"
    ((line, _, message),) = result.rejected
    assert (line, "arguments" in message) == (4, True)


def test_g12_lost_thinking_is_noted_and_the_labels_follow_the_text(of: Files) -> None:
    turns = chat("u:1+1", "a:<think>\nadd\n</think>\n\n2", "u:2+2", "a:<think>\nsum\n</think>\n\n4")
    as_data = of([turns], CHAT)
    assert (as_data.counts, as_data.notes) == ([(94, 48)], [()])
    result = of([turns], byte_tokenizer(chat_template=THINKING))
    assert result.counts[0][1] == 26
    assert result.learned == ["2<|im_end|><think>\nsum\n</think>\n\n4<|im_end|>"]
    assert result.notes == [("removed-by-template",)]


def test_g12_a_row_of_each_turn_keeps_its_thinking() -> None:
    talk = chat("u:1+1", "a:<think>\nadd\n</think>\n\n2", "u:2+2", "a:<think>\nsum\n</think>\n\n4")
    template = load_template(byte_tokenizer(chat_template=THINKING))
    rows = [render(each, template=template) for each in examples_per_turn(parsed(talk))]
    tokens = tokenize(rows, template=template)
    assert [row.supervised for row in tokens if isinstance(row, Tokenized)] == [24, 24]
    assert [row.learned() for row in rows] == [
        ("<think>\nadd\n</think>\n\n2<|im_end|>",),
        ("<think>\nsum\n</think>\n\n4<|im_end|>",),
    ]


# --- mask and length --------------------------------------------------------------------------------------


def test_g13_a_row_whose_answer_does_not_fit_is_left_out_and_the_others_stay(of: Files) -> None:
    result = of([C1, C1, LONG], CHAT)
    assert result.counts == [(25, 3), (25, 3), (123, 3)]
    for overlong in ("drop", "truncate", "cut_at_turn"):
        kept = [fit(row, max_length=32, overlong=overlong) for row in result.tokens]  # type: ignore[arg-type]
        assert kept == [result.tokens[0], result.tokens[1], None]


def test_g14_the_mask_comes_from_places_and_not_from_searched_tokens(of: Files) -> None:
    merging = byte_tokenizer(merges=((":", " "), ("\n", "#")))
    result = of([{"prompt": "### Question: 2+2\n### Answer:", "completion": " 4"}], merging)
    assert len(result.prompt_ids[0]) == 27
    assert result.tokens[0].input_ids[:27] == result.prompt_ids[0]
    assert (result.learned, result.tokens[0].supervised) == ([" 4</s>"], 3)
    assert of([C1], CHAT).counts == [(25, 3)]


def test_g14_a_marker_shows_where_the_answer_of_a_text_begins_and_a_text_without_it_is_left_out(of: Files) -> None:
    tokenizer = byte_tokenizer(merges=((":", " "), ("\n", "#")))
    rows = [{"text": "### Question: 2+2\n### Answer: 4"}, {"text": "### Question: 1+1"}]
    result = of(rows, tokenizer, response_marker="### Answer:")
    assert result.learned == [" 4</s>"]
    assert result.counts[0][1] == 3
    ((line, code, _),) = result.rejected
    assert (line, code) == (2, "no-marker")


def test_g15_all_answers_the_last_or_everything(of: Files) -> None:
    turns = chat("u:q1", "a:a1", "u:q2", "a:a2!")
    assert of([turns], CHAT).learned == ["a1<|im_end|>a2!<|im_end|>"]
    assert of([turns], CHAT).counts == [(51, 7)]
    assert of([turns], CHAT, train_on="last_turn").counts == [(51, 4)]
    assert of([turns], CHAT, train_on="last_turn").learned == ["a2!<|im_end|>"]
    assert of([turns], CHAT, train_on="all").counts == [(51, 50)]


def test_g16_the_limit_is_the_one_set_and_a_cut_answer_gets_no_stop(of: Files) -> None:
    (whole,) = of([chat("u:q", "a:" + "z" * 1_500)], CHAT).tokens
    kept = fit(whole, max_length=2_048, overlong="drop")
    assert kept is not None
    assert (len(kept.input_ids), kept.supervised) == (1_522, 1_501)
    rows = of([C1, LONG, chat("u:q", "a:" + "z" * 100)], CHAT).tokens
    assert [len(row.input_ids) for row in rows] == [25, 123, 122]
    assert [fit(row, max_length=64, overlong="drop") for row in rows] == [rows[0], None, None]
    cut = fit(rows[2], max_length=64, overlong="truncate")
    assert cut is not None
    assert cut.input_ids == rows[2].input_ids[:64]
    assert cut.labels[-1] == ord("z")
    assert not {257, 260} & set(cut.labels)
