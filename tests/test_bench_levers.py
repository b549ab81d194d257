"""bench/levers.py trains truetune with each lever, and every lever is connected to something."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import warm

BENCH = Path(__file__).parents[1] / "bench"
sys.path.insert(0, str(BENCH))

from engine_rows import prepare  # noqa: E402
from engine_truetune import LEVERS, Lever, changes, replaced, train_with_truetune  # noqa: E402
from gpu_check import made_up  # noqa: E402
from trial import Measure, Trial, Workload  # noqa: E402


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> Trial:
    folder, workload = tmp_path_factory.mktemp("levers"), Workload(256, 4, "answers")
    made_up(folder / "rows.jsonl", 12, range(60))
    prepared = prepare(
        {
            "folder": str(folder),
            "data": [str(folder / "rows.jsonl")],
            "model": "demo",
            "device": "cpu",
            "is_quick": True,
            "steps": 3,
            "workloads": [vars(workload)],
        }
    )
    data = str(folder / f"{workload.name}.jsonl")
    return Trial("truetune", workload, prepared["models"][""], data, warmup=1, precision="fp32", device="cpu")


@pytest.fixture(scope="module")
def defaults(trial: Trial) -> Measure:
    return train_with_truetune(trial)


# What compiled layers train, tests/model/test_compiled.py holds: compiling takes as long as all other levers.
@pytest.mark.parametrize("name", [name for name in LEVERS if name != "compiled"])
def test_a_lever_trains_the_same_steps(name: str, trial: Trial, defaults: Measure) -> None:
    lever = LEVERS[name]
    if lever.needs_cuda:
        pytest.skip("there is no lever on a CPU")
    if lever.needs:
        pytest.importorskip(lever.needs)
    pulled = train_with_truetune(trial, lever=lever)
    assert pulled.counted == defaults.counted
    assert len(pulled.losses) == 3
    near = 1e-4 if lever.keeps_losses else 0.05
    assert pulled.losses == pytest.approx(defaults.losses, rel=near)
    if name in ("4bit", "8bit", "full"):
        assert pulled.losses != pytest.approx(defaults.losses, rel=1e-6)


def test_rows_that_accumulate_go_through_one_by_one(trial: Trial) -> None:
    assert changes(LEVERS["accumulation"], trial) == {
        "training.per_device_train_batch_size": 1,
        "training.gradient_accumulation_steps": 4,
    }


def test_a_lever_that_is_connected_to_nothing_fails(trial: Trial) -> None:
    lever = Lever("nothing", replaces="truetune.model.slices.largest", by=len)
    with pytest.raises(RuntimeError, match="not what truetune calls"):
        train_with_truetune(trial, lever=lever)


def test_a_function_that_is_gone_cannot_be_replaced() -> None:
    with pytest.raises(AttributeError), replaced("truetune.model.slices.gone", by=len):
        pass


def test_what_was_replaced_is_back_afterwards(trial: Trial) -> None:
    from truetune.training import computing

    own = computing.slices
    train_with_truetune(trial, lever=LEVERS["slices-none"])
    assert computing.slices is own


def test_the_table_has_a_line_of_ratios_for_each_lever() -> None:
    levers = ["checkpointing"]
    command = warm.python(BENCH / "levers.py", "--quick", "--levers", *levers)
    environment = {**os.environ, "WARM_PYTHON": warm.executable()}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert "truetune's defaults: " in done.stdout
    for name in levers:
        (line,) = (line for line in done.stdout.splitlines() if line.startswith(f"  {name} "))
        assert line.count("(") == 3
        assert "0.000%" in line


def test_a_lever_that_cannot_be_pulled_here_is_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import levers

    monkeypatch.setattr(levers, "find_spec", lambda _: None)
    assert levers.movable(["4bit", "offloading", "full"], "cpu") == ["full"]
    assert levers.movable(["offloading"], "cuda") == ["offloading"]
    said = capsys.readouterr().err
    assert "4bit is left out: bitsandbytes is not installed" in said
    assert "offloading is left out: it does nothing on cpu" in said


def test_a_lever_that_failed_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    import levers

    measure = Measure(1.0, 1.0, [2.0, 2.0], 10)
    levers.tell_lever("full", [None], [measure])
    assert capsys.readouterr().out.split() == ["full", "failed"]
    levers.tell_lever("full", [None, Measure(2.0, 3.0, [2.0, 4.0], 20)], [measure, measure])
    words = capsys.readouterr().out.split()
    assert words[:8] == [
        "full",
        "2.000",
        "(2.000-2.000)",
        "3.000",
        "(3.000-3.000)",
        "0.500",
        "(0.500-0.500)",
        "+100.000%",
    ]
