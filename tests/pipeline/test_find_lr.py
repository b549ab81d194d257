"""The range test of a run: it trains what the run would train, at rising rates, and leaves nothing behind."""

import hashlib
import json
import math
import os
import signal
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import TrainerCallback

import truetune
import warm
from conftest import CHATML, arithmetic_rows, byte_tokenizer, tiny_model, write_jsonl
from heard import FAST, Heard
from tiny_runs import LORA, ROWS, Trained, architecture, job
from truetune.console.plans import curve_lines
from truetune.model.adapter import add_adapter
from truetune.pipeline.find_lr import RangeTest, compared, range_job
from truetune.pipeline.find_lr import _train_rising as train_rising
from truetune.planning.range_test import draw_curve, rising_rates
from truetune.training.range_test import RisingRate
from truetune.training.session import TrainingRows


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_jsonl(tmp_path_factory.mktemp("data") / "sums.jsonl", arithmetic_rows(24))


@pytest.fixture
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working, a temporary and a cache folder of the test's own."""
    for name in ("here", "temporary", "cache"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    monkeypatch.setenv("TRUETUNE_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def found(tiny_base: Path, rows: Path) -> RangeTest:
    return truetune.find_lr(model=str(tiny_base), data=rows, steps=20, learning_rate=1e-2, **QUICK)


QUICK = {**FAST, "gradient_accumulation_steps": 1}
QUICK.pop("learning_rate")


class AppliedRates(TrainerCallback):
    """Remembers the rates with which the optimizer takes its steps."""

    def __init__(self) -> None:
        self.rates: list[set[float]] = []

    def on_pre_optimizer_step(self, *_: Any, optimizer: Any = None, **__: Any) -> None:
        self.rates.append({group["lr"] for group in optimizer.param_groups})


def test_each_optimizer_step_is_taken_at_its_rate(tmp_path: Path) -> None:
    rates, applied = rising_rates([1e-3], 5), AppliedRates()
    rising = RisingRate(rates, is_over=lambda _: False)
    trained = Trained(
        tmp_path,
        ROWS,
        callbacks=[rising, applied],
        lr_scheduler_type="constant",
        gradient_accumulation_steps=2,
        max_steps=6,
    )
    assert applied.rates == [{rate} for rate in (*rates, rates[-1])]
    assert rising.losses == trained.logged("loss")
    assert rising.losses == pytest.approx([event.loss for event in trained.heard.steps])


def test_each_step_of_lora_plus_is_taken_at_both_of_its_rates(tmp_path: Path) -> None:
    rates, applied = rising_rates([1e-3], 4), AppliedRates()
    model = add_adapter(tiny_model(), LORA, seed=0)
    rising = RisingRate(rates, is_over=lambda _: False)
    settings = {"model": model, "lr_scheduler_type": "constant", "max_steps": 4, "loraplus_lr_ratio": 16.0}
    Trained(tmp_path, ROWS, callbacks=[rising, applied], **settings)
    assert [sorted(each) for each in applied.rates] == [pytest.approx([rate, 16 * rate]) for rate in rates]


def test_groups_of_weights_that_learn_faster_keep_their_ratio() -> None:
    groups = [{"lr": 1.0, "initial_lr": 1e-3}, {"lr": 1.0, "initial_lr": 1.6e-2}]
    arguments, state = SimpleNamespace(learning_rate=1e-3), SimpleNamespace(global_step=1)
    rising = RisingRate([1e-5, 1e-4], is_over=lambda _: False)
    rising.on_step_begin(arguments, state, None, optimizer=SimpleNamespace(param_groups=groups))
    assert [group["lr"] for group in groups] == pytest.approx([1e-4, 1.6e-3])


def test_training_ends_with_the_step_whose_loss_says_so(tmp_path: Path) -> None:
    rising = RisingRate([1e-3] * 10, is_over=lambda losses: len(losses) == 3)
    assert Trained(tmp_path, ROWS, callbacks=[rising], max_steps=10).result.steps == 3
    assert len(rising.losses) == 3


def test_a_tests_job_is_the_runs_but_for_what_a_test_has_none_of(tmp_path: Path) -> None:
    own = job(tmp_path, weight_decay=0.1, max_grad_norm=0.3, warmup_steps=3, save_strategy="steps")
    tested = range_job(own, steps=7)
    changed = {name for name in own.__slots__ if getattr(own, name) != getattr(tested, name)}
    assert changed == {"max_steps", "lr_scheduler_type", "warmup_steps", "save_strategy"}
    assert tested.max_steps == 8


def test_a_rate_is_suggested_with_its_curve_and_the_setting_to_paste(found: RangeTest) -> None:
    assert len(found.curve.points) == 20
    low, high = found.curve.points[0].learning_rate, found.curve.points[-1].learning_rate
    assert (low, high) == pytest.approx((5e-6, 1.0))
    assert found.suggestion is not None
    assert low < found.suggestion < high
    assert found.setting == f"training.learning_rate={found.suggestion:g}"
    assert found.configured == 1e-2
    assert found.held["max_grad_norm"] == 1.0
    assert any("rough guide" in note for note in found.notes)
    assert any("rows were read 1.7 times" in note for note in found.notes)


def test_what_is_tested_is_what_trains(found: RangeTest, tiny_base: Path, rows: Path, tmp_path: Path) -> None:
    settings = {**QUICK, "learning_rate": 5e-6, "warmup_steps": 0, "max_steps": 2, "lr_scheduler_type": "constant"}
    run = truetune.train(model=str(tiny_base), data=rows, output_dir=tmp_path / "run", **settings)
    assert run.losses == [found.curve.start, found.curve.points[0].loss]


@pytest.mark.usefixtures("_elsewhere")
def test_nothing_is_left_behind_but_prepared_rows(tiny_base: Path, rows: Path, tmp_path: Path) -> None:
    before = digests(tiny_base)
    truetune.find_lr(model=str(tiny_base), data=rows, steps=5, save_strategy="steps", save_steps=1, **QUICK)
    assert digests(tiny_base) == before
    assert list((tmp_path / "here").iterdir()) == []
    assert list((tmp_path / "temporary").iterdir()) == []
    assert {path.name for path in (tmp_path / "cache").iterdir()} <= {"prepared"}


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_a_rate_far_too_high_ends_the_test_early_and_says_where(tiny_base: Path, rows: Path) -> None:
    listener = Heard()
    found = truetune.find_lr(
        model=str(tiny_base), data=rows, steps=40, learning_rate=1e4, listener=listener, method="full", **QUICK
    )
    assert found.curve.diverged_at is not None
    assert len(found.curve.points) < 40
    assert found.curve.points[-1].learning_rate == found.curve.diverged_at < 1e4
    assert any("where training broke" in note for note in found.notes)
    assert not any(line == "step 41 of 41" for line in listener.lines)


def test_two_rows_from_python_are_enough(tiny_base: Path) -> None:
    found = truetune.find_lr(model=str(tiny_base), data=arithmetic_rows(2), steps=5, **QUICK)
    assert len(found.curve.points) == 5


def test_packs_are_tested_as_packs(tiny_base: Path, rows: Path) -> None:
    found = truetune.find_lr(model=str(tiny_base), data=rows, steps=5, packing=True, max_length=256, **QUICK)
    assert found.held["packing"] is True


def test_rows_are_padded_for_a_model_that_mixes_neighbours(rows: Path, tmp_path: Path) -> None:
    architecture("Bloom").save_pretrained(tmp_path / "leaking")
    byte_tokenizer(chat_template=CHATML).save_pretrained(tmp_path / "leaking")
    listener = Heard()
    settings = {**QUICK, "packing": True, "max_length": 256, "r": 4}
    with pytest.raises(truetune.BackendError, match=r"data\.packing"):
        truetune.find_lr(model=str(tmp_path / "leaking"), data=rows, steps=5, listener=listener, **settings)
    found = truetune.find_lr(
        model=str(tmp_path / "leaking"), data=rows, steps=5, listener=listener, **{**settings, "packing": False}
    )
    assert "rows are padded instead" in listener.text()
    assert len(found.curve.points) == 5


def test_a_run_for_unsloth_is_tested_on_trl_and_told_so(tiny_base: Path, rows: Path) -> None:
    listener = Heard()
    found = truetune.find_lr(model=str(tiny_base), data=rows, steps=5, backend="unsloth", listener=listener, **QUICK)
    assert found.held["backend"] == "trl"
    assert "warning: training.backend: the test runs on trl" in listener.text()


def test_too_few_steps_are_refused_before_anything_loads() -> None:
    with pytest.raises(truetune.ConfigError, match="at least 5"):
        truetune.find_lr(model="nowhere", data="nothing.jsonl", steps=4)


class Impatient(Heard):
    """Presses Ctrl-C at the twelfth step."""

    def step(self, event: Any) -> None:
        if event.step == 12:
            signal.raise_signal(signal.SIGINT)


@pytest.mark.usefixtures("_elsewhere")
def test_a_test_that_is_stopped_suggests_nothing_and_leaves_no_checkpoint(
    tiny_base: Path, rows: Path, tmp_path: Path
) -> None:
    found = truetune.find_lr(
        model=str(tiny_base), data=rows, steps=20, learning_rate=1e-2, listener=Impatient(), **QUICK
    )
    assert found.stopped_by == "SIGINT"
    assert 10 <= len(found.curve.points) <= 12
    assert found.suggestion is None
    assert "SIGINT stopped the test" in found.reading.reason
    assert list((tmp_path / "temporary").iterdir()) == []


class GivingUp:
    """A session whose engine gives up, after a line as its trainer would log it."""

    def __init__(self, **logs: float) -> None:
        self.logs = logs

    def train(self, job: Any, rows: Any, tracking: Any, callbacks: Any) -> Any:
        callbacks[0].on_log(None, None, Control(), logs=self.logs)
        raise truetune.BackendError("training diverged")


class Control:
    should_training_stop = False


def test_an_engine_that_gives_up_on_broken_gradients_ends_the_test_and_other_errors_are_raised(
    tmp_path: Path,
) -> None:
    def give_up(**logs: float) -> Any:
        rising = RisingRate([1e-3] * 5, is_over=lambda _: False)
        return train_rising(GivingUp(**logs), job(tmp_path), TrainingRows([], [], None), tmp_path, rising)

    assert give_up(loss=2.0, grad_norm=math.nan) is None
    assert give_up(loss=math.inf, grad_norm=1.0) is None
    with pytest.raises(truetune.BackendError):
        give_up(loss=2.0, grad_norm=1.0)


def test_a_suggestion_is_compared_with_the_runs_own_rate() -> None:
    assert "nothing speaks against it" in compared(3e-4, 5e-4)
    assert "20 times the run's own rate" in compared(1e-2, 5e-4)
    assert "a tenth of" not in compared(1e-2, 5e-4)
    assert "a 25th of the run's own rate" in compared(2e-5, 5e-4)


def test_the_drawn_curve_falls_from_the_first_line_to_the_last_and_points_at_the_suggestion() -> None:
    rates = rising_rates([1e-3], 11)
    drawn = curve_lines(draw_curve(rates, [2.0, *(2.0 - 0.1 * n for n in range(11))], diverged=False), marked=1e-3)
    dotted = [(row, line.index("●")) for row, line in enumerate(drawn) if "●" in line]
    assert [row for row, _ in dotted] == sorted(row for row, _ in dotted)
    assert [column for _, column in dotted] == sorted(column for _, column in dotted)
    assert drawn[1].strip().startswith("2.00 │●")
    assert drawn[-3 - 1].strip().startswith("1.00 │")
    middle = (dotted[0][1] + dotted[-1][1]) / 2
    assert drawn[-1].index("↑") == pytest.approx(middle, abs=1)
    assert drawn[-1].endswith("↑ 0.001")


# --- the command ------------------------------------------------------------------------------------------


def run(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        warm.truetune("find-lr", *words),
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "COLUMNS": "100"},
        timeout=200,
        check=False,
    )


SMALL = ("precision=fp32", "learning_rate=1e-2", "gradient_accumulation_steps=1", "r=4")


def test_json_is_one_document_and_the_words_go_to_stderr(tiny_base: Path, rows: Path, tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(f"model: {{name_or_path: {tiny_base}}}\ndata: {{path: {rows}}}\n")
    done = run(str(config), *SMALL, "--steps", "20", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert len(document["points"]) == 20
    assert set(document["points"][0]) == {"learning_rate", "loss", "smoothed_loss"}
    assert document["setting"] == f"training.learning_rate={document['suggestion']:g}"
    assert document["configured"] == 1e-2
    assert {"steepest", "diverged_at", "reason", "notes", "held"} <= set(document)
    assert "20 learning rates from" in done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"run.yaml"}


def test_without_a_terminal_each_rate_is_a_line(tiny_base: Path, rows: Path, tmp_path: Path) -> None:
    done = run("--model", str(tiny_base), "--data", str(rows), *SMALL, "--steps", "20", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "learning_rate  loss  smoothed_loss"
    assert len([line for line in lines[1:21] if len(line.split()) == 3]) == 20
    assert lines[-1].startswith("use it: training.learning_rate=")


def test_mistakes_have_the_exit_status_of_every_command(tmp_path: Path) -> None:
    assert run("--model", "x", "--data", "y.jsonl", "learnig_rate=1", cwd=tmp_path).returncode == 2
    assert run("--model", "x", "--data", "y.jsonl", "--steps", "0", cwd=tmp_path).returncode == 2
    assert run("--model", "x", "--data", "y.jsonl", cwd=tmp_path).returncode == 1
