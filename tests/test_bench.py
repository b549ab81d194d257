"""The benchmarks run, each by one command."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import arithmetic_rows, write_jsonl

BENCH = Path(__file__).parents[1] / "bench"


@pytest.mark.real
@pytest.mark.parametrize(
    ("program", "words"),
    [
        (["preparation.py", "--rounds", "1"], "of encode_batch's rate"),
        (["preparation_memory.py", "--rows", "200", "2000"], "bytes a row more"),
        (["report.py", "--steps", "9000", "--rounds", "1"], "the outlier is drawn"),
        (["evaluate.py", "--rows", "6", "--rounds", "1"], "times as fast"),
        (["check.py", "--rows", "200", "--rules", "200", "--repeats", "1"], "word triples"),
        (["generate.py", "--rounds", "1", "--prompts", "4", "--max-new-tokens", "8"], "times the rate of one by one"),
    ],
)
def test_a_benchmark_prints_its_ratios(tmp_path: Path, program: list[str], words: str) -> None:
    data = write_jsonl(tmp_path / "rows.jsonl", arithmetic_rows(50))
    done = subprocess.run(
        [sys.executable, str(BENCH / program[0]), *program[1:]],
        env={**os.environ, "TRUETUNE_DATA": str(data)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert words in done.stdout
