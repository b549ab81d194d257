"""The page of a run: complete, escaped, self-contained, and fit to be read without eyes or scripts."""

import html
import json
from dataclasses import replace
from typing import Any

import pytest

from pages import Page, assert_loads_nothing, assert_only_its_own_scripts_may_run, assert_well_formed
from truetune.report.curves import DRAWN, axes, charts
from truetune.report.data_page import Shares, ShownRow, Text
from truetune.report.run_page import (
    AnsweredRow,
    Compared,
    DataFacts,
    Figure,
    FoundRule,
    HardRow,
    Judged,
    Planned,
    RunPage,
    Setting,
    render_run_page,
)
from truetune.report.stretches import Stretch
from truetune.runs.columns import columns_of

HARMFUL = "</script><script>alert('1')</script><img src=x onerror=alert(1)> {{ 7 * 7 }} \" onload=x"
SECTIONS = ["curves", "answers", "worst", "samples", "data", "plan", "settings", "environment"]


def metrics(steps: int) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = [{"step": 0, "eval_loss": 4.5}]
    for step in range(1, steps + 1):
        lines.append({"step": step, "loss": 4 - step / steps, "learning_rate": 1e-4, "num_tokens": 10 * step})
    return [*lines, {"step": steps, "eval_loss": 3.5}]


def page(told: str = "told", *, lines: list[dict[str, Any]] | None = None, **changes: Any) -> RunPage:
    """A page in which every text is `told`."""
    lines = metrics(60) if lines is None else lines
    judged = Judged(
        title=told,
        about=told,
        compared=(Compared(told, "1", "2", "-1 (-2 to -0.5)", "3 / 1 / 0", True),),
        answers=tuple(AnsweredRow(told, f"asked {told}", told, told, told, told) for _ in range(6)),
        answered=9,
        worst=(HardRow(told, "5", "6", "7", told, f"hard {told}"),),
        forgotten=told,
        lost=(told,),
        missed=(told,),
        others=((told, told),),
    )
    data = DataFacts(((told, told),), (Shares(told, ((told, 3),)),), (FoundRule(told, told, told, 2, told, told),))
    built = RunPage(
        name=told,
        status=told,
        tone="good",
        verdict=told,
        notes=(told,),
        date=told,
        version=told,
        figures=(Figure(told, told, told),),
        charts=charts(columns_of(lines, names=DRAWN)),
        axes=axes(columns_of(lines, names=DRAWN)),
        judged=judged,
        samples=(ShownRow(told, (Text("", "", (Stretch("read "), Stretch(f"learned {told}", "learned"))),), told),),
        data=data,
        planned=(Planned(told, told, told, told),),
        memory=((told, told),),
        settings=(Setting(told, told, told, told),),
        config=told,
        environment=((told, ((told, told),)),),
        command=told,
        missing=dict.fromkeys(SECTIONS, told),
    )
    return replace(built, **changes)


def test_what_comes_from_a_run_is_escaped_everywhere() -> None:
    source = render_run_page(page(HARMFUL))
    shown = Page(source)
    assert HARMFUL not in source
    assert html.escape(HARMFUL, quote=False)[:20] in source
    assert "49" not in shown.sections["settings"]
    assert len(shown.named("script")) == 5
    assert shown.named("img") == []
    assert_only_its_own_scripts_may_run(shown)
    assert_well_formed(shown)


def test_names_of_curves_cannot_leave_the_block_of_json() -> None:
    lines = [{"step": step, f"eval_{HARMFUL}": 0.5} for step in (1, 2)]
    source = render_run_page(page(lines=lines))
    shown = Page(source)
    assert len(shown.named("script")) == 5
    assert HARMFUL not in source
    assert json.loads(shown.scripts[0])["charts"][0]["name"] == HARMFUL.replace("_", " ")


def test_the_page_is_one_file_that_loads_nothing() -> None:
    source = render_run_page(page())
    shown = Page(source)
    assert_loads_nothing(shown, source)
    assert_only_its_own_scripts_may_run(shown)
    assert_well_formed(shown)


def test_every_section_is_there_and_can_be_gone_to() -> None:
    shown = Page(render_run_page(page()))
    links = [each["href"] for each in shown.named("a")]
    assert links == ["#main", *(f"#{name}" for name in SECTIONS)]
    for name in SECTIONS:
        assert "told" in shown.sections[name]


def test_a_page_without_anything_tells_why() -> None:
    empty = page(
        lines=[],
        figures=(),
        judged=None,
        samples=(),
        data=None,
        planned=(),
        memory=(),
        settings=(),
        config="",
        environment=(),
        command="",
        notes=(),
        missing={name: f"no {name} here" for name in SECTIONS},
    )
    shown = Page(render_run_page(empty))
    for name in SECTIONS:
        assert f"no {name} here" in shown.sections[name]
    assert_well_formed(shown)


def test_the_curves_in_the_page_are_those_of_the_run() -> None:
    shown = Page(render_run_page(page()))
    drawn = json.loads(shown.scripts[0])
    assert [chart["name"] for chart in drawn["charts"]] == ["Loss", "Learning rate"]
    training, trend, validation = drawn["charts"][0]["curves"]
    assert training["steps"] == list(range(1, 61))
    assert training["values"][-1] == 3.0
    assert (training["look"], trend["look"], validation["look"]) == ("faint", "line", "points")
    assert (validation["steps"], validation["values"]) == ([0, 60], [4.5, 3.5])
    assert drawn["axes"] == [
        {"name": "tokens", "steps": list(range(61)), "values": [float(10 * step) for step in range(61)]}
    ]


def test_each_chart_has_its_figures_in_a_table_for_who_does_not_see_it() -> None:
    shown = Page(render_run_page(page()))
    figures = shown.sections["curves"]
    assert len(shown.named("figure")) == 2
    assert figures.count("In figures") == 2
    assert "".join(["validation", "2", "4.5", "3.5", "3.5", "60", "4.5", "0"]) in figures
    for drawing in shown.named("svg"):
        assert drawing["role"] == "img"
        assert "from step 0 to 60" in drawing["aria-label"] or "from step 1 to 60" in drawing["aria-label"]


def test_learned_text_is_marked_and_more_answers_are_folded() -> None:
    shown = Page(render_run_page(page()))
    assert shown.marked("learned") == ["hard told", "coloured", "learned told"]
    assert "2 more answers" in shown.sections["answers"]
    assert "9 rows were answered" in shown.sections["answers"]


def test_a_difference_that_may_be_chance_says_so() -> None:
    assert "may be chance" not in render_run_page(page())
    judged = page().judged
    assert judged is not None
    unsure = replace(judged, compared=(replace(judged.compared[0], is_sure=False),))
    assert "may be chance" in render_run_page(page(judged=unsure))


def test_half_a_sign_and_control_characters_can_be_written() -> None:
    source = render_run_page(page("\ud83d and \x00"))
    source.encode("utf-8")
    assert "\\ud83d and \u2400" in source


@pytest.mark.parametrize("steps", [100_000])
def test_the_page_of_a_long_run_is_under_two_megabytes(steps: int) -> None:
    lines = [
        {
            "step": step,
            "loss": 1 / (step + 7),
            "grad_norm": 1.1 / (step + 3),
            "learning_rate": 2e-4 * (1 - step / steps),
            "tokens_per_second": 12_345.678 + 1 / (step + 1),
            "mean_token_accuracy": step / steps / 3,
            "num_tokens": 2_047 * step + 1,
            "epoch": step / 30_001 + 1e-9,
        }
        for step in range(steps)
    ]
    assert len(render_run_page(page(lines=lines)).encode()) < 2_000_000
