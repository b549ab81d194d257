"""The end of a training in 80 columns: sentences wrapped, commands whole."""

from dataclasses import replace

import pytest

from truetune.console.summary import show_outcome
from truetune.pipeline.review.outcome import Outcome
from truetune.report.run_page import Planned

OUTCOME = Outcome(
    verdict="finished: 120 of 120 steps in 3 min 04 s, 1,234 tokens a second",
    learned=(("learned", "23,456 tokens of 134,000 read"), ("validation", "a sentence of some length " * 5)),
    planned=(Planned("Steps", "120", "120", "+0%"), Planned("Peak memory", "3.10 GB", "", "")),
    places=(("run", "runs/one"), ("a-tracker-of-a-long-name", "https://host/" + "x" * 90)),
    next=(("talk", "truetune chat runs/one"),),
)


def shown(outcome: Outcome, capsys: pytest.CaptureFixture[str]) -> list[str]:
    show_outcome(outcome)
    return capsys.readouterr().out.splitlines()


def test_sentences_are_wrapped_beneath_each_other_and_commands_are_whole(capsys: pytest.CaptureFixture[str]) -> None:
    lines = shown(OUTCOME, capsys)
    assert lines[:3] == [OUTCOME.verdict, "", "learned      23,456 tokens of 134,000 read"]
    sentence = [line for line in lines if "a sentence" in line]
    assert len(sentence) == 2
    assert sentence[1].startswith(" " * 13)
    assert max(map(len, sentence)) <= 80
    assert f"a-tracker-of-a-long-name https://host/{'x' * 90}" in lines
    assert lines[-1] == "talk         truetune chat runs/one"


def test_the_plan_stands_beside_what_was_taken(capsys: pytest.CaptureFixture[str]) -> None:
    lines = shown(OUTCOME, capsys)
    head = next(place for place, line in enumerate(lines) if "planned" in line)
    assert lines[head : head + 3] == [
        "             planned          taken",
        "steps        120              120              +0%",
        "peak memory  3.10 GB",
    ]


def test_the_longest_time_that_is_planned_does_not_touch_what_was_taken(capsys: pytest.CaptureFixture[str]) -> None:
    short = replace(OUTCOME, planned=(Planned("Time", "less than a second", "6.1 s", "+510%"),))
    assert "time         less than a second 6.1 s            +510%" in shown(short, capsys)


def test_what_there_is_nothing_to_say_of_takes_no_room(capsys: pytest.CaptureFixture[str]) -> None:
    bare = Outcome("stopped by SIGTERM: 3 of 9 steps", (), (), (("run", "r"),), ())
    assert shown(bare, capsys) == ["stopped by SIGTERM: 3 of 9 steps", "", "run          r"]


def test_only_the_first_process_tells_it(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    assert shown(OUTCOME, capsys) == []
