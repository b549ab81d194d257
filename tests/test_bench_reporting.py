"""bench/reporting.py tells what reporting costs, and fails where that is more than it may be."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import pytest

import warm

BENCH = Path(__file__).parents[1] / "bench"
sys.path.insert(0, str(BENCH))

import reporting  # noqa: E402
from reporting_child import Mark, Watch  # noqa: E402

CHEAP = Mark(clock=2.0, cpu=4.0, own_clock=0.01, own_cpu=0.008, beside_cpu=0.012)


def test_reporting_is_held_to_its_share_of_the_cpu_and_of_the_clock(capsys: pytest.CaptureFixture[str]) -> None:
    assert reporting.tell_own([CHEAP], is_quick=False) == 0
    said = capsys.readouterr().out
    assert "8.00 (8.00-8.00) ms of CPU in the training's thread, 12.00 (12.00-12.00) ms beside it" in said
    assert said.count("0.500% (0.500%-0.500%)") == 2
    assert "within" in said
    for dear in (replace(CHEAP, own_clock=0.021), replace(CHEAP, own_cpu=0.03), replace(CHEAP, beside_cpu=0.033)):
        assert reporting.tell_own([dear], is_quick=False) == 1
        assert "MISSED" in capsys.readouterr().out
        assert reporting.tell_own([CHEAP, dear, CHEAP], is_quick=False) == 0, "the median is what counts"
        capsys.readouterr()


def test_a_tiny_model_misses_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert reporting.tell_own([replace(CHEAP, own_clock=0.5)], is_quick=True) == 0
    assert "say nothing" in capsys.readouterr().out


def test_a_mean_tells_how_far_it_may_be_off() -> None:
    assert reporting.mean_ratio([1.01, 1.03]) == "+2.00% (± 1.00%)"


def test_each_training_takes_the_first_step_of_two_as_often() -> None:
    order: list[str] = []
    ways = [SimpleNamespace(step=lambda name=name: order.append(name) or name) for name in ("told", "silent")]
    pairs = [reporting.in_turns(*ways, step) for step in (1, 2, 3, 4)]
    assert order == ["told", "silent", "silent", "told"] * 2
    assert pairs == [reporting.Pair("told", "silent")] * 4


def test_each_step_is_counted_once_with_what_tells_of_it_and_waits_for_its_turn() -> None:
    answers, turns = StringIO(), StringIO("\n" * 2)

    def tell(engine: SimpleNamespace) -> None:
        engine.told += 1
        sum(range(200_000))

    engine = SimpleNamespace(told=0, state=SimpleNamespace(global_step=0, max_steps=3))
    told = Watch(answers, turns).around(tell)
    for step in (1, 2, 3, 3):  # The end of an epoch is told as a step is.
        engine.state.global_step = step
        told(engine)
    assert engine.told == 4
    taken = [Mark(**json.loads(line)) for line in answers.getvalue().splitlines()]
    assert len(taken) == 3
    assert all(0 < each.own_cpu <= each.cpu and each.own_clock <= each.clock for each in taken)
    assert turns.read() == "", "the last step waits for nothing"


def test_a_training_that_fails_ends_the_bench_with_what_it_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", warm.executable())
    options = SimpleNamespace(model="demo", device="cpu", quick=True, batch=1, steps=4)
    bench = SimpleNamespace(folder=tmp_path, options=options, data="no such file")
    with (
        pytest.raises(SystemExit, match="no such file"),
        reporting.training(bench, "none", [], tmp_path / "a") as one,
    ):
        one.taken()


@pytest.mark.skipif(os.name == "nt", reason="there are no pseudo-terminals")
def test_what_a_child_writes_to_the_terminal_is_kept() -> None:
    code = "import os, sys; print(sys.stderr.isatty(), *os.get_terminal_size())"
    with reporting.terminal() as (there, seen):
        subprocess.run([sys.executable, "-c", code], stdout=there, stderr=there, check=True)
    assert bytes(seen).split() == [b"True", b"100", b"30"]


def test_all_reporting_is_on_in_one_training_and_off_in_the_other(tmp_path: Path) -> None:
    kept = tmp_path / "kept.json"
    command = warm.python(BENCH / "reporting.py", "--quick", "--json", kept)
    environment = {**os.environ, "WARM_PYTHON": warm.executable()}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert re.search(r"1 x 4 steps of 2 rows, all but the first timed; trackers: \w", done.stdout)
    assert done.stderr.count("all 0 step ") == 3
    pairs = json.loads(kept.read_text())["all"]
    assert len(pairs) == 3
    for what in ("beside_cpu", "own_cpu"):
        told, silent = (sum(pair[side][what] for pair in pairs) for side in ("way", "silent"))
        assert silent < told
