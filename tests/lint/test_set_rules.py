"""Rules that only all rows together show: each with rows that trip it, and with others that only seem to."""

from pathlib import Path
from typing import Any

import pytest

import truetune
from conftest import arithmetic_rows, write_jsonl
from truetune.data.rules import Report

Row = dict[str, Any]

HARBOUR = "The harbour lies between two hills, and in the morning the boats bring in fish for the market in town"
"""A text of twenty words, eighteen triples."""

TOWNS = ("Bergen", "Lima", "Rome", "Perth", "Oslo", "Kyoto", "Cork", "Basel", "Quito", "Hanoi")
FACTS = ("old port", "warm rain", "steep lanes", "quiet square", "wide river", "stone bridge")

ENGLISH = [
    {
        "instruction": f"What would you tell a visitor about the {fact} of {town}?",
        "output": f"The {fact} is what most people in {town} like best about the place where they live.",
    }
    for town in TOWNS
    for fact in FACTS
]
GERMAN = {
    "instruction": "Was würdest du einem Besucher über den alten Hafen von Hamburg erzählen?",
    "output": "Der alte Hafen ist das, was die meisten Leute in Hamburg an ihrer Stadt am liebsten mögen.",
}


def check(folder: Path, rows: list[Row], held_out: list[Row] | None = None, **settings: Any) -> Report:
    data = write_jsonl(folder / "rows.jsonl", rows)
    if held_out is not None:
        settings["data.validation_path"] = str(write_jsonl(folder / "held-out.jsonl", held_out))
    return truetune.check(data, **settings)


def places(report: Report, rule: str) -> list[tuple[str, int]]:
    """File and line of each finding of the rule."""
    return [(Path(each.where.path).name, each.where.line) for each in report.problems if each.rule == rule]


def lines(report: Report, rule: str) -> list[int]:
    return [line for _, line in places(report, rule)]


def related(report: Report, rule: str) -> list[list[int]]:
    """The lines that each finding of the rule refers to."""
    return [[place.line for place in each.related] for each in report.problems if each.rule == rule]


def answered(answers: list[str], prompt: str = "Is {} a town by the sea?") -> list[Row]:
    """Different questions with these answers."""
    return [{"instruction": prompt.format(number), "output": answer} for number, answer in enumerate(answers)]


def asked(*answers: str) -> list[Row]:
    """One question with these answers."""
    return [{"instruction": "Is 91 a prime number?", "output": answer} for answer in answers]


# --- equal rows, and nearly equal ones --------------------------------------------------------------------


def test_each_later_row_that_equals_one_is_found_with_the_first_of_them(tmp_path: Path) -> None:
    rows = arithmetic_rows(4)
    report = check(tmp_path, [*rows, rows[2], rows[0], rows[2]])
    assert lines(report, "duplicate-rows") == [5, 6, 7]
    assert related(report, "duplicate-rows") == [[3], [1], [3]]


def test_the_same_row_in_another_format_field_or_case_is_no_equal_one(tmp_path: Path) -> None:
    rows = [
        {"instruction": "Name a fruit.", "output": "Plum"},
        {"instruction": "Name a fruit.", "output": "plum"},
        {"instruction": "Name a fruit.", "input": "Plum", "output": "Plum"},
        {"system": "Name a fruit.", "instruction": "Plum", "output": "Plum"},
    ]
    assert lines(check(tmp_path, rows), "duplicate-rows") == []


def test_rows_that_differ_in_their_tool_calls_alone_are_no_equal_ones(tmp_path: Path) -> None:
    def calling(town: str) -> Row:
        call = {"type": "function", "function": {"name": "weather", "arguments": {"town": town}}}
        return {
            "messages": [
                {"role": "user", "content": "And there?"},
                {"role": "assistant", "content": "", "tool_calls": [call]},
            ]
        }

    report = check(tmp_path, [calling("Oslo"), calling("Rome"), calling("Oslo")])
    assert lines(report, "duplicate-rows") == [3]


def test_a_row_of_nearly_the_same_words_is_found_with_the_one_that_it_resembles(tmp_path: Path) -> None:
    report = check(tmp_path, [*arithmetic_rows(3), {"text": f"{HARBOUR}."}, {"text": f"{HARBOUR} today!"}])
    assert lines(report, "near-duplicates") == [5]
    assert related(report, "near-duplicates") == [[4]]


def test_rows_that_differ_in_case_and_punctuation_alone_say_the_same_word_for_word(tmp_path: Path) -> None:
    report = check(tmp_path, [{"text": HARBOUR}, {"text": f"{HARBOUR.upper()}!"}])
    (found,) = [each for each in report.problems if each.rule == "near-duplicates"]
    assert "word for word" in found.message


@pytest.mark.parametrize(
    "other",
    [
        HARBOUR.replace("boats", "ships").replace("hills", "lakes"),
        "In town the market has fish that boats bring in, in the morning, for the harbour lies between two hills",
        HARBOUR.partition(",")[0],
    ],
)
def test_rows_of_the_same_words_in_part_or_in_another_order_are_no_near_duplicates(
    tmp_path: Path, other: str
) -> None:
    assert lines(check(tmp_path, [{"text": HARBOUR}, {"text": other}]), "near-duplicates") == []


def test_four_fifths_of_the_triples_are_near_and_less_is_not(tmp_path: Path) -> None:
    def of(words: int, *more: str) -> Row:
        return {"text": " ".join([f"w{number}" for number in range(words)] + [*more])}

    assert lines(check(tmp_path, [of(10), of(10, "x", "y")]), "near-duplicates") == [2]  # 8 of 10 triples.
    assert lines(check(tmp_path, [of(9), of(9, "x", "y")]), "near-duplicates") == []  # 7 of 9.


def test_sums_that_differ_in_their_numbers_are_no_near_duplicates(tmp_path: Path) -> None:
    assert lines(check(tmp_path, arithmetic_rows(60)), "near-duplicates") == []


def test_a_system_text_that_all_rows_share_makes_no_near_duplicates(tmp_path: Path) -> None:
    shared = f"{HARBOUR}, and {' '.join(reversed(HARBOUR.split()))}"
    rows = [{"system": shared, **row} for row in arithmetic_rows(12)]
    assert lines(check(tmp_path, rows), "near-duplicates") == []


def test_equal_rows_are_not_told_of_as_near_ones_as_well(tmp_path: Path) -> None:
    report = check(tmp_path, [{"text": HARBOUR}, {"text": HARBOUR}])
    assert (lines(report, "duplicate-rows"), lines(report, "near-duplicates")) == ([2], [])


# --- contradictions ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Yes", "No"),
        ("Yes, since nothing divides it.", "No: it is 7 times 13, as everybody sees who tries."),
        ("It is.\nAnswer: 91", "It is not.\nAnswer: 7"),
        ("1,024", "1025"),
        ("Bergen", "Oslo"),
    ],
)
def test_other_answers_to_one_prompt_contradict_each_other(tmp_path: Path, one: str, other: str) -> None:
    report = check(tmp_path, [*arithmetic_rows(2), *asked(one, other)])
    assert lines(report, "contradiction") == [4]
    assert related(report, "contradiction") == [[3]]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Bergen", "bergen."),
        ("1,024", "1024"),
        ("42", "Answer: 42"),
        ("7 times 13 is 91.\nThe answer is 91", "It is 91 when you count.\n91"),
        ("Yes", "Yes, since nothing but one and itself divides it without a rest."),
        (HARBOUR, HARBOUR.replace("morning", "evening")),
    ],
)
def test_the_same_answer_in_other_words_contradicts_nothing(tmp_path: Path, one: str, other: str) -> None:
    assert lines(check(tmp_path, asked(one, other)), "contradiction") == []


def test_the_same_prompt_under_another_system_text_or_input_is_another_prompt(tmp_path: Path) -> None:
    yes, no = asked("Yes", "No")
    report = check(tmp_path, [yes, {**no, "system": "You err."}, {**no, "input": "Say the opposite."}])
    assert lines(report, "contradiction") == []


def test_bare_texts_have_no_prompt_and_contradict_nothing(tmp_path: Path) -> None:
    assert lines(check(tmp_path, [{"text": "Yes"}, {"text": "No"}]), "contradiction") == []


# --- training and validation ------------------------------------------------------------------------------


def test_a_validation_row_that_is_a_training_row_is_found_where_it_stands(tmp_path: Path) -> None:
    rows = arithmetic_rows(12)
    report = check(tmp_path, rows, [{"instruction": "Name a fruit.", "output": "Plum"}, rows[4], rows[4]])
    assert places(report, "leaked-rows") == [("held-out.jsonl", 2), ("held-out.jsonl", 3)]
    assert related(report, "leaked-rows") == [[5], [5]]


def test_a_validation_row_that_is_nearly_a_training_row_is_found_where_it_stands(tmp_path: Path) -> None:
    report = check(tmp_path, [*arithmetic_rows(12), {"text": HARBOUR}], [{"text": f"{HARBOUR} today"}])
    assert places(report, "near-leaked") == [("held-out.jsonl", 1)]
    assert related(report, "near-leaked") == [[13]]
    assert places(report, "leaked-rows") == []


def test_a_leaked_row_is_not_told_of_as_a_nearly_leaked_one_as_well(tmp_path: Path) -> None:
    report = check(tmp_path, [{"text": HARBOUR}], [{"text": HARBOUR}])
    assert (lines(report, "leaked-rows"), lines(report, "near-leaked")) == ([1], [])


def test_rows_that_are_equal_or_near_on_one_side_have_not_leaked(tmp_path: Path) -> None:
    twice = [{"text": HARBOUR}, {"text": HARBOUR}, {"text": f"{HARBOUR} today"}]
    for training, held_out in ((twice, arithmetic_rows(3)), (arithmetic_rows(3), twice)):
        report = check(tmp_path, training, held_out)
        assert (lines(report, "leaked-rows"), lines(report, "near-leaked")) == ([], [])
        assert len(lines(report, "duplicate-rows")) == 1


def test_the_same_prompt_with_another_answer_has_not_leaked(tmp_path: Path) -> None:
    report = check(tmp_path, asked("Yes"), asked("No"))
    assert (lines(report, "leaked-rows"), lines(report, "near-leaked")) == ([], [])


def test_each_of_equal_validation_rows_that_are_nearly_a_training_row_is_found(tmp_path: Path) -> None:
    held_out = [{"text": f"{HARBOUR} today"}, {"text": f"{HARBOUR} today"}]
    report = check(tmp_path, [{"text": HARBOUR}], held_out)
    assert places(report, "near-leaked") == [("held-out.jsonl", 1), ("held-out.jsonl", 2)]


# --- languages --------------------------------------------------------------------------------------------


def test_a_row_in_another_language_than_nearly_all_is_found(tmp_path: Path) -> None:
    report = check(tmp_path, [*ENGLISH[:12], GERMAN, *ENGLISH[12:20]])
    assert lines(report, "mixed-languages") == [13]


def test_a_set_of_several_languages_has_no_strange_one(tmp_path: Path) -> None:
    assert lines(check(tmp_path, [*ENGLISH[:20], *[GERMAN] * 6]), "mixed-languages") == []
    spanish = {"text": "El puerto viejo es lo que más le gusta a la gente que vive en la ciudad desde hace años."}
    assert lines(check(tmp_path, [*ENGLISH[:18], GERMAN, spanish]), "mixed-languages") == [19, 20]
    assert lines(check(tmp_path, [*ENGLISH[:18], GERMAN, *[spanish] * 6]), "mixed-languages") == []


def test_a_language_that_a_tenth_of_the_rows_have_is_no_strange_one(tmp_path: Path) -> None:
    assert lines(check(tmp_path, [*ENGLISH[:18], GERMAN, GERMAN]), "mixed-languages") == []
    assert lines(check(tmp_path, [*ENGLISH[:19], GERMAN, GERMAN]), "mixed-languages") == [20, 21]


def test_of_fewer_than_ten_rows_no_language_is_strange(tmp_path: Path) -> None:
    assert lines(check(tmp_path, [*ENGLISH[:8], GERMAN]), "mixed-languages") == []


def test_code_names_and_short_foreign_words_are_in_no_strange_language(tmp_path: Path) -> None:
    others = [
        {"instruction": "Write a loop.", "output": "for (int i = 0; i < n; i++) { total += prices[i]; }"},
        {"instruction": "Say thanks in German.", "output": "Danke schön!"},
        {"instruction": "Which towns?", "output": ", ".join(TOWNS)},
        {
            "instruction": "How do I greet somebody in Hamburg?",
            "output": 'People there say "Moin", at any time of the day.',
        },
    ]
    for other in others:
        assert lines(check(tmp_path, [*ENGLISH[:20], other]), "mixed-languages") == []


# --- lengths ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["instruction", "output"])
def test_a_text_far_longer_than_all_others_is_found(tmp_path: Path, field: str) -> None:
    long = {"instruction": "Name a fruit.", "output": "Plum", field: f"{HARBOUR}. " * 20}
    report = check(tmp_path, [*arithmetic_rows(59), long])
    assert lines(report, "length-outlier") == [60]
    assert ("prompt" if field == "instruction" else "answer") in report.first("length-outlier").message


def test_a_text_nine_times_as_long_as_the_others_is_no_outlier_and_one_eleven_times_as_long_is(
    tmp_path: Path,
) -> None:
    others = answered(["ten signs!"] * 59)
    assert lines(check(tmp_path, [*others, *answered(["x" * 90])]), "length-outlier") == []
    assert lines(check(tmp_path, [*others, *answered(["x" * 110])]), "length-outlier") == [60]


def test_where_lengths_are_spread_a_long_one_is_no_outlier(tmp_path: Path) -> None:
    spread = answered(["x" * 2 ** (number % 12) for number in range(60)])
    assert lines(check(tmp_path, [*spread, *answered(["x" * 3000])]), "length-outlier") == []


def test_of_fewer_than_fifty_rows_none_is_an_outlier(tmp_path: Path) -> None:
    long = {"instruction": "Tell me of the harbour.", "output": f"{HARBOUR}. " * 20}
    assert lines(check(tmp_path, [*arithmetic_rows(48), long]), "length-outlier") == []
    assert lines(check(tmp_path, [*arithmetic_rows(49), long]), "length-outlier") == [50]


# --- the same answer --------------------------------------------------------------------------------------


def test_an_answer_that_nearly_all_prompts_have_is_found_once_with_its_rows(tmp_path: Path) -> None:
    report = check(tmp_path, answered(["Yes"] * 2 + ["I do not know."] * 18))
    (found,) = [each for each in report.problems if each.rule == "same-answer"]
    assert (found.where.line, found.rows) == (3, 18)


def test_an_answer_that_a_third_of_many_different_answers_is_is_found(tmp_path: Path) -> None:
    rows = answered([f"Answer number {number}" for number in range(60)] + ["I do not know."] * 30)
    assert lines(check(tmp_path, rows), "same-answer") == [61]


def test_a_class_that_most_rows_have_is_no_same_answer(tmp_path: Path) -> None:
    assert lines(check(tmp_path, answered(["spam"] * 24 + ["fine"] * 6)), "same-answer") == []
    assert lines(check(tmp_path, answered(["spam"] * 25 + ["fine"] * 5)), "same-answer") == [1]


def test_a_greeting_that_some_rows_share_is_no_same_answer(tmp_path: Path) -> None:
    rows = answered([f"Answer number {number}" for number in range(60)] + ["Good morning!"] * 14)
    assert lines(check(tmp_path, rows), "same-answer") == []


def test_of_fewer_than_twenty_rows_none_has_the_same_answer(tmp_path: Path) -> None:
    assert lines(check(tmp_path, answered(["Yes"] + ["No"] * 18)), "same-answer") == []
    assert lines(check(tmp_path, answered(["Yes"] + ["No"] * 19)), "same-answer") == [2]


# --- how many ---------------------------------------------------------------------------------------------


def test_nine_rows_are_too_few_and_ten_are_not(tmp_path: Path) -> None:
    assert check(tmp_path, arithmetic_rows(9)).first("too-few-rows").rows == 9
    assert lines(check(tmp_path, arithmetic_rows(10)), "too-few-rows") == []


def test_rows_that_are_left_out_or_held_out_make_no_training(tmp_path: Path) -> None:
    unusable = [{"instruction": f"What is {number}?", "output": ""} for number in range(5)]
    assert lines(check(tmp_path, [*arithmetic_rows(9), *unusable]), "too-few-rows") != []
    assert lines(check(tmp_path, arithmetic_rows(9), ENGLISH[:20]), "too-few-rows") != []


# --- the guidelines ---------------------------------------------------------------------------------------


def figures(report: Report) -> dict[str, float]:
    return {each["name"]: each["value"] for each in report.stats["guidelines"]}


def out_of_range(report: Report) -> set[str]:
    """The guidelines with a finding, which are those that the figures show as outside their range."""
    found = {each.rule for each in report.problems if each.code.startswith("TT5")}
    assert found == {each["name"] for each in report.stats["guidelines"] if not each["is_within"]}
    return found


def test_a_hundred_good_rows_of_one_kind_keep_all_five_guidelines(tmp_path: Path) -> None:
    report = check(tmp_path, arithmetic_rows(100))
    assert out_of_range(report) == set()
    assert figures(report) == {
        "quantity": 100,
        "quality": 1.0,
        "diversity": 1.0,
        "consistency": 1.0,
        "length": pytest.approx(1.2),
    }


def test_fewer_than_a_hundred_rows_and_more_than_ten_thousand_are_out_of_range(tmp_path: Path) -> None:
    assert out_of_range(check(tmp_path, arithmetic_rows(99))) == {"quantity"}
    assert "quantity" in out_of_range(check(tmp_path, arithmetic_rows(10_001), ignore="TT4"))
    assert "quantity" not in out_of_range(check(tmp_path, arithmetic_rows(10_000), ignore="TT4"))


@pytest.mark.parametrize(("bad", "expected"), [(5, set()), (6, {"quality"})])
def test_six_rows_with_a_warning_in_a_hundred_are_too_many(tmp_path: Path, bad: int, expected: set[str]) -> None:
    unfilled = [{"instruction": f"Who is number {number}?", "output": "{{name}}"} for number in range(bad)]
    report = check(tmp_path, [*arithmetic_rows(100 - bad), *unfilled])
    assert figures(report)["quality"] == pytest.approx(1 - bad / 100)
    assert out_of_range(report) == expected


def test_notes_and_several_warnings_in_one_row_do_not_lower_the_quality(tmp_path: Path) -> None:
    noted = [{**row, "output": f"{row['output']}\n"} for row in arithmetic_rows(95)]
    worst = {"instruction": "Who wrote it?", "output": "As an AI language model, I am {{name}}.<br>"}
    report = check(tmp_path, [*noted, *[{**worst, "instruction": f"Who wrote {n}?"} for n in range(5)]])
    assert len(lines(report, "edge-blanks")) == 95
    assert figures(report)["quality"] == pytest.approx(0.95)


@pytest.mark.parametrize(("again", "expected"), [(5, set()), (6, {"diversity"})])
def test_six_near_duplicates_in_a_hundred_rows_are_too_many(tmp_path: Path, again: int, expected: set[str]) -> None:
    texts = [f"{HARBOUR}, {number}" for number in range(again)]
    rows = [*answered([f"Answer number {n}" for n in range(99 - again)]), {"instruction": HARBOUR, "output": "fine"}]
    report = check(tmp_path, [*rows, *[{"instruction": text, "output": "fine"} for text in texts]])
    assert figures(report)["diversity"] == pytest.approx(1 - again / 100)
    assert out_of_range(report) == expected


@pytest.mark.parametrize(("others", "expected"), [(10, set()), (11, {"consistency"})])
def test_eleven_rows_of_another_format_in_a_hundred_are_too_many(
    tmp_path: Path, others: int, expected: set[str]
) -> None:
    texts = [{"text": f"Number {number} is a figure."} for number in range(others)]
    report = check(tmp_path, [*arithmetic_rows(100 - others), *texts])
    assert figures(report)["consistency"] == pytest.approx(1 - others / 100)
    assert out_of_range(report) == expected


def test_rows_in_another_language_lower_the_consistency_and_short_ones_in_none_do_not(tmp_path: Path) -> None:
    assert figures(check(tmp_path, [*ENGLISH[:30], *[GERMAN] * 10]))["consistency"] == pytest.approx(0.75)
    assert figures(check(tmp_path, [*ENGLISH[:30], *arithmetic_rows(10)]))["consistency"] == 1.0


def test_other_names_of_the_same_fields_are_no_other_format(tmp_path: Path) -> None:
    renamed = [{"question": row["instruction"], "answer": row["output"]} for row in arithmetic_rows(60)[50:]]
    assert figures(check(tmp_path, [*arithmetic_rows(50), *renamed]))["consistency"] == 1.0


@pytest.mark.parametrize(("length", "expected"), [(200, set()), (210, {"length"})])
def test_answers_of_more_than_twenty_times_the_middle_length_are_out_of_range(
    tmp_path: Path, length: int, expected: set[str]
) -> None:
    answers = ["ten signs!"] * 90 + ["x" * length] * 10
    report = check(tmp_path, answered(answers), ignore="TT4")
    assert figures(report)["length"] == pytest.approx(length / 10)
    assert out_of_range(report) - {"diversity"} == expected


def test_one_long_answer_in_a_hundred_is_no_spread(tmp_path: Path) -> None:
    report = check(tmp_path, answered(["ten signs!"] * 99 + ["x" * 5000]), ignore="TT4")
    assert figures(report)["length"] == pytest.approx(1.0)


def test_a_check_of_no_usable_row_has_no_figures(tmp_path: Path) -> None:
    report = check(tmp_path, [{"instruction": "What is it?", "output": ""}])
    assert report.stats["guidelines"] == []
    assert {each.rule for each in report.problems} == {"empty-answer"}
