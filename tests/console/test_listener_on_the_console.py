"""A run is seen while it goes: a live view on a terminal, plain lines in files and in CI."""

import io
import math
import re
from dataclasses import replace

import pytest
from rich.console import Console

from truetune.console.listener import ConsoleListener
from truetune.console.training_view import LossCurve
from truetune.listener import StepEvent

EVENT = StepEvent(
    step=45,
    total_steps=99,
    epoch=1.4,
    loss=0.8312,
    tokens_per_second=1234.4,
    seconds_left=130.0,
    learning_rate=4.1e-4,
    memory_bytes=3_100_000_000,
    eval_loss=0.912,
    eval_step=40,
    next_checkpoint=60,
)


@pytest.fixture(autouse=True)
def no_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setenv("TERM", "xterm")


def heard(*events: StepEvent, is_terminal: bool, width: int = 80) -> str:
    """What a person sees of these steps, without colours and movements of the cursor."""
    file = io.StringIO()
    console = Console(file=file, force_terminal=is_terminal, width=width, highlight=False)
    listener = ConsoleListener(console)
    for event in events:
        listener.step(event)
    listener.close()
    return plain(file.getvalue())


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def test_a_terminal_shows_where_a_training_stands_in_80_columns() -> None:
    events = [replace(EVENT, step=step, loss=2.0 - step / 50) for step in range(1, 45)]
    seen = heard(*events, EVENT, is_terminal=True)
    last = "\n".join(seen.splitlines()[-5:])
    for fact in (
        "45 of 99",
        "2 min 10 s left",
        "0.8312",
        "4.1e-04",
        "1,234 tokens/s",
        "3.10 GB",
        "validation 0.9120 at step 40",
        "next checkpoint at 60",
    ):
        assert fact in last
    assert re.search("█.*▁", last)
    assert max(map(len, seen.replace("\r", "\n").splitlines())) <= 80


def test_what_is_not_known_yet_is_left_out() -> None:
    bare = StepEvent(step=1, total_steps=9, epoch=0.1, loss=2.5, tokens_per_second=math.nan, seconds_left=math.nan)
    seen = heard(bare, is_terminal=True)
    assert "1 of 9" in seen
    assert "nan" not in seen.lower()
    assert "None" not in seen


def test_bars_and_messages_stand_beside_the_training_and_go_when_they_are_done() -> None:
    file = io.StringIO()
    listener = ConsoleListener(Console(file=file, force_terminal=True, width=80))
    listener.step(EVENT)
    listener.progress("evaluating", 1, 2)
    listener.say("something worth a line")
    listener.progress("evaluating", 2, 2)
    before = len(file.getvalue())
    listener.step(replace(EVENT, step=46))
    listener.say("what is below is drawn anew")
    listener.close()
    assert "something worth a line" in file.getvalue()[:before]
    last = plain(file.getvalue()[before:])
    assert "46 of 99" in last
    assert "evaluating" not in last


def test_a_file_gets_plain_lines_and_each_evaluation_once() -> None:
    events = [replace(EVENT, step=step, eval_step=40 if step < 60 else 60) for step in range(41, 100)]
    seen = heard(*events, is_terminal=False)
    assert "\x1b" not in seen
    assert seen.count("validation loss 0.9120") == 2
    assert "step 40: validation loss" in seen
    assert "step 99 of 99: loss 0.8312  1,234 tokens/s" in seen
    assert len(seen.splitlines()) < 6


def test_a_terminal_in_ci_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    assert heard(EVENT, is_terminal=True).splitlines()[-1].startswith("step 45 of 99: loss 0.8312")


def test_the_curve_of_a_long_run_is_short_and_keeps_its_course() -> None:
    curve = LossCurve()
    for step in range(100_000):
        curve.add(math.nan if step % 1000 == 7 else 3.0 - step / 50_000)
    drawn = curve.drawn()
    assert 20 <= len(drawn) <= 48
    assert drawn == "".join(sorted(drawn, reverse=True))
    assert (drawn[0], drawn[len(drawn) // 2], drawn[-1]) == ("█", "▄", "▁")


def test_no_loss_draws_nothing_and_equal_ones_a_line() -> None:
    curve = LossCurve()
    assert curve.drawn() == ""
    for _ in range(5):
        curve.add(1.0)
    assert curve.drawn() == "▁" * 5
