"""bench/torture.py kills trainings, and what it says of them is true."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCH = Path(__file__).parents[1] / "bench"


@pytest.mark.skipif(sys.platform != "linux" or not shutil.which("cc"), reason="faults are preloaded on Linux")
def test_runs_that_are_killed_anywhere_and_resumed_end_with_the_same_bits(tmp_path: Path) -> None:
    options = ["--kills", "2", "--cold", "0", "--steps", "8", "--keep", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, str(BENCH / "torture.py"), *options], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 of 2 end bit-identical: 1 killed at a call, the rest at an instant" in done.stdout
    assert "0 half checkpoints were seen" in done.stdout


def test_what_differs_after_a_kill_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any) -> None:
    monkeypatch.syspath_prepend(str(BENCH))
    import torture

    expected = {"adapter": "a", "state": {"optimizer.pt": "b"}, "checkpoints": ["checkpoint-4"], "metrics": [1]}
    monkeypatch.setattr(torture, "outcome", lambda _: {**expected, "metrics": [2]})
    attempt = torture.Attempt(0, tmp_path)
    torture.compare(attempt, 0, expected)
    (tmp_path / "checkpoints" / "checkpoint-4").mkdir(parents=True)
    torture.look(attempt)
    assert torture.told([attempt], []) == 1
    printed = capsys.readouterr().out
    assert "0 of 1 end bit-identical" in printed
    assert "metrics differs" in printed
    assert "1 half checkpoints were seen" in printed
    failed = torture.Attempt(1, tmp_path)
    torture.compare(failed, 1, expected)
    assert failed.problems == ["the resumed run ended with status 1"]
