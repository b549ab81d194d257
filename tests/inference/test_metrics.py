"""Metrics of answers: what counts as right is what their sources say."""

import re
from functools import partial
from typing import Any

import numpy as np
import pytest

from truetune.errors import ConfigError
from truetune.inference.metrics import (
    Expected,
    Metric,
    choose_metrics,
    exact_match,
    json_f1,
    json_valid,
    last_number,
    named_metrics,
    normalized,
    normalized_match,
    number_match,
    regex_match,
    tool_calls,
)
from truetune.inference.tool_calls import Call, calls_in


def score(metric: Any, answer: str, expected: str) -> Any:
    return metric(answer, Expected(expected))


def figure(name: str, answers: list[str], expected: list[str]) -> float:
    (metric,) = named_metrics([name])
    return metric.figure(metric.statistics(answers, [Expected(each) for each in expected]).sum(0))


@pytest.mark.parametrize(
    ("answer", "expected", "exact", "normal"),
    [
        ("Paris", "Paris", 1, 1),
        (" Paris\n", "Paris", 1, 1),
        ("paris.", "Paris", 0, 1),
        ("The  Eiffel Tower!", "Eiffel tower", 0, 1),
        ("¿Qué? «Sí»", "qué sí", 0, 1),
        ("東京。", "東京", 0, 1),
        ("Theatre", "atre", 0, 0),
        ("Lyon", "Paris", 0, 0),
        ("", "", 1, 1),
    ],
)
def test_text_matches_to_the_character_or_in_squad_s_normal_form(
    answer: str, expected: str, exact: int, normal: int
) -> None:
    assert score(exact_match, answer, expected) == exact
    assert score(normalized_match, answer, expected) == normal


def test_articles_go_as_words_only() -> None:
    assert normalized("An answer: the a, and a theme") == "answer and theme"


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("so 3 + 4 = 7", "7"),
        ("Natalia sold 48/2 = 24.\n#### 72", "72"),
        ("#### 72 (that is 6 dozen)", "72"),
        ("it costs $1,234.50.", "1234.50"),
        ("-5", "-5"),
        ("between 2-3", "3"),
        ("below .5", "0.5"),
        ("no number", None),
        ("####", None),
    ],
)
def test_the_number_of_an_answer_is_the_last_or_behind_the_mark(text: str, number: str | None) -> None:
    found = last_number(text)
    assert (None if found is None else str(found)) == number


@pytest.mark.parametrize(
    ("answer", "expected", "right"),
    [
        ("The answer is 1,200", "1200.0", 1),
        ("72", "reasoning 48 + 24\n#### 72", 1),
        ("71", "#### 72", 0),
        ("none", "72", 0),
        ("12", "twelve", None),
    ],
)
def test_numbers_match_by_value(answer: str, expected: str, right: int | None) -> None:
    assert score(number_match, answer, expected) == right


@pytest.mark.parametrize(
    ("answer", "valid"),
    [('{"a": 1}', 1), ("[1, 2]", 1), ("7", 1), ('{"a": 1', 0), ('```json\n{"a": 1}\n```', 0), ("NaN", 0), ("", 0)],
)
def test_json_is_valid_as_a_whole_and_by_the_standard(answer: str, valid: int) -> None:
    assert score(json_valid, answer, "{}") == valid


@pytest.mark.parametrize(
    ("answer", "expected", "f1"),
    [
        ('{"b": 2, "a": 1}', '{"a": 1, "b": 2}', 1.0),
        ('{"a": 1.0}', '{"a": 1}', 1.0),
        ('{"a": true}', '{"a": 1}', 0.0),
        ('{"a": "1"}', '{"a": 1}', 0.0),
        ('{"a": 1}', '{"a": 1, "b": 2}', 2 / 3),
        ('{"a": 1, "b": 2, "c": 3}', '{"a": 1}', 0.5),
        ('{"a": {"b": [1, 2]}}', '{"a": {"b": [1, 3]}}', 0.5),
        ("{}", "{}", 1.0),
        ("not json", '{"a": 1}', 0.0),
        ('{"a": 1}', "not json", None),
    ],
)
def test_json_fields_are_held_against_path_and_value(answer: str, expected: str, f1: float | None) -> None:
    assert score(json_f1, answer, expected) == (None if f1 is None else pytest.approx(f1))


def test_a_pattern_without_a_group_has_to_be_there_and_a_group_has_to_find_the_same() -> None:
    bare, group = (partial(regex_match, pattern=re.compile(each)) for each in (r"\d{4}-\d\d", r"id: (\w+)"))
    assert score(bare, "on 2024-05", "x") == 1
    assert score(bare, "in May", "2024-05") == 0
    assert score(group, "the id: ab1!", "id: ab1") == 1
    assert score(group, "the id: ab2", "id: ab1") == 0
    assert score(group, "none", "id: ab1") == 0
    assert score(group, "id: ab1", "none") is None


WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string"},
                "days": {"type": "integer", "default": 1},
                "unit": {"type": "string"},
            },
            "required": ["city"],
        },
    },
}


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ('<tool_call>\n{"name": "weather", "arguments": {"city": "Rome", "days": 1}}\n</tool_call>', 1),
        ('{"name": "weather", "parameters": {"city": "Rome", "days": 1}}', 1),
        ('[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Rome", "days": 1}}]', 1),
        ('{"name": "weather", "arguments": "{\\"city\\": \\"Rome\\", \\"days\\": 1}"}', 1),
        ('{"name": "weather", "arguments": {"city": "ROME", "days": 1.0}}', 1),
        ('{"name": "weather", "arguments": {"city": "Rome"}}', 1),
        ('{"name": "weather", "arguments": {"days": 1}}', 0),
        ('{"name": "weather", "arguments": {"city": "Rome", "days": "1"}}', 0),
        ('{"name": "weather", "arguments": {"city": "Rome", "days": true}}', 0),
        ('{"name": "weather", "arguments": {"city": "Rome", "days": 1, "unit": "C"}}', 0),
        ('{"name": "forecast", "arguments": {"city": "Rome", "days": 1}}', 0),
        ('{"name": "weather", "arguments": {"city": "Rome", "days": 1}} {"name": "weather", "arguments": {}}', 0),
        ("It is sunny.", 0),
        ('{"name": "weather"', 0),
    ],
)
def test_a_call_matches_by_name_required_arguments_and_typed_values(answer: str, right: int) -> None:
    expected = Expected("", (Call("weather", {"city": "Rome", "days": 1}),), (WEATHER,))
    assert tool_calls(answer, expected) == right


def test_an_argument_without_a_default_has_to_be_there() -> None:
    expected = Expected("", (Call("weather", {"city": "Rome", "unit": "C"}),), (WEATHER,))
    assert tool_calls('{"name": "weather", "arguments": {"city": "Rome"}}', expected) == 0
    assert tool_calls("anything", Expected("a text")) is None


def test_where_tools_are_offered_and_none_fits_right_is_to_call_none() -> None:
    expected = Expected("I have no tool for that.", (), (WEATHER,))
    assert tool_calls("Sorry, I cannot book flights.", expected) == 1
    assert tool_calls('{"name": "weather", "arguments": {"city": "Rome"}}', expected) == 0


@pytest.mark.parametrize("name", ["exact_match", "normalized_match", "rouge_l", "bleu"])
def test_a_row_that_expects_a_call_is_not_held_against_its_empty_text(name: str) -> None:
    (metric,) = named_metrics([name])
    expected = [Expected("the parcel is here"), Expected("", (Call("f", {}),))]
    answers = ["the parcel is here", '{"name": "f", "arguments": {}}']
    found = metric.statistics(answers, expected)
    assert metric.figure(found.sum(0)) == pytest.approx(metric.figure(found[0]))
    assert metric.row_scores(found)[1] is None


def test_parallel_calls_match_in_any_order_and_each_once() -> None:
    one, two = Call("f", {"x": [1, {"y": None}]}), Call("f", {"x": [2]})
    found = '{"name": "f", "arguments": {"x": [2]}}\n{"name": "f", "arguments": {"x": [1, {"y": null}]}}'
    assert tool_calls(found, Expected("", (one, two))) == 1
    assert tool_calls(found, Expected("", (two, two))) == 0
    assert [call.name for call in calls_in(found)] == ["f", "f"]


def test_rouge_l_is_that_of_rouge_score_and_knows_all_scripts() -> None:
    from rouge_score.rouge_scorer import RougeScorer

    answer, expected = "the cat sat on the mat", "a cat was on the mat today"
    theirs = RougeScorer(["rougeL"]).score(expected, answer)["rougeL"].fmeasure
    assert figure("rouge_l", [answer], [expected]) == pytest.approx(theirs)
    assert figure("rouge_l", ["он пришёл домой"], ["он пришёл домой"]) == 1.0
    assert figure("rouge_l", [""], ["words"]) == 0.0


def test_bleu_is_sacrebleu_s_of_the_corpus_and_not_a_mean_of_rows() -> None:
    from sacrebleu.metrics import BLEU

    answers = ["the cat is on the mat", "there is a dog in the garden today", "x"]
    expected = ["the cat sat on the mat", "a dog is in the garden today", "a longer text than that"]
    assert figure("bleu", answers, expected) == pytest.approx(BLEU().corpus_score(answers, [expected]).score)


def test_rows_of_which_a_metric_says_nothing_count_for_nothing() -> None:
    assert figure("number_match", ["1", "2", "x"], ["1", "3", "none"]) == 0.5
    assert np.isnan(figure("number_match", ["1"], ["none"]))


@pytest.mark.parametrize(
    ("expected", "names"),
    [
        (['{"a": 1}', "[2]"], ("json", "exact_match")),
        (["#### 7", "12", "$1,000"], ("number_match", "exact_match")),
        (["yes", "the red one"], ("exact_match", "normalized_match")),
        (["a longer answer of many words that nobody repeats"] * 2, ("rouge_l", "normalized_match")),
        (['{"a": 1}', "yes"], ("exact_match", "normalized_match")),
        ([], ("exact_match", "normalized_match")),
    ],
)
def test_auto_goes_by_what_the_rows_expect(expected: list[str], names: tuple[str, ...]) -> None:
    choice = choose_metrics([Expected(each) for each in expected])
    assert choice.names == names
    assert choice.reason


def test_auto_takes_tool_calls_where_every_row_calls() -> None:
    assert choose_metrics([Expected("", (Call("f", {}),))]).names == ("tool_calls",)


def test_auto_adds_what_fits_the_words_where_only_some_rows_call() -> None:
    choice = choose_metrics([Expected("", (Call("f", {}),)), Expected("You are welcome.")])
    assert choice.names == ("tool_calls", "exact_match", "normalized_match")
    assert choice.reason.startswith("1 of 2 expected answers call tools; of the others: ")


def test_json_brings_its_fields_and_no_name_comes_twice() -> None:
    found: list[Metric] = named_metrics(["json", "json_f1", "exact_match", "json"])
    assert [metric.name for metric in found] == ["json", "json_f1", "exact_match"]


def test_a_wrong_name_and_a_wrong_pattern_are_told() -> None:
    with pytest.raises(ConfigError, match="no metric accuracy"):
        named_metrics(["accuracy"])
    with pytest.raises(ConfigError, match="needs a pattern"):
        named_metrics(["regex"])
    with pytest.raises(ConfigError, match=r"--regex \("):
        named_metrics(["regex"], pattern="(")
