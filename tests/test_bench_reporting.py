"""bench/reporting.py tells what reporting costs, and fails where that is more than it may be."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

BENCH = Path(__file__).parents[1] / "bench"
sys.path.insert(0, str(BENCH))

import reporting  # noqa: E402
from reporting_child import Mark, Watch  # noqa: E402

STEPS = 10
CHEAP = Mark(clock=20.0, cpu=40.0, own_clock=0.1, own_cpu=0.08, beside_cpu=0.12)


def test_reporting_is_held_to_its_share_of_the_cpu_and_of_the_clock(capsys: pytest.CaptureFixture[str]) -> None:
    assert reporting.tell_own([CHEAP], STEPS, is_quick=False) == 0
    said = capsys.readouterr().out
    assert "8.00 (8.00-8.00) ms of CPU in the training's thread, 12.00 (12.00-12.00) ms beside it" in said
    assert said.count("0.500% (0.500%-0.500%)") == 2
    assert "within" in said
    for dear in (replace(CHEAP, own_clock=0.21), replace(CHEAP, own_cpu=0.3), replace(CHEAP, beside_cpu=0.33)):
        assert reporting.tell_own([dear], STEPS, is_quick=False) == 1
        assert "MISSED" in capsys.readouterr().out
        assert reporting.tell_own([CHEAP, dear, CHEAP], STEPS, is_quick=False) == 0, "the median is what counts"
        capsys.readouterr()


def test_every_way_stands_in_the_same_places_over_two_rounds() -> None:
    ways = ["all", "view", "lines", "none"]
    places = [[reporting.turns(ways, number).index(way) for number in (0, 1)] for way in ways]
    assert {sum(each) for each in places} == {len(ways) - 1}


def test_a_tiny_model_misses_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert reporting.tell_own([replace(CHEAP, own_clock=5.0)], STEPS, is_quick=True) == 0
    assert "say nothing" in capsys.readouterr().out


def test_only_the_steps_behind_the_first_are_counted_and_what_tells_them_is() -> None:
    def tell(engine: SimpleNamespace) -> None:
        engine.told += 1
        sum(range(200_000))

    engine = SimpleNamespace(told=0, state=SimpleNamespace(global_step=0, max_steps=3))
    watch = Watch(warmup=1)
    told = watch.around(tell)
    for step in (1, 2, 3, 3):  # The end of an epoch is told as a step is.
        engine.state.global_step = step
        told(engine)
    assert engine.told == 4
    assert list(watch.marks) == [1, 3]
    taken = watch.taken
    assert 0 < taken.own_cpu <= taken.cpu
    assert taken.own_clock <= taken.clock


@pytest.mark.skipif(os.name == "nt", reason="there are no pseudo-terminals")
def test_what_a_child_writes_to_the_terminal_is_kept() -> None:
    code = "import os, sys; print(sys.stderr.isatty(), *os.get_terminal_size())"
    with reporting.terminal() as (there, seen):
        subprocess.run([sys.executable, "-c", code], stdout=there, stderr=there, check=True)
    assert bytes(seen).split() == [b"True", b"100", b"30"]


@pytest.mark.timeout(600)  # Two processes that import torch and train.
def test_all_reporting_is_on_in_one_training_and_off_in_the_other(tmp_path: Path) -> None:
    kept = tmp_path / "kept.json"
    command = [sys.executable, str(BENCH / "reporting.py"), "--quick", "--json", str(kept)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert re.search(r"4 steps of 2 rows, all but the first timed; trackers: \w", done.stdout)
    assert "all-0: " in done.stderr
    marks = {way: [Mark(**each) for each in found] for way, found in json.loads(kept.read_text()).items()}
    ((told,), (silent,)) = marks["all"], marks["none"]
    assert silent.beside_cpu < told.beside_cpu
    assert silent.own_cpu < told.own_cpu
