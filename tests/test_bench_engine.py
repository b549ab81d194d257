"""bench/engine.py sets its contestants side by side, on the same rows."""

import json
import math
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from types import ModuleType

import pytest

BENCH = Path(__file__).parents[1] / "bench"


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCH))
    import engine

    return engine


@pytest.mark.timeout(600)  # Six processes that import torch: 40 s on two idle cores, minutes on busy ones.
def test_all_contestants_are_measured_and_agree_in_fp32(tmp_path: Path) -> None:
    kept = tmp_path / "measures.json"
    done = subprocess.run(
        [sys.executable, str(BENCH / "engine.py"), "--quick", "--json", str(kept)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    ((_, measures),) = json.loads(kept.read_text()).items()
    assert list(measures) == ["guide", "trl", "trl-best", "truetune"]
    for name, (measure,) in measures.items():
        (line,) = (line for line in done.stdout.splitlines() if line.startswith(f"  {name}  "))
        assert "nan" not in line
        assert "inf" not in line
        numbers = [measure["seconds"], measure["cpu_seconds"], measure["peak_bytes"], *measure["losses"]]
        assert all(math.isfinite(number) and number > 0 for number in numbers)
        assert measure["losses"] == pytest.approx(measures["trl-best"][0]["losses"], rel=1e-4)
    assert "truetune next to trl-best" in done.stdout


def test_the_ceiling_counts_the_operations_of_its_formula(tmp_path: Path, engine: ModuleType) -> None:
    shape = {
        "hidden_size": 8,
        "intermediate_size": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 100,
    }
    (tmp_path / "config.json").write_text(json.dumps(shape))
    counts = [{"tokens": 9, "supervised": 9, "pairs": 9}, {"tokens": 10, "supervised": 5, "pairs": 30}]
    workload = engine.Workload(512, 4, "answers")
    prepared = engine.Prepared("cpu", "fp32", {"": str(tmp_path)}, {workload.name: counts})
    frozen = 8 * 8 * 2 + 8 * 4 * 2 + 3 * 8 * 16
    adapter = 16 * (16 * 2 + 12 * 2 + 24 * 3)
    expected = 3 * (4 * frozen + 6 * adapter) + 4 * 8 * 100 * 0.5 + 12 * 3 * 8 * 3
    assert engine.operations_per_token(workload, prepared, first=1) == pytest.approx(expected)


def test_a_contestant_that_fails_is_told_and_the_others_go_on(
    tmp_path: Path, engine: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    bench = engine.Bench(tmp_path, Namespace(warmup=1), [])
    prepared = engine.Prepared("cpu", "fp32", {"": str(tmp_path)}, {})
    assert bench.train("nobody", engine.Workload(64, 1, "all"), prepared) is None
    assert "nobody failed" in capsys.readouterr().err


def test_a_pack_falls_apart_into_its_samples(engine: ModuleType) -> None:
    from engine_trl import samples, step_of_rows

    pack = {"input_ids": [1, 2, 3, 4, 5], "labels": [-100, 2, -100, 4, 5], "seq_lengths": [2, 3]}
    assert list(samples(pack)) == [([1, 2], [-100, 2]), ([3, 4, 5], [-100, 4, 5])]
    assert sorted(step_of_rows([pack, pack])["input_ids"]) == [[1, 2], [1, 2], [3, 4, 5], [3, 4, 5]]
