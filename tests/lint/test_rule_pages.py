"""Every rule has a page, and the rows on it are what the page says they are."""

import re
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import yaml

import truetune
from truetune.data.catalog import RULES, Rule
from truetune.lint.explain import index, page, summary

BLOCK = re.compile(r"^```jsonl (?P<kind>\S+)(?P<settings>[^\n]*)\n(?P<rows>.*?)^```$", re.MULTILINE | re.DOTALL)
SETTING = re.compile(r"(?P<name>[\w.]+)=(?P<value>\{[^}]*\}|\S+)")
SHOWN_ONLY = {"absent-group", "control-token", "leaked-rows", "near-leaked", "mixed-languages", "length-outlier"} | {
    "same-answer",
    "one-form",
    "quantity",
    *(rule.name for rule in RULES.values() if rule.group == "tokens"),
}
"""Rules that need a tokenizer, two files, or more rows than a page has room for."""
RUN = [rule for rule in RULES.values() if rule.name not in SHOWN_ONLY]


def blocks(rule: Rule, kind: str) -> list[tuple[str, dict[str, Any]]]:
    """The rows of the page's blocks of this kind, each with the settings that they are checked with."""
    found = [match for match in BLOCK.finditer(page(rule)) if match["kind"] == kind]
    return [
        (match["rows"], {name: yaml.safe_load(value) for name, value in SETTING.findall(match["settings"])})
        for match in found
    ]


def rules_found(folder: Path, rows: str, settings: dict[str, Any]) -> set[str]:
    data = folder / "rows.jsonl"
    data.write_text(rows, encoding="utf-8")
    return {problem.rule for problem in truetune.check(data, **settings).problems}


def of_rules(rules: list[Rule]) -> Any:
    return pytest.mark.parametrize("rule", rules, ids=str)


def test_every_rule_has_a_page_and_every_page_a_rule() -> None:
    pages = resources.files("truetune.lint").joinpath("pages").iterdir()
    assert sorted(each.name for each in pages) == sorted(f"{rule.code}.md" for rule in RULES.values())


@of_rules([*RULES.values()])
def test_a_page_begins_with_its_rule_and_a_sentence_that_fits_on_a_line(rule: Rule) -> None:
    title, blank, sentence, after = page(rule).splitlines()[:4]
    assert (title, blank, after) == (f"# {rule}", "", "")
    assert sentence == summary(rule)
    assert re.fullmatch(r"[A-Z].{10,110}\.|[A-Z].{10,110}>\.", sentence)


@of_rules([*RULES.values()])
def test_a_page_says_why_it_hurts_what_trips_it_what_does_not_and_what_to_do(rule: Rule) -> None:
    heads = re.findall(r"^\*\*(.+?)\*\*", page(rule), re.MULTILINE)
    assert heads == ["Why it hurts.", "Trips it", "Does not", "Remedy."]
    kinds = [match["kind"] for match in BLOCK.finditer(page(rule))]
    assert kinds == (["example", "near-miss"] if rule.name in SHOWN_ONLY else ["trips", "passes"])


@of_rules(RUN)
def test_the_rows_that_are_to_trip_a_rule_do(rule: Rule, tmp_path: Path) -> None:
    for rows, settings in blocks(rule, "trips"):
        assert rule.name in rules_found(tmp_path, rows, settings)


@of_rules(RUN)
def test_the_rows_that_are_not_to_trip_a_rule_do_not(rule: Rule, tmp_path: Path) -> None:
    for rows, settings in blocks(rule, "passes"):
        assert rule.name not in rules_found(tmp_path, rows, settings)


@of_rules([rule for rule in RUN if rule.severity != "error"])
def test_rows_with_a_warning_or_a_note_are_kept_all_the_same(rule: Rule, tmp_path: Path) -> None:
    for rows, settings in blocks(rule, "trips"):
        data = tmp_path / "rows.jsonl"
        data.write_text(rows, encoding="utf-8")
        report = truetune.check(data, **settings)
        assert (report.rows_kept, report.rows_rejected) == (len(rows.splitlines()), 0)


@of_rules([rule for rule in RUN if rule.group in ("structure", "text")])
def test_near_misses_are_rows_that_can_be_trained_on(rule: Rule, tmp_path: Path) -> None:
    for rows, settings in blocks(rule, "passes"):
        data = tmp_path / "rows.jsonl"
        data.write_text(rows, encoding="utf-8")
        assert truetune.check(data, **settings).rejected == {}


def test_the_index_lists_every_rule_with_its_sentence() -> None:
    listed = index()
    assert [(code, name) for code, name, _, _ in listed] == [(rule.code, rule.name) for rule in RULES.values()]
    assert all(sentence in page(RULES[name]) for _, name, _, sentence in listed)
    assert len({sentence for _, _, _, sentence in listed}) == len(RULES)
