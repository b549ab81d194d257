"""bench/engine.py sets its contestants side by side, on the same rows."""

import json
import math
import os
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from types import ModuleType

import pytest

import warm

BENCH = Path(__file__).parents[1] / "bench"


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCH))
    import engine

    return engine


def test_contestants_are_measured_and_agree_in_fp32(tmp_path: Path) -> None:
    kept, names = tmp_path / "measures.json", ["guide", "trl-best", "truetune"]
    done = subprocess.run(
        warm.python(BENCH / "engine.py", "--quick", "--json", kept, "--contestants", *names),
        env={**os.environ, "WARM_PYTHON": warm.executable()},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    ((_, measures),) = json.loads(kept.read_text()).items()
    assert list(measures) == names
    for name, (measure,) in measures.items():
        (line,) = (line for line in done.stdout.splitlines() if line.startswith(f"  {name}  "))
        assert "nan" not in line
        assert "inf" not in line
        numbers = [measure["seconds"], measure["cpu_seconds"], measure["peak_bytes"], *measure["losses"]]
        assert all(math.isfinite(number) and number > 0 for number in numbers)
        assert measure["losses"] == pytest.approx(measures["trl-best"][0]["losses"], rel=1e-4)
    assert "truetune next to trl-best" in done.stdout
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("  truetune counted"))
    assert ": as prepared; " in line


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
    unneeded = 2 * (8 * 8 + 2 * 8 * 4)
    expected = 3 * (4 * frozen + 6 * adapter) - unneeded + 4 * 8 * 100 * 0.5 + 12 * 3 * 8 * 3
    assert engine.operations_per_token(workload, prepared, first=1) == pytest.approx(expected)


def test_the_ceiling_is_the_rate_of_the_fastest_product(engine: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    import engine_rows

    monkeypatch.setattr(engine_rows, "product_rate", lambda inside, outside, *_: inside * outside)
    request = {"precision": "fp32", "device": "cpu", "sizes": [(2, 3), (5, 4), (3, 3)]}
    assert engine_rows.ceiling(request) == {"flops": 20}


def test_a_product_s_rate_is_measured(engine: ModuleType) -> None:
    import torch
    from engine_rows import product_rate

    assert 1e6 < product_rate(64, 64, torch.float32, "cpu") < 1e14


@pytest.mark.parametrize("contestant", ["truetune", "checkpointing"])
def test_truetune_has_the_environment_of_its_command(contestant: str) -> None:
    theirs = environment_after("from truetune.environment import set_environment as s; s()")
    assert theirs["TRANSFORMERS_VERBOSITY"] == "error"
    assert (
        theirs.items()
        <= environment_after(f"from engine_child import set_environment as s; s({contestant!r})").items()
    )


def test_other_contestants_have_the_environment_of_their_users() -> None:
    assert environment_after("from engine_child import set_environment as s; s('trl')") == {
        "OMP_WAIT_POLICY": "PASSIVE",
        "TOKENIZERS_PARALLELISM": "false",
        "TQDM_DISABLE": "1",
        "HF_HUB_OFFLINE": "1",
    }


def environment_after(statement: str) -> dict[str, str]:
    """What the statement adds to an environment without torch in it."""
    bare = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    program = f"import json, os, sys\nbefore = dict(os.environ)\n{statement}\nassert 'torch' not in sys.modules\n"
    program += "print(json.dumps({name: value for name, value in os.environ.items() if name not in before}))"
    done = subprocess.run([sys.executable, "-c", program], cwd=BENCH, env=bare, capture_output=True, check=True)
    added: dict[str, str] = json.loads(done.stdout)
    return added


def test_a_contestant_that_fails_is_told_and_the_others_go_on(
    tmp_path: Path, engine: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    bench = engine.Bench(tmp_path, Namespace(warmup=1), [])
    prepared = engine.Prepared("cpu", "fp32", {"": str(tmp_path)}, {})
    assert bench.train("nobody", engine.Workload(64, 1, "all"), prepared) is None
    assert "nobody failed" in capsys.readouterr().err


def test_a_contestant_with_an_environment_of_its_own_runs_in_it(
    tmp_path: Path, engine: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho not the usual one\nexit 1\n")
    python.chmod(0o755)
    bench = engine.Bench(tmp_path, Namespace(warmup=1), [], {"llamafactory": python})
    prepared = engine.Prepared("cpu", "fp32", {"": str(tmp_path)}, {})
    assert bench.train("llamafactory", engine.Workload(64, 1, "all"), prepared) is None
    assert "not the usual one" in capsys.readouterr().err


def test_a_contestant_that_counts_other_rows_is_found_out(
    tmp_path: Path, engine: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    workload = engine.Workload(64, 1, "answers")
    prepared = engine.Prepared(
        "cpu", "fp32", {}, {workload.name: [{"tokens": 40, "supervised": 9, "pairs": 300}] * 2}
    )
    for pairs, said in ((600, "as prepared"), (610, "NOT WHAT WAS PREPARED")):
        measure = engine.Measure(1.0, 1.0, [2.0, 2.5], 10, {"tokens": 80, "supervised": 18, "pairs": pairs})
        engine.tell_counts("llamafactory", [measure], prepared, workload)
        line = capsys.readouterr().out
        assert said in line
        assert "late loss 2.5" in line
    engine.tell_counts("llamafactory", [engine.Measure(1.0, 1.0, [2.0, 2.5], 10)], prepared, workload)
    assert "NOT WHAT WAS PREPARED" in capsys.readouterr().out


def test_a_pack_falls_apart_into_its_samples(engine: ModuleType) -> None:
    from engine_trl import step_of_rows
    from trial import samples

    pack = {"input_ids": [1, 2, 3, 4, 5], "labels": [-100, 2, -100, 4, 5], "seq_lengths": [2, 3]}
    assert list(samples(pack)) == [([1, 2], [-100, 2]), ([3, 4, 5], [-100, 4, 5])]
    assert sorted(step_of_rows([pack, pack])["input_ids"]) == [[1, 2], [1, 2], [3, 4, 5], [3, 4, 5]]


def test_llamafactory_gets_packs_in_its_own_form(tmp_path: Path, engine: ModuleType) -> None:
    from engine_llamafactory import arguments, pack
    from trial import Trial

    sequence = {"input_ids": [11, 12, 13, 14, 15], "labels": [-100, 12, -100, 14, 15], "seq_lengths": [2, 3]}
    assert pack(sequence, 8, pad=7) == {
        "input_ids": [11, 12, 13, 14, 15, 7, 7, 7],
        "labels": [-100, 12, -100, 14, 15, -100, -100, -100],
        "attention_mask": [1, 1, 2, 2, 2, 0, 0, 0],
        "position_ids": [0, 1, 0, 1, 2, 0, 0, 0],
    }
    data = tmp_path / "steps.jsonl"
    for length, width in ((7, 8), (8, 16)):
        data.write_text(json.dumps([{**sequence, "input_ids": list(range(length))}]) + "\n")
        trial = Trial("llamafactory", engine.Workload(8, 1, "answers"), "model", str(data), 1, "bf16", "cpu")
        settings = arguments(trial)
        assert (settings["cutoff_len"], settings["max_steps"], settings["lora_rank"]) == (width, 1, 16)


def test_what_llamafactory_computes_is_counted_at_its_model(engine: ModuleType) -> None:
    import torch
    from engine_llamafactory import counter

    seen = torch.tensor([[1, 0, 0, 0], [0, 1, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0]], dtype=torch.bool)
    mask = torch.zeros(1, 1, 4, 4).masked_fill(~seen, torch.finfo(torch.float32).min)
    model, counts = torch.nn.Identity(), counter()
    counts.on_train_begin(None, None, None, model=model)
    counts.count(model, (), {"attention_mask": mask, "labels": torch.tensor([[-100, -100, 5, -100]])})
    assert counts.total == {"tokens": 3, "supervised": 1, "pairs": 4}
    assert model._forward_pre_hooks


def test_llamafactory_s_environment_is_made_nowhere_else(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    done = subprocess.run(["bash", str(BENCH / "llamafactory.sh"), str(tmp_path)], capture_output=True, check=False)
    assert done.returncode == 1
    assert b"is no virtual environment" in done.stderr
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]
