"""The page of `check --html`: complete, escaped, self-contained, and true to the labels."""

import html
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import arithmetic_rows, write_jsonl
from pages import Page, assert_loads_nothing, assert_only_its_own_scripts_may_run, assert_well_formed
from properties import examples
from truetune.cli import main
from truetune.config.load import load_config
from truetune.config.schema import NO_MODEL
from truetune.data.examples import IGNORED
from truetune.lint.guidelines import Guideline
from truetune.lint.private import without_secrets
from truetune.pipeline.check import Checked, check_rows
from truetune.pipeline.data_report import data_page
from truetune.pipeline.inspect import pieces_of
from truetune.report.data_page import histogram, markdown_blocks, meter, render_data_page
from truetune.report.stretches import cut, differing, with_evidence

HARMFUL = "<script>alert(1)</script>"
TOKEN = "ghp_" + "Zq7Rw9Lk2Mv4Np6Ts8Xy" * 2
STORY = (
    "The river ran past the old mill and the miller counted every sack of flour before the winter came to the town, "
    "for nobody there had forgotten how long the snow had lain on the roads in the year when his father was young"
)


def rows_with_findings() -> list[dict[str, Any]]:
    return [
        *arithmetic_rows(12),
        {"instruction": HARMFUL, "output": f"Say {HARMFUL} to {{{{ customer_name }}}}"},
        {"instruction": "Tell me of the mill.", "output": STORY},
        {"instruction": "Tell me of the mill.", "output": STORY.replace("winter", "summer")},
        {"instruction": "Which key?", "output": f"It is {TOKEN} as ever."},
        {"instruction": "Nothing comes of it", "output": ""},
        {"instruction": "Half a sign", "output": "\ud83d is half of one"},
    ]


def checked_rows(
    path: Path, rows: list[dict[str, Any]], *, model: str = NO_MODEL, score: int | None = None
) -> tuple[Checked, Any]:
    data = path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    config = load_config(None, settings={"data.path": str(data), "model.name_or_path": model}, overrides=[]).config
    return check_rows(config, score=score), config


@pytest.fixture
def found(tmp_path: Path) -> tuple[Checked, Page, str]:
    checked, config = checked_rows(tmp_path, rows_with_findings())
    source = render_data_page(data_page(checked, config))
    return checked, Page(source), source


def test_every_finding_stands_in_the_page_with_its_code_and_place(found: tuple[Checked, Page, str]) -> None:
    checked, page, _ = found
    codes = {problem.code for problem in checked.report.problems}
    assert {"TT101", "TT205", "TT209", "TT402"} <= codes
    for problem in checked.report.problems:
        assert f"{problem.where}" in page.sections[problem.code]
        assert problem.message in page.sections[problem.code]
        assert problem.code in page.sections["summary"]
    links = {attributes["href"] for tag, attributes in page.tags if tag == "a"}
    assert links == {f"#{code}" for code in codes}


def test_the_worst_findings_come_first(found: tuple[Checked, Page, str]) -> None:
    summary = found[1].sections["summary"]
    assert summary.index("TT101") < summary.index("TT205") < summary.index("TT501")


def test_what_comes_from_the_data_is_escaped(found: tuple[Checked, Page, str]) -> None:
    _, page, source = found
    assert HARMFUL not in source
    assert html.escape(HARMFUL) in source
    assert HARMFUL in page.sections["TT205"]
    assert [tag for tag, _ in page.tags].count("script") == 1


def test_the_page_is_well_formed(found: tuple[Checked, Page, str]) -> None:
    assert_well_formed(found[1])


def test_the_page_loads_nothing(found: tuple[Checked, Page, str]) -> None:
    assert_loads_nothing(found[1], found[2])
    assert_only_its_own_scripts_may_run(found[1])


def test_what_a_finding_quotes_is_marked_in_its_row(found: tuple[Checked, Page, str]) -> None:
    assert "{{ customer_name }}" in found[1].marked("evidence")


def test_a_secret_does_not_stand_in_the_page(found: tuple[Checked, Page, str]) -> None:
    _, page, source = found
    assert TOKEN not in source
    assert f"{TOKEN[:8]}…" in page.marked("evidence")


def test_a_row_that_cannot_be_read_is_shown_as_its_file_has_it(found: tuple[Checked, Page, str]) -> None:
    assert "Nothing comes of it" in found[1].sections["TT101"]


def test_half_a_sign_is_spelled_out_and_can_be_written(found: tuple[Checked, Page, str]) -> None:
    source = found[2]
    source.encode("utf-8")
    assert "\\ud83d is half of one" in source


def test_near_duplicates_stand_side_by_side_with_what_differs(found: tuple[Checked, Page, str]) -> None:
    _, page, _ = found
    for line in (14, 15):
        assert f"line {line}" in page.sections["clusters"]
    assert page.marked("differs") == ["marked", "summer"]


def test_a_group_of_equal_rows_is_told_by_two_of_them(tmp_path: Path) -> None:
    checked, config = checked_rows(tmp_path, [{"instruction": "Tell me", "output": STORY}] * 5)
    page = Page(render_data_page(data_page(checked, config)))
    assert "5 rows, 1 different, 2 here" in page.sections["clusters"]
    assert page.sections["clusters"].count("the same as the first") == 1


def test_all_guidelines_are_shown_with_their_ranges(found: tuple[Checked, Page, str]) -> None:
    checked, page, _ = found
    assert len(checked.linted.guidelines) == 5
    for guideline in checked.linted.guidelines:
        assert guideline.name in page.sections["guidelines"]
        assert guideline.range in page.sections["guidelines"]
    assert page.sections["guidelines"].count("outside") == sum(
        not guideline.is_within for guideline in checked.linted.guidelines
    )


def test_samples_go_from_the_first_row_to_the_last(found: tuple[Checked, Page, str]) -> None:
    checked, page, _ = found
    assert checked.report.rows_kept == 16
    samples = page.sections["samples"]
    assert "line 1\n" in samples
    assert "line 16" in samples
    assert page.marked("learned")[1:3] == ["1", "7"]


def test_the_learned_tokens_are_marked_as_the_labels_say(tmp_path: Path, tiny_base: Path) -> None:
    checked, config = checked_rows(tmp_path, arithmetic_rows(24), model=str(tiny_base))
    shown = data_page(checked, config)
    page = Page(render_data_page(shown))
    prepared = checked.prepared
    assert prepared is not None
    every = prepared.train.select(np.arange(24))
    expected = [
        text
        for row in (0, 5, 11, 17, 23)
        for text, is_learned in pieces_of(every[row], prepared.template.tokenizer)
        if is_learned
    ]
    assert page.marked("learned")[1:] == expected
    assert "1<|im_end|>" in expected[0]
    lengths = {each.name: each.values.tolist() for each in shown.lengths}
    assert lengths["tokens a row"] == [len(row.input_ids) for row in every]
    assert lengths["learned tokens a row"] == [len(row.labels) - row.labels.count(IGNORED) for row in every]
    assert "max_length" in page.sections["lengths"]


def test_the_most_and_the_least_surprising_rows_are_shown_with_their_loss(tmp_path: Path, tiny_base: Path) -> None:
    checked, config = checked_rows(tmp_path, arithmetic_rows(24), model=str(tiny_base), score=24)
    page = Page(render_data_page(data_page(checked, config)))
    assert page.misnested == []
    text = page.sections["scores"]
    assert checked.scores is not None
    ranked = [f"line {score.where.line}" for score in checked.scores.scored]
    most, _, least = text.partition("least surprising rows")
    for place, shown in ((ranked[0], most), (ranked[-1], least)):
        assert place in shown
    assert f"{checked.scores.scored[0].loss:.2f} nats" in most
    without, config = checked_rows(tmp_path, arithmetic_rows(24), model=str(tiny_base))
    assert "scores" not in Page(render_data_page(data_page(without, config))).sections


def test_rows_of_one_record_are_each_shown_as_themselves(tmp_path: Path) -> None:
    instances = [{"input": "", "output": STORY}, {"input": "", "output": STORY.replace("mill ", "tower ")}]
    rows = [{"instruction": "Tell me", "instances": instances}, *arithmetic_rows(3)]
    checked, config = checked_rows(tmp_path, rows)
    page = Page(render_data_page(data_page(checked, config)))
    assert "tower" in page.marked("differs")


def test_data_without_a_usable_row_makes_a_page_too(tmp_path: Path) -> None:
    checked, config = checked_rows(tmp_path, [{"instruction": "Why?", "output": ""}])
    page = Page(render_data_page(data_page(checked, config)))
    assert "TT101" in page.sections["summary"]
    assert "lengths" not in page.sections


def test_the_command_writes_the_page(tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "rows.jsonl", arithmetic_rows(24))
    target = tmp_path / "reports" / "page.html"
    assert main(["check", str(data), "--html", str(target)]) == 0
    page = Page(target.read_text(encoding="utf-8"))
    assert "quantity" in page.sections["guidelines"]
    assert "24" in page.sections["lengths"]


@given(st.lists(st.integers(0, 10**7), min_size=1, max_size=200))
@examples(100)
def test_a_histogram_counts_every_row_once(values: list[int]) -> None:
    drawn = histogram(np.array(values, np.int64))
    assert sum(drawn.counts) == len(values)
    assert len(drawn.edges) == len(drawn.counts) + 1
    assert list(drawn.edges) == sorted(set(drawn.edges))
    for low, high, count in zip(drawn.edges, drawn.edges[1:], drawn.counts, strict=False):
        assert count == sum(low <= value < high for value in values)


def test_bins_grow_where_one_row_is_far_longer_than_the_others() -> None:
    drawn = histogram(np.array([10] * 50 + [40] * 50 + [100_000]))
    widths = np.diff(drawn.edges)
    assert widths[-1] > 100 * widths[0]
    assert sum(count > 0 for count in drawn.counts) == 3


@pytest.mark.parametrize(
    ("value", "low", "high"),
    [(50, 100, 10_000), (500, 100, 10_000), (0.5, 0.9, None), (3, None, 20.0), (30, None, 20.0)],
)
def test_the_marker_of_a_guideline_is_in_its_range_if_the_figure_is(
    value: float, low: float | None, high: float | None
) -> None:
    guideline = Guideline("quantity", "rows", value, low, high, "a test")
    drawn = meter(guideline)
    assert (drawn.start <= drawn.at <= drawn.end) == guideline.is_within
    assert 0 <= drawn.start < drawn.end <= 100


def test_a_long_text_keeps_what_the_finding_is_about() -> None:
    text = "a " * 5_000 + "As an  AI language model" + " b" * 5_000
    shown = with_evidence(text, "has a model's stock phrase: 'as an ai language model'", most=100)
    assert [each.text for each in shown if each.mark == "evidence"] == ["As an  AI language model"]
    assert sum(len(each.text) for each in shown) < 400
    left_out = [each.text for each in cut(text, most=100) if each.mark == "cut"]
    assert left_out == [f" … {len(text) - 100:,} characters … "]


def test_differing_words_are_marked_and_the_rest_is_the_text() -> None:
    shown = differing("the red fox ran home", "the brown fox ran")
    assert [each.text for each in shown if each.mark == "differs"] == ["red", " home"]
    assert "".join(each.text for each in shown) == "the red fox ran home"
    shorter = differing("the fox ran", "the quick fox ran")
    assert [each.text.strip() for each in shorter if each.mark == "missing"] == ["quick"]
    assert "".join(each.text for each in shorter if each.mark != "missing") == "the fox ran"


def test_the_page_of_a_rule_is_told_in_blocks() -> None:
    source = "# TT101 empty-answer\n\nFinds `output` that is\nempty.\n\n## Remedy\n\n- fill it\n- drop it\n"
    source += "\n```json\n{}\n```\n"
    told = [(block.kind, block.text) for block in markdown_blocks(source)]
    assert told == [
        ("paragraph", "Finds `output` that is empty."),
        ("heading", "Remedy"),
        ("item", "fill it"),
        ("item", "drop it"),
        ("code", "{}"),
    ]


def test_secrets_and_addresses_are_shortened_and_samples_are_not() -> None:
    key = "-----BEGIN PRIVATE KEY-----\n" + "MIIEvQIBADANBgkq\n" * 4 + "-----END PRIVATE KEY-----"
    assert "MIIE" not in without_secrets(f"a {key} b")
    assert without_secrets(f"a {key} b").endswith("-----END PRIVATE KEY----- b")
    assert "marlene.dietz" not in without_secrets("write to marlene.dietz@posteo.de")
    assert without_secrets("write to jane@example.com") == "write to jane@example.com"
