"""Which rules are held, how severe they are, and which lines they leave alone."""

from pathlib import Path
from typing import Any

import pytest

import truetune
from conftest import write_jsonl
from heard import Heard
from truetune.data.catalog import RULES
from truetune.data.examples import Location
from truetune.data.rules import LISTED, Report
from truetune.errors import ConfigError, DataError
from truetune.lint.selection import LineIgnore, Selection, rules_of

ROWS = [
    {"instruction": "Who are you?", "output": "I am {{name}}."},
    {"instruction": "Name a fruit.", "output": "Plum\n"},
    {"instruction": "Name a colour.", "output": ""},
    {"instruction": "Where do you live?", "output": "In {{town}}<br>."},
]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "rows.jsonl", ROWS)


def lines(report: Report, rule: str) -> list[int]:
    """The lines on which the rule has a finding."""
    return [problem.where.line for problem in report.problems if problem.rule == rule]


def found(report: Report) -> set[str]:
    return {problem.rule for problem in report.problems}


def ignoring(data: Path, text: str, **settings: Any) -> Report:
    """The report with this text as the data's sidecar."""
    data.with_name(f"{data.name}.ttignore").write_text(text, encoding="utf-8")
    return truetune.check(data, **settings)


# --- what a name stands for -------------------------------------------------------------------------------


@pytest.mark.parametrize("asked", ["TT205", "tt205", "placeholder", "Placeholder", " TT205 "])
def test_a_code_and_a_name_stand_for_one_rule_in_any_case(asked: str) -> None:
    assert rules_of(asked) == (RULES["placeholder"],)


def test_the_beginning_of_codes_stands_for_all_of_them() -> None:
    assert set(rules_of("TT2")) == {rule for rule in RULES.values() if rule.group == "text"}
    assert {rule.code for rule in rules_of("TT21")} == {"TT210", "TT211"}
    assert set(rules_of("TT")) == set(RULES.values())


@pytest.mark.parametrize(
    ("asked", "meant"), [("placeholders", "placeholder"), ("tt225", "TT2"), ("refusals", "refusal")]
)
def test_an_unknown_rule_is_an_error_that_suggests_one(asked: str, meant: str) -> None:
    with pytest.raises(ConfigError, match=f"no rule is called '{asked}'") as error:
        rules_of(asked)
    assert error.value.hint is not None
    assert f"did you mean {meant}" in error.value.hint


@pytest.mark.parametrize("asked", ["", "T", "t", "  ", "xyzzy", "TT9", "205"])
def test_what_stands_for_no_rule_or_for_no_choice_is_an_error(asked: str) -> None:
    with pytest.raises(ConfigError, match="no rule is called") as error:
        rules_of(asked)
    assert "--explain all" in str(error.value.hint)


@pytest.mark.parametrize("setting", ["select", "ignore"])
def test_an_unknown_rule_in_the_settings_stops_the_check(data: Path, setting: str) -> None:
    with pytest.raises(ConfigError, match="'placeholdr'"):
        truetune.check(data, **{setting: "placeholdr"})


# --- select and ignore ------------------------------------------------------------------------------------


def test_without_a_choice_every_rule_is_held() -> None:
    assert Selection.of().severities == {rule.name: rule.severity for rule in RULES.values()}


@pytest.mark.parametrize("asked", ["TT205", "placeholder", "TT2"])
def test_only_what_is_selected_is_found(data: Path, asked: str) -> None:
    report = truetune.check(data, select=asked)
    assert lines(report, "placeholder") == [1, 4]
    assert found(report) <= {rule.name for rule in rules_of(asked)}


@pytest.mark.parametrize("asked", ["TT205", "placeholder", "TT20"])
def test_what_is_ignored_is_not_found_and_the_rest_is(data: Path, asked: str) -> None:
    report = truetune.check(data, ignore=asked)
    assert "placeholder" not in found(report)
    assert "placeholder" not in report.found
    assert "edge-blanks" in found(report)


def test_several_rules_are_given_as_a_list_or_with_commas(data: Path) -> None:
    assert found(truetune.check(data, select="TT205, edge-blanks")) == {"placeholder", "edge-blanks"}
    assert found(truetune.check(data, select=["TT205", "edge-blanks"])) == {"placeholder", "edge-blanks"}


def test_a_longer_code_wins_over_a_shorter_one_on_either_side() -> None:
    assert "placeholder" not in Selection.of(select=["TT2"], ignore=["TT205"]).severities
    assert "markup" in Selection.of(select=["TT2"], ignore=["TT205"]).severities
    assert Selection.of(select=["TT205"], ignore=["TT2"]).severities == {"placeholder": "warning"}


def test_of_two_codes_of_one_length_the_ignored_one_wins() -> None:
    assert Selection.of(select=["TT205"], ignore=["TT205"]).severities == {}


@pytest.mark.parametrize("order", [("TT2", "TT205"), ("TT205", "TT2")])
def test_a_rule_that_is_selected_twice_is_held_as_it_is_named_most_exactly(order: tuple[str, str]) -> None:
    assert "placeholder" in Selection.of(select=order, ignore=["TT20"]).severities


@pytest.mark.parametrize("order", [("TT2", "TT205"), ("TT205", "TT2")])
def test_a_rule_that_is_ignored_twice_is_left_out_as_it_is_named_most_exactly(order: tuple[str, str]) -> None:
    assert "placeholder" not in Selection.of(select=["TT20"], ignore=order).severities


@pytest.mark.parametrize("name", ["secret", "markup", "placeholder"])
def test_a_name_is_as_exact_as_a_whole_code(name: str) -> None:
    code = RULES[name].code
    assert name not in Selection.of(select=[code], ignore=[name]).severities
    assert name not in Selection.of(select=[name], ignore=[code]).severities


def test_a_row_that_cannot_be_used_stays_left_out_when_its_rule_is_ignored(data: Path) -> None:
    report = truetune.check(data, ignore="TT101")
    assert "empty-answer" not in found(report)
    assert report.rows_kept == 3


# --- severities -------------------------------------------------------------------------------------------


def test_a_severity_can_be_given_to_a_rule_or_to_many() -> None:
    severities = Selection.of(severity={"TT21": "error", "placeholder": "note"}).severities
    assert (severities["personal-data"], severities["edge-blanks"]) == ("error", "error")
    assert (severities["placeholder"], severities["markup"]) == ("note", "warning")


@pytest.mark.parametrize("reverse", [False, True])
def test_the_severity_of_the_longer_code_wins_in_any_order(reverse: bool) -> None:
    given: list[tuple[str, Any]] = [("TT2", "note"), ("TT205", "error")]
    severities = Selection.of(severity=dict(reversed(given) if reverse else given)).severities
    assert (severities["placeholder"], severities["markup"]) == ("error", "note")


def test_a_severity_of_an_unknown_rule_is_an_error() -> None:
    with pytest.raises(ConfigError, match="no rule is called 'TT999'"):
        Selection.of(severity={"TT999": "note"})


def test_findings_carry_the_severity_that_was_given(data: Path) -> None:
    report = truetune.check(data, severity={"TT205": "error", "TT101": "note"})
    assert {problem.severity for problem in report.problems if problem.rule == "placeholder"} == {"error"}
    assert {problem.severity for problem in report.problems if problem.rule == "empty-answer"} == {"note"}


def test_rows_whose_findings_are_made_notes_count_as_good_ones(tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "rows.jsonl", ROWS[:1])
    assert "quality" in found(truetune.check(data))
    assert "quality" not in found(truetune.check(data, severity={"TT205": "note"}))


# --- the sidecar ------------------------------------------------------------------------------------------


def test_a_line_of_the_sidecar_leaves_a_line_of_the_data_alone(data: Path) -> None:
    report = ignoring(data, "1 TT205\n")
    assert lines(report, "placeholder") == [4]
    assert report.rows_of("placeholder") == 1


@pytest.mark.parametrize(
    "text", ["1-4 TT205", "1 - 4  placeholder", "1 TT2\n4: TT205", "1-4: TT206, TT205 # they are meant"]
)
def test_ranges_names_several_rules_and_reasons_are_read(data: Path, text: str) -> None:
    assert lines(ignoring(data, f"# reasons\n\n{text}\n"), "placeholder") == []


def test_a_line_that_is_left_alone_by_one_rule_is_held_by_the_others(data: Path) -> None:
    report = ignoring(data, "4 TT205\n")
    assert (lines(report, "placeholder"), lines(report, "markup")) == ([1], [4])


def test_the_sidecar_of_one_file_says_nothing_of_another(data: Path, tmp_path: Path) -> None:
    other = write_jsonl(tmp_path / "other.jsonl", ROWS)
    ignoring(data, "1-4 TT205\n")
    report = truetune.check([data, other])
    assert {problem.where.path for problem in report.problems if problem.rule == "placeholder"} == {str(other)}


def test_the_sidecar_of_validation_rows_is_read_too(data: Path, tmp_path: Path) -> None:
    held_out = write_jsonl(tmp_path / "held-out.jsonl", [{"instruction": "Your name?", "output": "{{name}}"}])
    assert len(lines(truetune.check(data, validation_path=str(held_out)), "placeholder")) == 3
    held_out.with_name("held-out.jsonl.ttignore").write_text("1 TT205\n", encoding="utf-8")
    assert len(lines(truetune.check(data, validation_path=str(held_out)), "placeholder")) == 2


def test_a_row_that_is_left_alone_counts_as_a_good_one(tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "rows.jsonl", ROWS[:1])
    assert "quality" not in found(ignoring(data, "1 TT205\n"))


def test_findings_of_the_set_are_left_alone_by_the_line_that_they_stand_on(tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "rows.jsonl", [ROWS[1], ROWS[1], ROWS[1]])
    assert lines(ignoring(data, "3 duplicate-rows\n"), "duplicate-rows") == [2]


def test_errors_are_left_alone_too_while_their_rows_stay_out(data: Path) -> None:
    report = ignoring(data, "3 TT101\n")
    assert lines(report, "empty-answer") == []
    assert report.rows_kept == 3


def test_an_ignored_line_hides_no_finding_beyond_those_that_are_listed(tmp_path: Path) -> None:
    rows = [{"instruction": f"Who is number {n}?", "output": "{{name}}"} for n in range(LISTED + 5)]
    report = ignoring(write_jsonl(tmp_path / "rows.jsonl", rows), f"1-{LISTED} TT205\n")
    assert lines(report, "placeholder") == [*range(LISTED + 1, LISTED + 6)]


def test_an_ignored_line_hides_no_rows_that_one_finding_speaks_for(tmp_path: Path) -> None:
    rows = [{"instruction": f"How long is {n}?", "output": "Long", "choices": ["long"]} for n in range(3)]
    data = write_jsonl(tmp_path / "rows.jsonl", rows)
    assert ignoring(data, "1 TT114\n").rows_of("not-rendered") == 3
    assert "not-rendered" not in found(ignoring(write_jsonl(data, rows[:1]), "1 TT114\n"))


@pytest.mark.parametrize("text", ["TT205", "one TT205", "1", "1-2", "1 205", "-3 TT205", "1.5 TT205"])
def test_a_broken_line_of_the_sidecar_is_an_error_that_names_it(data: Path, text: str) -> None:
    with pytest.raises(DataError, match=r"rows\.jsonl\.ttignore, line 2: .*is no line number with rules"):
        ignoring(data, f"1 TT205\n{text}\n")


def test_an_unknown_rule_in_the_sidecar_is_an_error_that_names_the_line_and_suggests_one(data: Path) -> None:
    with pytest.raises(DataError, match=r"rows\.jsonl\.ttignore, line 3: no rule is called 'placeholdr'") as error:
        ignoring(data, "# why\n1 TT205\n2 placeholdr\n")
    assert "did you mean placeholder" in str(error.value.hint)


def test_a_sidecar_that_is_no_text_is_an_error_that_names_it(data: Path) -> None:
    data.with_name("rows.jsonl.ttignore").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"rows\.jsonl\.ttignore cannot be read"):
        truetune.check(data)


def test_ignored_says_which_line_of_the_sidecar_it_was() -> None:
    ignore = LineIgnore("a.jsonl", 2, 3, frozenset({"markup"}), Location("a.jsonl.ttignore", 7))
    selection = Selection({"markup": "warning"}, {"a.jsonl": [ignore]})
    assert [line for line in range(6) if selection.ignored("markup", Location("a.jsonl", line))] == [2, 3]
    assert selection.ignored("markup", Location("a.jsonl", 2)) is ignore
    assert selection.ignored("secret", Location("a.jsonl", 2)) is None
    assert selection.ignored("markup", Location("b.jsonl", 2)) is None


def test_rows_left_out_beyond_those_that_are_listed_still_fail_the_check(tmp_path: Path) -> None:
    empty = [{"instruction": f"Who is number {n}?", "output": ""} for n in range(LISTED + 5)]
    report = ignoring(write_jsonl(tmp_path / "rows.jsonl", [*empty, ROWS[1]]), f"1-{LISTED} TT101\n")
    assert report.rows_of("empty-answer") == 5
    assert report.fails("error")


# --- when it fails ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "failing"),
    [
        ([ROWS[1]], {"note"}),
        ([ROWS[1], ROWS[0]], {"note", "warning"}),
        ([ROWS[1], ROWS[0], ROWS[2]], {"note", "warning", "error"}),
    ],
)
def test_a_check_fails_at_findings_as_severe_as_asked_or_more(
    tmp_path: Path, rows: list[dict[str, Any]], failing: set[str]
) -> None:
    report = truetune.check(write_jsonl(tmp_path / "rows.jsonl", rows), ignore="TT4,TT5")
    levels: tuple[Any, ...] = ("error", "warning", "note", "never")
    assert {level for level in levels if report.fails(level)} == failing


def test_a_check_without_findings_does_not_fail(tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "rows.jsonl", [{"instruction": "Name a fruit.", "output": "Plum"}])
    report = truetune.check(data, ignore="TT4,TT5")
    assert report.problems == ()
    assert not report.fails("note")


def test_a_severity_that_was_given_decides_whether_it_fails(tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "rows.jsonl", ROWS[:1])
    assert not truetune.check(data).fails("error")
    assert truetune.check(data, severity={"TT205": "error"}).fails("error")


def test_a_check_that_no_row_survives_fails_even_if_the_rule_is_ignored(tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "rows.jsonl", [ROWS[2]])
    report = truetune.check(data, ignore="TT1")
    assert report.problems == ()
    assert report.fails("error")
    assert not report.fails("never")


def test_a_sidecar_leaves_any_number_of_rows_alone_that_cannot_be_used(tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "a.jsonl", [{"instruction": f"a{n}", "output": ""} for n in range(150)])
    with data.open("a") as file:
        file.write('{"instruction": "a", "output": "b"}\n')
    (tmp_path / "a.jsonl.ttignore").write_text("1-150 TT101")
    report = truetune.check(data)
    assert (report.rejected, report.rows_kept) == ({"empty-answer": 150}, 1)
    assert "empty-answer" not in report.found
    assert not report.fails("error")
    (tmp_path / "a.jsonl.ttignore").write_text("1-149 TT101")
    report = truetune.check(data)
    assert report.rows_of("empty-answer") == 1
    assert report.fails("error")


def test_a_line_of_a_sidecar_that_leaves_nothing_alone_is_told(tmp_path: Path) -> None:
    rows = [{"instruction": "Who are you?", "output": "I am {{name}}."}, {"instruction": "a", "output": ""}]
    data = write_jsonl(tmp_path / "a.jsonl", rows)
    (tmp_path / "a.jsonl.ttignore").write_text("1 TT205\n2 TT101\n1 TT101\n7 TT205\n2 TT301 # needs a model\n")
    for ignored, lines in (([], (3, 4)), (["TT205"], (3,))):
        heard = Heard()
        truetune.check(data, listener=heard, ignore=ignored)
        told = [line for line in heard.lines if "leaves nothing alone" in line]
        assert [line.split(": ")[1] for line in told] == [f"{data}.ttignore, line {number}" for number in lines]
