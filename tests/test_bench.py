"""The benchmarks run, each by one command, on a tiny model."""

import os
import subprocess
from pathlib import Path

import pytest

import warm
from conftest import arithmetic_rows, write_jsonl

BENCH = Path(__file__).parents[1] / "bench"


@pytest.mark.parametrize(
    ("program", "words"),
    [
        (["preparation.py", "--rounds", "1", "--model", "BASE"], "of encode_batch's rate"),
        (["preparation_memory.py", "--rows", "200", "2000", "--model", "BASE"], "bytes a row more"),
        (["preparing.py", "--rows", "60", "--rounds", "1", "--model", "BASE"], "times as fast"),
        (
            ["streaming.py", "--model", "BASE", "--rows", "30", "--block", "20", "--steps", "2", "--rounds", "1"],
            "rate streamed / prepared",
        ),
        (["report.py", "--steps", "9000", "--rounds", "1"], "the outlier is drawn"),
        (["live.py", "--steps", "9000", "--rounds", "1"], "the measure, each under"),
        (["evaluate.py", "--rows", "6", "--rounds", "1", "--model", "BASE"], "times as fast"),
        (["check.py", "--rows", "200", "--rules", "200", "--repeats", "1"], "word triples"),
        (
            ["generate.py", "BASE", "--rounds", "1", "--prompts", "4", "--max-new-tokens", "8"],
            "times the rate of one by one",
        ),
    ],
)
def test_a_benchmark_prints_its_ratios(tiny_base: Path, tmp_path: Path, program: list[str], words: str) -> None:
    data = write_jsonl(tmp_path / "rows.jsonl", arithmetic_rows(50))
    options = [str(tiny_base) if word == "BASE" else word for word in program[1:]]
    done = subprocess.run(
        warm.python(BENCH / program[0], *options),
        env={**os.environ, "TRUETUNE_DATA": str(data), "WARM_PYTHON": warm.executable()},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert words in done.stdout
