"""bench/processes.py trains the same steps in one process and in two, and compares them."""

import os
import re
import subprocess
from pathlib import Path

import pytest

import warm

BENCH = Path(__file__).parents[1] / "bench"


def test_one_process_and_two_are_compared_on_the_same_steps() -> None:
    command = warm.python(BENCH / "processes.py", "--quick")
    environment = {**os.environ, "WARM_PYTHON": warm.executable()}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.partition(":")[0] for line in lines[:3]] == ["1 x 1 thread", "2 x 1 thread", "1 x all threads"]
    losses = [float(found) for found in re.findall(r"loss ([\d.]+)", done.stdout)]
    assert losses == pytest.approx(losses[:1] * 3, abs=0.01 * losses[0])
    assert "2 x 1 thread: " in lines[3]
    assert "times the tokens/s of 1 x 1 thread" in lines[3]
    assert lines[5].startswith("launch: ")
